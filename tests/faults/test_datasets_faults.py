"""What befalls datasets: damaged and hostile files, a full disk, a kill. Each test fails without the guard that it is about."""
import errno
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from farm import FARM, Killed, contents, flip, sample, write
from PIL import Image

from synseg_kit import shards, upkeep
from synseg_kit.datasets import SyntheticFolder
from synseg_kit.shards import Manifest, ShardedDataset, ShardStream, Workplace, describe_file, export_shards, import_shards, write_tar
from synseg_kit.upkeep import check, mend, merge


@pytest.fixture
def made(tmp_path):
    """A synthetic dataset of seven samples."""
    return write(tmp_path / 'farm')


@pytest.fixture
def packed(made, tmp_path):
    """The same in shards of three."""
    return export_shards(made, tmp_path / 'shards', 3, progress=False)


def found(folder): return [(f.kind, f.file) for f in check(folder, progress=False).findings]


# ---- damaged shards

def in_the_photo(path):
    """A place in the pixels of the first JPEG, where most bits decode to something."""
    data = path.read_bytes()
    return data.index(b'\xff\xda') + 40


READERS = {
    'at any place': lambda folder: [*ShardedDataset(folder)],
    'as a stream': lambda folder: [*ShardStream(ShardedDataset(folder))],
    'to unpack': lambda folder: import_shards(folder, folder.with_name('back'), progress=False),
}


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('harm', ['a bit', 'the end', 'all of it'])
def test_a_damaged_shard_is_named(packed, reader, harm):
    path = packed.folder / 'shard-000001.tar'
    if harm == 'a bit':
        flip(path, in_the_photo(path))
        assert len([*ShardedDataset(packed.folder, verify=False)]) == 7  # without the checksum nobody would have noticed
    elif harm == 'the end': os.truncate(path, path.stat().st_size - 10_240)
    else: path.unlink()
    with pytest.raises(ValueError, match='shard-000001.tar (is damaged|has [0-9]+ bytes, and the manifest says|is missing)'): READERS[reader](packed.folder)
    assert [file for _, file in found(packed.folder)] == ['shard-000001.tar']


