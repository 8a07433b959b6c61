"""Shards: the same bytes each time, read in place as the folder is, and back to it byte for byte."""
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from farm import FARM, Killed, contents, example, flip, killed_at_every_rename, release, sample, write
from PIL import Image
from torch.utils.data import DataLoader

from synseg_kit import shards
from synseg_kit.classes import ClassSet, imagenet_s
from synseg_kit.datasets import Augmentation, CityscapesFolder, Draws, Examples, ImageNetSFolder, LabelledFolder, SyntheticFolder, VOCFolder, batches, build_transform, encode_labels
from synseg_kit.shards import (HuggingFaceExamples, ShardedDataset, ShardStream, ShardWriter, decode_sample, export_parquet, export_shards, import_parquet, import_shards, index_shard, open_dataset,
                               read_manifest, split_name, write_tar)

MANY = ClassSet('many', tuple(f'thing {i}' for i in range(600)), void=1000)


def same(a, b):
    """Whether two examples are one."""
    alike = lambda x, y: (x is None) == (y is None) and (x is None or np.array_equal(x, y) and x.dtype == y.dtype)
    return a.name == b.name and a.image.tobytes() == b.image.tobytes() and alike(a.labels, b.labels) and alike(a.reliability, b.reliability)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A synthetic dataset of seven samples."""
    return write(tmp_path_factory.mktemp('made') / 'farm', maker='hand')


@pytest.fixture(scope='module')
def packed(made, tmp_path_factory):
    """The same in shards of three."""
    return export_shards(made, tmp_path_factory.mktemp('packed') / 'shards', 3, progress=False)


# ---- packing

def test_shards_are_read_as_the_folder(made, packed):
    assert isinstance(packed, Examples) and len(packed) == 7 and packed.class_set == FARM
    assert all(same(a, b) for a, b in zip(made, packed, strict=True)) and same(packed[-1], made[6])
    assert (packed.names, packed.metadata, packed.prompts) == (made.names, made.metadata, made.prompts)
    with pytest.raises(IndexError): packed[7]


def test_a_shard_is_a_plain_tar_without_owner_or_time(packed, made):
    with tarfile.open(packed.folder / 'shard-000000.tar') as tar: members = tar.getmembers()
    assert [m.name for m in members] == [f'{n:06}.{ending}' for n in range(3) for ending in ('jpg', 'json', 'rel.png', 'seg.png')]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, '', '', 0o644)}
    with tarfile.open(packed.folder / 'shard-000000.tar') as tar: assert tar.extractfile('000001.seg.png').read() == made.masks[1].read_bytes()


def test_the_manifest_says_what_is_there(packed):
    told = json.loads((packed.folder / 'manifest.json').read_text())
    assert [(s['name'], s['samples']) for s in told['shards']] == [('shard-000000.tar', 3), ('shard-000001.tar', 3), ('shard-000002.tar', 1)]
    for shard in (*told['shards'], told['dataset']):
        data = (packed.folder / shard['name']).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard['bytes'], shard['sha256'])
    assert told['count'] == 7 and told['made'] == {'maker': 'hand', 'block_size': 2} and ClassSet(**told['class_set']) == FARM
    assert {p.name for p in packed.folder.iterdir()} == {'manifest.json', 'dataset.tar', *(s['name'] for s in told['shards'])}


def test_the_same_dataset_gives_the_same_bytes(made, packed, tmp_path):
    os.utime(made.images[0], (1, 1))
    assert contents(export_shards(made, tmp_path / 'again', 3, progress=False).folder) == contents(packed.folder)


def test_and_back_again(made, packed, tmp_path):
    assert contents(import_shards(packed.folder, tmp_path / 'back', progress=False)) == contents(made.root)
    assert len(SyntheticFolder(tmp_path / 'back')) == 7


def test_further_masks_and_lists_travel_too(tmp_path):
    dataset = write(tmp_path / 'made', make=lambda n, c: sample(n, c, others=('daam', 'otsu')))
    (dataset.root / 'ImageSets/Segmentation/fit.txt').write_text('000001\n')
    made = export_shards(dataset, tmp_path / 'shards', 4, progress=False)
    assert sorted(made.members(0)[1]) == ['jpg', 'json', 'rel.png', 'seg-daam.png', 'seg-otsu.png', 'seg.png']
    assert contents(import_shards(made.folder, tmp_path / 'back', progress=False)) == contents(dataset.root)


def test_large_datasets_with_folders_in_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr('synseg_kit.datasets.FOLDER_FROM', 4)
    monkeypatch.setattr('synseg_kit.datasets.PER_FOLDER', 2)
    dataset = write(tmp_path / 'made')
    made = export_shards(dataset, tmp_path / 'shards', 2, progress=False)
    assert made.names == dataset.names and made.names[3] == '001/000003'
    assert contents(import_shards(made.folder, tmp_path / 'back', progress=False)) == contents(dataset.root)


def test_class_sets_beyond_a_byte(tmp_path):
    dataset = write(tmp_path / 'made', class_set=MANY)
    assert all(same(a, b) for a, b in zip(dataset, export_shards(dataset, tmp_path / 'shards', 3, progress=False), strict=True))


def test_benchmarks_keep_their_encoding(tmp_path):
    voc = tmp_path / 'voc'
    for inner in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'): (voc / inner).mkdir(parents=True)
    for i in (3, 1): example(i).image.save(voc / f'JPEGImages/2007_{i:06}.jpg'), encode_labels(example(i).labels, FARM).save(voc / f'SegmentationClass/2007_{i:06}.png')
    (voc / 'ImageSets/Segmentation/val.txt').write_text('2007_000003\n\n2007_000001\n')
    net = tmp_path / 'imagenet'
    for inner in ('validation/n01443537', 'validation-segmentation/n01443537'): (net / inner).mkdir(parents=True)
    Image.new('RGB', (5, 3)).save(net / 'validation/n01443537/val_0.JPEG')
    ids = np.array([[0, 1, 1, 1000, 0]] * 3)
    Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], 2).astype(np.uint8)).save(net / 'validation-segmentation/n01443537/val_0.png')
    city = tmp_path / 'cityscapes'
    for inner in ('leftImg8bit/val/ulm', 'gtFine/val/ulm'): (city / inner).mkdir(parents=True)
    Image.new('RGB', (34, 2)).save(city / 'leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png')
    Image.fromarray(np.arange(34, dtype=np.uint8)[None].repeat(2, 0)).save(city / 'gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png')
    two = ClassSet('two', ('road', 'car'), background=None)
    for dataset in (VOCFolder(voc, 'val', FARM), ImageNetSFolder(net, 'validation', imagenet_s(net / 'validation')), CityscapesFolder(city), CityscapesFolder(city, 'val', two, {7: 0, 26: 1})):
        number = len([*tmp_path.glob('shards*')])
        made = export_shards(dataset, tmp_path / f'shards{number}', 1, progress=False)
        assert made.names == dataset.names and all(same(a, b) for a, b in zip(dataset, made, strict=True))
        back = import_shards(made.folder, tmp_path / f'back{number}', progress=False)
        assert contents(back).items() == {name: data for name, data in contents(dataset.root).items()}.items()


def test_images_without_labels(tmp_path):
    example().image.save(tmp_path / 'a.png')
    made = export_shards(LabelledFolder(FARM, ['a'], [tmp_path / 'a.png'], None), tmp_path / 'shards', progress=False)
    assert sorted(made.members(0)[1]) == ['json', 'png'] and (made[0].labels == FARM.void).all() and made[0].reliability is None


def test_a_reader_that_decodes_in_its_own_way_is_refused(made, tmp_path):
    class Odd(SyntheticFolder):
        def decode(self, picture, source): return np.zeros((24, 32), np.uint8)

    with pytest.raises(TypeError, match='Odd decodes its masks in a way of its own'): export_shards(Odd(made.root), tmp_path / 'x', progress=False)
    assert not (tmp_path / 'x').exists()


def test_names_with_dots_are_refused(tmp_path):
    example().image.save(tmp_path / 'a.b.png')
    with pytest.raises(ValueError, match="sample 'a.b' has a dot in its name"): export_shards(LabelledFolder(FARM, ['a.b'], [tmp_path / 'a.b.png'], None), tmp_path / 'x', progress=False)
    assert not (tmp_path / 'x').exists()


def test_files_that_do_not_belong_stay_behind(tmp_path):
    dataset = write(tmp_path / 'made')
    before = contents(dataset.root)
    (dataset.root / 'notes.txt').write_text('secret')
    made = export_shards(dataset, tmp_path / 'shards', progress=False)
    assert contents(import_shards(made.folder, tmp_path / 'back', progress=False)) == before


def test_other_folders_are_refused(made, packed, tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(FileExistsError, match='holds other files, such as mine.txt'): export_shards(made, tmp_path, progress=False)
    with pytest.raises(FileExistsError, match='holds other files, such as mine.txt'): import_shards(packed.folder, tmp_path, progress=False)
    with pytest.raises(NotADirectoryError): export_shards(made, tmp_path / 'mine.txt', progress=False)
    with pytest.raises(FileExistsError, match='per_shard is 3 there, 2 here'): export_shards(made, packed.folder, 2, progress=False)
    with pytest.raises(ValueError, match='per_shard=0'): export_shards(made, tmp_path / 'x', 0)
    with pytest.raises(FileNotFoundError, match='holds no shards: it has no manifest.json'): ShardedDataset(tmp_path)
    assert contents(tmp_path) == {'mine.txt': b'x'}


def test_a_changed_dataset_is_not_mixed_in(tmp_path):
    dataset = write(tmp_path / 'made')
    made = export_shards(dataset, tmp_path / 'shards', 3, progress=False)
    (made.folder / 'shard-000001.tar').unlink()
    Image.new('RGB', (32, 24)).save(dataset.images[4])
    with pytest.raises(ValueError, match='shard-000001.tar was made again and is not what it was'): export_shards(dataset, made.folder, 3, progress=False)


# ---- reading

def test_an_index_needs_the_files_of_a_sample_together():
    def tar(*names):
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode='w') as made:
            for name in names: made.addfile(tarfile.TarInfo(name))
        memory.seek(0)
        return memory

    index = index_shard(tar('a.jpg', 'a.seg.png', 'x/b.jpg'), 's')
    assert (index.names, index.endings, index.firsts.tolist()) == (('a', 'x/b'), (('jpg', 'seg.png'), ('jpg',)), [0, 2, 3])
    with pytest.raises(ValueError, match="the files of 'a' do not stand together"): index_shard(tar('a.jpg', 'b.jpg', 'a.seg.png'), 's')
    with pytest.raises(ValueError, match="holds 'a.jpg' twice"): index_shard(tar('a.jpg', 'a.jpg'), 's')
    with pytest.raises(ValueError, match='is not a tar that can be read'): index_shard(io.BytesIO(b'x' * 2000), 's')


@pytest.mark.parametrize('name, says', [('a.JPG', "holds 'a.JPG'"), ('a', "holds 'a'"), ('.jpg', "holds '.jpg'"), ('a.seg-..png', 'holds'), ('a.npy', 'holds'), ('a.pyd', 'holds'), ('a.pth', 'holds'),
                                        ('a.cls', 'holds'), ('a.tar', 'holds'), ('a//b.jpg', 'not a plain path'), ('./a.jpg', 'not a plain path'), ('a\nb.jpg', 'not a plain path')])
def test_other_names_are_refused(name, says):
    with pytest.raises(ValueError, match=re.escape(says)): split_name(name, 'shard')


def test_a_picture_must_be_what_its_name_says(made):
    files = {'jpg': made.images[0].read_bytes(), 'seg.png': made.masks[0].read_bytes()}
    assert same(decode_sample(files, FARM, name='x'), decode_sample({**files, '__key__': 'x'}, FARM))
    for wrong in ({'jpg': files['seg.png']}, {**files, 'seg.png': files['jpg']}, {'jpg': b'%!PS-Adobe-3.0 EPSF-3.0'}, {'jpg': files['jpg'][:200]}):
        with pytest.raises(ValueError, match='is not a (JPEG|PNG) that can be read'): decode_sample(wrong, FARM, name='x')
    with pytest.raises(ValueError, match="sample 'x' has no image"): decode_sample({'seg.png': b''}, FARM, name='x')
    with pytest.raises(ValueError, match='unknown encoding of masks'): decode_sample(files, FARM, {'kind': 'words'}, 'x')


def test_training_draws_do_not_notice(made, packed):
    draw = lambda data: [*batches(data, 255, 4, 3, Augmentation(crop=16), seed=2)]
    assert all((a == b).all() for x, y in zip(draw(made), draw(packed), strict=True) for a, b in zip(x, y))


@pytest.mark.parametrize('workers', [0, 2])
def test_loading_processes_change_nothing(packed, workers):
    read = ShardedDataset(packed.folder, window=2)
    alone = [*batches(read, 255, 5, 2, Augmentation(crop=16), seed=2)]
    assert all((a == b).all() for x, y in zip(alone, batches(read, 255, 5, 2, Augmentation(crop=16), seed=2, num_workers=workers), strict=True) for a, b in zip(x, y))


def test_it_can_be_sent_to_another_process(packed):
    packed[0]
    assert same(pickle.loads(pickle.dumps(packed))[5], packed[5])


@pytest.mark.parametrize('window', [1, 2, 3, 9])
def test_a_window_reads_few_shards_at_a_time(packed, window):
    read, plain = ShardedDataset(packed.folder, window), ShardedDataset(packed.folder)
    draws = Draws(read, build_transform(Augmentation(), 255), seed=1)
    passes = [[draws.index(n) for n in range(7 * e, 7 * e + 7)] for e in range(6)]
    assert all(sorted(p) == [*range(7)] for p in passes) and len({tuple(p) for p in passes}) > 1
    for order in passes:
        seen, place = [], 0
        for i in order: seen += [i // 3] * (i // 3 not in seen)
        while seen:
            now, seen = seen[:window], seen[window:]
            here = sum((3, 3, 1)[s] for s in now)
            assert {order[k] // 3 for k in range(place, place + here)} == {*now}
            place += here
    assert plain.order(1, 0).tolist() == np.random.default_rng((1, 0, 2)).permutation(7).tolist()
    with pytest.raises(ValueError, match='window=0'): ShardedDataset(packed.folder, 0)


def test_streams_share_the_shards(made, packed):
    assert all(same(a, b) for a, b in zip(made, ShardStream(packed), strict=True))
    parts = [[e.name for e in ShardStream(packed, 5, part=(n, 2))] for n in range(2)]
    assert sorted(parts[0] + parts[1]) == [*made.names] and all(parts)
    orders = {epoch: [e.name for e in ShardStream(packed, 5, epoch)] for epoch in range(6)}
    assert len({tuple(o) for o in orders.values()}) > 1 and all(sorted(o) == [*made.names] for o in orders.values())
    assert orders[3] == [e.name for e in ShardStream(packed, 5, 3)]
    loaded = [e.name for e in DataLoader(ShardStream(packed, 5), batch_size=None, num_workers=2)]
    assert sorted(loaded) == [*made.names]
    with pytest.raises(ValueError, match=r'part=\(2, 2\)'): ShardStream(packed, part=(2, 2))


def test_webdataset_reads_our_shards(made, packed):
    webdataset = pytest.importorskip('webdataset', reason='the webdataset package is not installed')
    read = [*webdataset.WebDataset([str(packed.folder / s.name) for s in packed.shards], shardshuffle=False)]
    assert [s['__key__'] for s in read] == [*made.names]
    assert all(same(decode_sample(s, FARM, packed.encoding), e) for s, e in zip(read, made, strict=True))
    assert json.loads(read[4]['json'])['text'] == made.metadata[4]['text']
    urls = str(packed.folder / 'shard-{000000..000002}.tar')
    assert len([*webdataset.WebDataset(urls, shardshuffle=False).decode('pil')]) == 7


def test_we_read_shards_that_webdataset_wrote(made, packed, tmp_path):
    """A file that someone else packed: read in place, and not unpacked, for it does not say where files go."""
    webdataset = pytest.importorskip('webdataset', reason='the webdataset package is not installed')
    with webdataset.TarWriter(str(tmp_path / 'shard-000000.tar')) as writer:
        for i in range(2): writer.write({'__key__': f'photo{i}', 'jpg': made.images[i].read_bytes(), 'seg.png': made.masks[i].read_bytes()})
    line = shards.describe_file(tmp_path / 'shard-000000.tar', 'shard-000000.tar', 2)
    (tmp_path / 'manifest.json').write_text(shards.Manifest(packed.manifest.about, [line]).to_json())
    read = ShardedDataset(tmp_path)
    assert read.names == ('photo0', 'photo1') and np.array_equal(read[1].labels, made[1].labels)
    with pytest.raises(ValueError, match='photo0.json does not say where the files'): import_shards(tmp_path, tmp_path / 'out', progress=False)


# ---- interrupted

def test_an_export_that_was_killed_goes_on(made, packed, tmp_path, monkeypatch):
    places = killed_at_every_rename(lambda folder: export_shards(made, folder, 3, progress=False), tmp_path, monkeypatch, shards.Workplace)
    assert len(places) == 10 and all(contents(place) == contents(packed.folder) for place in places)  # about.json, four files with a note each, the manifest


def test_an_import_that_was_killed_goes_on(made, packed, tmp_path, monkeypatch):
    places = killed_at_every_rename(lambda folder: import_shards(packed.folder, folder, progress=False), tmp_path, monkeypatch, shards.Workplace)
    assert len(places) > 30 and all(contents(place) == contents(made.root) for place in places)


def test_finished_parts_are_not_written_again(made, tmp_path, monkeypatch):
    wrote, write_once = [], shards.write_tar

    def breaks(path, members):
        wrote.append(path)
        if len(wrote) == 3: raise KeyboardInterrupt
        write_once(path, members)

    monkeypatch.setattr(shards, 'write_tar', breaks)
    with pytest.raises(KeyboardInterrupt): export_shards(made, tmp_path / 'x', 3, progress=False)
    with pytest.raises(FileNotFoundError, match='is not finished; start the same export again'): ShardedDataset(tmp_path / 'x')
    with pytest.raises(FileExistsError, match='per_shard is 3 there, 4 here'): export_shards(made, tmp_path / 'x', 4, progress=False)
    export_shards(made, tmp_path / 'x', 3, progress=False)
    assert len(wrote) == 5 and not (tmp_path / 'x/writing').exists()  # two, one that broke, and the two that were left


def pack_at_once(folder, per_shard=3):
    """Write the seven samples of the farm as shards, without a folder of files."""
    with ShardWriter(folder, FARM, 7, 2, {'maker': 'hand'}, per_shard) as writer:
        for block in writer.missing: writer.write(block, [sample(n) for n in writer.numbers(block)])
        return writer.finish()


def test_writing_shards_at_once_can_be_killed_at_any_rename(made, packed, tmp_path, monkeypatch):
    places = killed_at_every_rename(pack_at_once, tmp_path, monkeypatch, ShardWriter)
    assert len(places) == 38 and all(contents(place) == contents(packed.folder) for place in places)  # two descriptions, 21 files, 4 records, 3 lists, 4 tars with 3 notes, the manifest


def test_a_kill_between_packing_and_removing_packs_nothing_twice(packed, tmp_path, monkeypatch):
    def killed(self, lines):
        if lines: raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, '_remove', killed)
        patch.setattr(ShardWriter, '__exit__', release)
        with pytest.raises(Killed): pack_at_once(tmp_path / 'x')
    assert (tmp_path / 'x/shard-000000.tar').is_file() and len(contents(tmp_path / 'x/writing/dataset/JPEGImages')) == 4
    pack_at_once(tmp_path / 'x')
    assert contents(tmp_path / 'x') == contents(packed.folder)


def test_blocks_may_come_in_any_order(packed, tmp_path):
    with ShardWriter(tmp_path / 'x', FARM, 7, 2, {'maker': 'hand'}, 3) as writer:
        for block in (3, 1, 2):
            writer.write(block, [sample(n) for n in writer.numbers(block)])
            assert not list((tmp_path / 'x').glob('*.tar'))  # the first shard lacks its first samples
        writer.write(0, [sample(n) for n in writer.numbers(0)])
        assert len(list((tmp_path / 'x').glob('*.tar'))) == 2
        writer.finish()
    assert contents(tmp_path / 'x') == contents(packed.folder)


def test_shards_with_masks_by_other_recipes(tmp_path):
    both = lambda n, c=FARM: sample(n, c, others=('daam',))
    export_shards(write(tmp_path / 'made', make=both), tmp_path / 'packed', 3, progress=False)
    with ShardWriter(tmp_path / 'x', FARM, 7, 2, per_shard=3) as writer:
        for block in writer.missing: writer.write(block, [both(n) for n in writer.numbers(block)])
        writer.finish()
    assert contents(tmp_path / 'x') == contents(tmp_path / 'packed')


def test_a_shard_that_got_lost_on_the_way_is_named(tmp_path):
    with ShardWriter(tmp_path / 'x', FARM, 7, 2, {'maker': 'hand'}, 3) as writer:
        for block in writer.missing[:2]: writer.write(block, [sample(n) for n in writer.numbers(block)])
    (tmp_path / 'x/shard-000000.tar').unlink()
    with pytest.raises(ValueError, match='shard-000000.tar is missing, and its samples are not there any more; delete'): pack_at_once(tmp_path / 'x')
    with pytest.raises(ValueError, match='shard-000000.tar is missing'): pack_at_once(tmp_path / 'x')  # and no lock is left
    with pytest.raises(ValueError, match='per_shard=0; needed is at least one sample'): ShardWriter(tmp_path / 'x', FARM, 7, 2, per_shard=0)


def test_a_finished_folder_of_shards_is_left_alone(packed, tmp_path):
    pack_at_once(tmp_path / 'x')
    assert pack_at_once(tmp_path / 'x').names == tuple(f'{n:06}' for n in range(7)) and contents(tmp_path / 'x') == contents(packed.folder)
    with pytest.raises(FileExistsError, match='in other shards: per_shard is 3 there, 4 here'): pack_at_once(tmp_path / 'x', 4)
    assert contents(tmp_path / 'x') == contents(packed.folder)


SIGKILL = '''
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from synseg_kit.datasets import SyntheticFolder
from synseg_kit.shards import export_shards
rename, left = os.replace, [6]
def replace(a, b):
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    rename(a, b)
os.replace = replace
export_shards(SyntheticFolder(sys.argv[2]), sys.argv[3], 3, progress=False)
'''


def test_a_real_kill(made, packed, tmp_path, root):
    done = subprocess.run([sys.executable, '-c', SIGKILL, str(root), str(made.root), str(tmp_path / 'x')], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert sorted(p.name for p in (tmp_path / 'x').iterdir()) == ['shard-000000.tar', 'shard-000001.tar', 'shard-000002.tar', 'writing']  # the last is there and not noted: it is made again
    export_shards(made, tmp_path / 'x', 3, progress=False)
    assert contents(tmp_path / 'x') == contents(packed.folder)


# ---- Hugging Face

def test_parquet_and_back(tmp_path):
    huggingface = pytest.importorskip('datasets', reason='the Hugging Face library is not installed')
    dataset = write(tmp_path / 'made', make=lambda n, c: sample(n, c, others=('daam',)))
    manifest = export_parquet(dataset, tmp_path / 'parquet', 3, progress=False)
    assert [s.name for s in manifest.shards] == [f'data/train-{n:05}-of-00003.parquet' for n in range(3)]
    assert contents(import_parquet(tmp_path / 'parquet', tmp_path / 'back', progress=False)) == contents(dataset.root)
    rows = huggingface.load_dataset(str(tmp_path / 'parquet'), cache_dir=str(tmp_path / 'cache'))['train']
    assert {'image', 'mask', 'reliability', 'mask_daam', 'name', 'text', 'class_ids', 'seed', 'metadata'} == {*rows.column_names}
    assert isinstance(rows.features['image'], huggingface.Image) and rows[4]['class_ids'] == [2] and json.loads(rows[4]['metadata']) == dataset.metadata[4]
    read = HuggingFaceExamples(rows, FARM, reliability='reliability', name='name')
    assert isinstance(read, Examples) and all(same(a, b) for a, b in zip(dataset, read, strict=True))
    bare = HuggingFaceExamples(rows, FARM, mask=None)
    assert (bare[2].labels == FARM.void).all() and bare[2].name == '2' and bare[2].reliability is None


def test_parquet_is_checked_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip('datasets', reason='the Hugging Face library is not installed')
    dataset = write(tmp_path / 'made')
    whole = export_parquet(dataset, tmp_path / 'whole', 3, progress=False)
    for place in killed_at_every_rename(lambda folder: export_parquet(dataset, folder, 3, progress=False), tmp_path, monkeypatch, shards.Workplace): assert contents(place) == contents(tmp_path / 'whole')
    flip(tmp_path / 'whole' / whole.shards[1].name, 200)
    with pytest.raises(ValueError, match='data/train-00001-of-00003.parquet is damaged'): import_parquet(tmp_path / 'whole', tmp_path / 'back', progress=False)


def test_without_hugging_faces_library_the_error_says_how_to_get_it(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    for call in (lambda: export_parquet(made, tmp_path / 'x', progress=False), lambda: import_parquet(tmp_path, tmp_path / 'x', progress=False)):
        with pytest.raises(ImportError, match=re.escape("pip install 'synseg_kit[data]'")): call()
    assert not (tmp_path / 'x').exists()


def test_rows_of_any_origin():
    rows = [{'photo': example(i).image, 'ids': encode_labels(example(i).labels, FARM)} for i in range(2)]
    assert np.array_equal(HuggingFaceExamples(rows, FARM, 'photo', 'ids')[1].labels, example(1).labels)
    with pytest.raises(ValueError, match="there is no column 'image'; the columns are photo, ids"): HuggingFaceExamples(rows, FARM)
    with pytest.raises(ValueError, match='the mask of row 0 has colours'): HuggingFaceExamples(rows, FARM, 'photo', 'photo')[0]


# ---- opening

def test_open_dataset(made, packed, tmp_path):
    assert isinstance(open_dataset(made.root), SyntheticFolder) and open_dataset(packed.folder, window=2).window == 2
    with pytest.raises(ValueError, match="holds the shards of 'train', not of 'val'"): open_dataset(packed.folder, 'val')
    with pytest.raises(FileNotFoundError, match='is not a synthetic dataset'): open_dataset(tmp_path)
    (tmp_path / 'manifest.json').write_text('{"format": 2}')
    with pytest.raises(ValueError, match='says format 2'): open_dataset(tmp_path)
    (tmp_path / 'manifest.json').write_text('{"format"')
    with pytest.raises(ValueError, match='is not JSON that can be read'): read_manifest(tmp_path)
    write_tar(tmp_path / 'shard-000000.tar', [])