@pytest.mark.parametrize('harm', ['a bit', 'the end', 'all of it'])
def test_a_damaged_shard_is_left_out_on_request_only(packed, made, harm):
    path = packed.folder / 'shard-000001.tar'
    if harm == 'a bit': flip(path, in_the_photo(path))
    elif harm == 'the end': os.truncate(path, 5000)
    else: path.unlink()
    some = ShardedDataset(packed.folder, skip_damaged=True)
    assert [e.name for e in some] == [name for i, name in enumerate(made.names) if i // 3 != 1] and [*some.damaged] == ['shard-000001.tar'] and ', 1 damaged left out' in repr(some)
    if harm != 'a bit': return
    stream = ShardStream(ShardedDataset(packed.folder), skip_damaged=True)
    assert [e.name for e in stream] == [e.name for e in some] and [*stream.damaged] == ['shard-000001.tar']


def test_nothing_of_a_damaged_shard_comes_out_of_a_stream(packed, made):
    """The damage is behind the samples that would be given first."""
    flip(packed.folder / 'shard-000001.tar', -20)
    seen = []
    with pytest.raises(ValueError, match='shard-000001.tar is damaged'):
        for example in ShardStream(ShardedDataset(packed.folder)): seen.append(example.name)
    assert seen == [*made.names[:3]]


def test_a_half_unpacked_dataset_is_not_taken_for_a_whole(packed, tmp_path, made):
    flip(packed.folder / 'shard-000002.tar', -20)
    sound = contents(made.root)
    with pytest.raises(ValueError, match='shard-000002.tar is damaged'): import_shards(packed.folder, tmp_path / 'back', progress=False)
    with pytest.raises(FileNotFoundError): SyntheticFolder(tmp_path / 'back')
    flip(packed.folder / 'shard-000002.tar', -20)
    assert contents(import_shards(packed.folder, tmp_path / 'back', progress=False)) == sound


def test_when_no_shard_is_left(packed):
    for shard in packed.shards: flip(packed.folder / shard.name, 600)
    with pytest.raises(ValueError, match='has no shard that can be used: shard-000000.tar is damaged'): ShardedDataset(packed.folder, skip_damaged=True)


# ---- damaged folders

def test_a_broken_line_of_metadata_is_named_and_mended(made):
    lines, sound = (made.root / 'metadata.jsonl').read_text().splitlines(), contents(made.root)
    (made.root / 'metadata.jsonl').write_text('\n'.join([*lines[:4], lines[4][:70], *lines[5:]]) + '\n')
    with pytest.raises(ValueError, match='metadata.jsonl: line 5 does not describe a sample .*synseg check --mend'): SyntheticFolder(made.root)
    assert [f.why.partition(' is not JSON')[0] for f in check(made.root, progress=False).findings] == ['line 5']
    mended = mend(made.root, progress=False)
    assert mended.blocks == () and contents(made.root) == sound
    assert (mended.aside / 'metadata.jsonl').read_text().splitlines()[4] == lines[4][:70]


def test_a_lost_line_of_metadata_is_named(made):
    lines = (made.root / 'metadata.jsonl').read_text().splitlines(True)
    (made.root / 'metadata.jsonl').write_text(''.join(lines[:5]))
    with pytest.raises(ValueError, match='metadata.jsonl lacks 2 of 7 samples, first 000005'): SyntheticFolder(made.root)


def test_a_missing_mask_is_named_and_made_again(made):
    sound = contents(made.root)
    (made.root / 'SegmentationClass/000004.png').unlink()
    with pytest.raises(FileNotFoundError, match='000004.png'): SyntheticFolder(made.root)
    assert found(made.root) == [('missing', 'SegmentationClass/000004.png')]
    assert mend(made.root, progress=False).blocks == (2,)
    with pytest.raises(ValueError, match='is not finished'): SyntheticFolder(made.root)
    made_again = []
    write(made.root, make=lambda n, c: (made_again.append(n), sample(n, c))[1])
    assert made_again == [4, 5] and contents(made.root) == sound


def test_duplicates_are_named_and_never_deleted(made):
    (made.root / 'JPEGImages/000005.jpg').write_bytes((made.root / 'JPEGImages/000002.jpg').read_bytes())
    before = contents(made.root)
    assert found(made.root) == [('duplicate', 'JPEGImages/000005.jpg')] and 'same image as 000002' in check(made.root, progress=False).findings[0].why
    mend(made.root, progress=False)
    assert contents(made.root) == before


def test_foreign_files_are_named_and_moved_not_deleted(made):
    sound = contents(made.root)
    for name in ('notes.txt', 'JPEGImages/000001 (copy).jpg', 'SegmentationClass/.DS_Store', 'ImageSets/Segmentation/train.txt~', 'blocks/000009.json'): (made.root / name).write_text(f'mine: {name}')
    assert {kind for kind, _ in found(made.root)} == {'foreign'} and len(found(made.root)) == 5
    mended = mend(made.root, progress=False)
    assert contents(made.root) == sound and {name: data.decode() for name, data in contents(mended.aside).items()} == {name: f'mine: {name}' for name in mended.moved} and len(mended.moved) == 5


def test_mending_waits_for_whoever_writes(made):
    with upkeep.dissect(made.root).writer:
        with pytest.raises(RuntimeError, match='another process is writing'): mend(made.root, progress=False)


def test_mending_that_was_killed_loses_nothing(made, monkeypatch):
    sound = contents(made.root)
    (made.root / 'SegmentationClass/000004.png').unlink()
    harmed, move, left = contents(made.root), upkeep.shutil.move, [3]

    def until(a, b):
        if left[0] == 0: raise Killed
        left[0] -= 1
        return move(a, b)

    monkeypatch.setattr(upkeep.shutil, 'move', until)
    with pytest.raises(Killed): mend(made.root, progress=False)
    monkeypatch.undo()
    aside = made.root.with_name('farm-set-aside')
    assert {**contents(made.root), **contents(aside)} == harmed
    assert mend(made.root, progress=False).blocks == (2,)
    write(made.root)
    assert contents(made.root) == sound


# ---- a full disk

def full_after(count, monkeypatch, target, name):
    """Let the disk be full at a certain call."""
    real, left = getattr(target, name), [count]

    def until(*arguments, **options):
        if left[0] == 0: raise OSError(errno.ENOSPC, 'No space left on device')
        left[0] -= 1
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, until)


@pytest.mark.parametrize('count', [0, 1, 11, 12, 13, 25, 28, 30])
def test_a_full_disk_while_packing(made, packed, tmp_path, monkeypatch, count):
    """At a first file, within a shard, at its end, in the records: shards are whole or absent, and the same command goes on."""
    full_after(count, monkeypatch, tarfile.TarFile, 'addfile')
    with pytest.raises(OSError, match='the disk is full; (shard-00000.|dataset).tar of .*x was not written. . finished files stay; make room and start the same command again') as error: export_shards(made, tmp_path / 'x', 3, progress=False)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    there = contents(tmp_path / 'x') if (tmp_path / 'x').exists() else {}
    assert all(data == (packed.folder / name).read_bytes() for name, data in there.items() if not name.startswith('writing/'))
    assert {name.partition('/')[2].partition('/')[0] for name in there if name.startswith('writing/')} <= {'about.json', 'done', 'lock'} and 'manifest.json' not in there
    assert len([name for name in there if name.endswith('.tar')]) == sum(count >= end for end in (12, 24, 28))
    if not there: assert not (tmp_path / 'x').exists()  # nothing was finished, so nothing is left
    export_shards(made, tmp_path / 'x', 3, progress=False)
    assert contents(tmp_path / 'x') == contents(packed.folder)


def test_a_full_disk_while_unpacking(made, packed, tmp_path, monkeypatch):
    full_after(20, monkeypatch, shards.Path, 'write_bytes')
    with pytest.raises(OSError, match='the disk is full; .* was not written. .* finished files stay; make room'): import_shards(packed.folder, tmp_path / 'x', progress=False)
    monkeypatch.undo()
    sound = contents(made.root)
    assert all(data == sound[name] for name, data in contents(tmp_path / 'x').items() if not name.startswith('writing/'))
    assert contents(import_shards(packed.folder, tmp_path / 'x', progress=False)) == sound


def test_a_full_disk_while_merging(made, tmp_path, monkeypatch):
    other = write(tmp_path / 'other', 4, first=10)
    start = lambda folder: merge([made.root, other.root], folder, block_size=4, progress=False)
    whole = contents(start(tmp_path / 'whole').root)
    full_after(20, monkeypatch, upkeep.shutil, 'copyfile')
    with pytest.raises(OSError, match='the disk is full; block 1 of .*x was not written. 1 of 3 blocks are complete and stay'): start(tmp_path / 'x')
    monkeypatch.undo()
    assert all(data == whole[name] for name, data in contents(tmp_path / 'x').items())
    assert contents(start(tmp_path / 'x').root) == whole


def test_other_errors_are_not_called_a_full_disk(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, 'write_tar', lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, 'Permission denied')))
    with pytest.raises(PermissionError, match='Permission denied'): export_shards(made, tmp_path / 'x', 3, progress=False)


# ---- two at once, and what a kill leaves

def test_two_processes_do_not_fill_one_folder(made, tmp_path):
    about = shards.describe_shards(made, 3)
    with Workplace(tmp_path / 'x', about):
        with pytest.raises(RuntimeError, match='another process is writing'): export_shards(made, tmp_path / 'x', 3, progress=False)
    export_shards(made, tmp_path / 'x', 3, progress=False)


def test_half_a_shard_of_a_killed_export_is_not_used(made, packed, tmp_path, monkeypatch):
    def killed(path, members):
        path.write_bytes(b'half')
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards, 'write_tar', killed)
        patch.setattr(Workplace, '__exit__', lambda self, *error: self._lock.release())
        with pytest.raises(Killed): export_shards(made, tmp_path / 'x', 3, progress=False)
    export_shards(made, tmp_path / 'x', 3, progress=False)
    assert contents(tmp_path / 'x') == contents(packed.folder)


# ---- hostile shards

class Harm:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, place): self.place = place

    def __reduce__(self): return os.mkdir, (str(self.place),)


def pack(folder, packed, members, records=None):
    """A folder of one shard, in order but for what is in it."""
    folder.mkdir()
    lines = []
    for name, content in (('shard-000000.tar', members), *([('dataset.tar', records)] if records is not None else [])):
        with tarfile.open(folder / name, 'w') as tar:
            for member in content:
                about, data = member if isinstance(member[0], tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
        lines.append(describe_file(folder / name, name, 1))
    (folder / 'manifest.json').write_text(Manifest(packed.manifest.about, lines[:1], *lines[1:]).to_json())
    return folder


@pytest.fixture
def members(packed):
    """The files of a harmless sample."""
    name, files = packed.members(0)
    return [(f'{name}.{ending}', data) for ending, data in files.items()]


def everywhere(tmp_path): return {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')}


@pytest.mark.parametrize('ending', ['pkl', 'pickle', 'pyd', 'pth', 'npy', 'npz', 'seg.png.pkl', 'pkl.jpg', 'PKL'])
@pytest.mark.parametrize('reader', READERS)
def test_a_pickle_is_refused_and_never_loaded(packed, members, tmp_path, ending, reader):
    hostile = pack(tmp_path / 'hostile', packed, [*members, (f'000000.{ending}', pickle.dumps(Harm(tmp_path / 'harmed')))])
    with pytest.raises(ValueError, match=f"shard-000000.tar holds '000000.{ending}'; a shard holds images"): READERS[reader](hostile)
    assert not (tmp_path / 'harmed').exists() and [kind for kind, _ in found(hostile)] == ['broken']
    pickle.loads(pickle.dumps(Harm(tmp_path / 'harmed')))
    assert (tmp_path / 'harmed').exists()  # it would have


@pytest.mark.parametrize('ending', ['jpg', 'seg.png', 'rel.png', 'json'])
def test_a_pickle_under_another_name_is_not_loaded_either(packed, members, tmp_path, ending):
    hostile = pack(tmp_path / 'hostile', packed, [(name, pickle.dumps(Harm(tmp_path / 'harmed')) if name == f'000000.{ending}' else data) for name, data in members])
    read = ShardedDataset(hostile)
    with pytest.raises(ValueError, match='is not a (JPEG|PNG) that can be read' if ending != 'json' else "codec can't decode|Expecting value"): read[0], read.metadata
    if ending == 'json':
        with pytest.raises(ValueError, match='000000.json does not say where'): import_shards(hostile, tmp_path / 'out', progress=False)
    assert not (tmp_path / 'harmed').exists()


NAMES = ['../x.jpg', '../../x.jpg', '/tmp/x.jpg', 'a/../../x.jpg', 'a/../b.jpg', 'C:x.jpg', '..\\x.jpg', './x.jpg', 'writing/x.jpg', 'x\0y.jpg']


@pytest.mark.parametrize('name', NAMES[:-1])
@pytest.mark.parametrize('reader', READERS)
def test_names_that_lead_out_are_refused(packed, members, tmp_path, name, reader):
    hostile = pack(tmp_path / 'hostile', packed, [*members, (name, members[0][1])])
    before = everywhere(tmp_path)
    with pytest.raises(ValueError, match='is not a plain path within the dataset'): READERS[reader](hostile)
    assert {p for p in everywhere(tmp_path) - before if p.rpartition('/')[2].startswith('x')} == set()


@pytest.mark.parametrize('place', [*NAMES, '', 7, None, 'JPEGImages/000000.exe'])
def test_metadata_that_leads_out_is_refused(packed, members, tmp_path, place):
    """The names in the tar are fine; the line that says where the files go is not."""
    files = dict(members)
    about = json.loads(files['000000.json'])
    about['files']['jpg'] = place
    hostile = pack(tmp_path / 'hostile', packed, [(name, json.dumps(about).encode() if name == '000000.json' else data) for name, data in members])
    before = everywhere(tmp_path)
    with pytest.raises(ValueError, match='is not a plain path within the dataset|wants to put'): import_shards(hostile, tmp_path / 'a/b/out', progress=False)
    assert {p for p in everywhere(tmp_path) - before if p.endswith(('.jpg', '.exe'))} == set()


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize('reader', READERS)
def test_links_and_devices_are_refused(packed, members, tmp_path, kind, reader):
    link = tarfile.TarInfo('000001.jpg')
    link.type, link.linkname = kind, '/etc/passwd'
    hostile = pack(tmp_path / 'hostile', packed, [*members, (link, b'')])
    with pytest.raises(ValueError, match="holds '000001.jpg', which is no plain file but a (link|folder or device)"): READERS[reader](hostile)


@pytest.mark.parametrize('name', ['../dataset.json', '/tmp/dataset.json', 'a/../../dataset.json', 'writing/lock'])
def test_records_that_lead_out_are_refused(packed, members, tmp_path, name):
    hostile = pack(tmp_path / 'hostile', packed, members, [(name, b'{}')])
    with pytest.raises(ValueError, match='is not a plain path within the dataset'): import_shards(hostile, tmp_path / 'a/out', progress=False)
    assert not (tmp_path / 'a/dataset.json').exists()


@pytest.mark.parametrize('change', [{'name': '../shard-000000.tar'}, {'name': '/etc/passwd'}, {'name': 'pipe:touch harmed'}, {'name': 'shard-000000.tar.pkl'}, {'samples': -1}, {'bytes': '7'}, {'sha256': 'x'}])
def test_a_manifest_that_leads_out_is_refused(packed, change):
    told = json.loads((packed.folder / 'manifest.json').read_text())
    told['shards'][0].update(change)
    (packed.folder / 'manifest.json').write_text(json.dumps(told))
    with pytest.raises(ValueError, match='the manifest has a line that is none'): ShardedDataset(packed.folder)


def test_a_picture_of_another_kind_is_not_opened(packed, members, tmp_path):
    """Pillow knows dozens of formats, some of which it hands to other programs; a .jpg is a JPEG or nothing."""
    memory = io.BytesIO()
    Image.new('RGB', (32, 24)).save(memory, 'BMP')
    hostile = pack(tmp_path / 'hostile', packed, [(name, memory.getvalue() if name.endswith('.jpg') else data) for name, data in members])
    with pytest.raises(ValueError, match='is not a JPEG that can be read'): ShardedDataset(hostile)[0]


def test_a_tar_of_tricks_that_is_no_tar(packed, tmp_path):
    for number, data in enumerate((b'', b'\x1f\x8b' + bytes(600), b'PK\x03\x04' + bytes(600), np.random.default_rng(0).bytes(2048))):
        folder = tmp_path / f'{number}'
        folder.mkdir()
        (folder / 'shard-000000.tar').write_bytes(data)
        (folder / 'manifest.json').write_text(Manifest(packed.manifest.about, [describe_file(folder / 'shard-000000.tar', 'shard-000000.tar', 1)]).to_json())
        with pytest.raises(ValueError, match='shard-000000.tar (is not a tar that can be read|holds 0 samples, and the manifest says 1)'): ShardedDataset(folder)[0]


def test_what_is_packed_holds_nothing_that_could_run(made, packed):
    for shard in packed.shards:
        with tarfile.open(packed.folder / shard.name) as tar: assert {m.name.partition('.')[2] for m in tar} == {'jpg', 'json', 'rel.png', 'seg.png'}
    write_tar(packed.folder / 'x.tar', [])
    assert FARM == made.class_set
