"""Upkeep: what is wrong is found and named, mended datasets are the sound ones, merging and splitting lose nothing, counts are right."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from farm import FARM, WORDS, contents, example, killed_at_every_rename, sample, write
from PIL import Image

from synseg_kit import upkeep
from synseg_kit.classes import ClassSet, voc
from synseg_kit.datasets import Example, SampleWriter, SyntheticFolder, VOCFolder, count_pixels, encode_labels, model_licence
from synseg_kit.masks import connected_components
from synseg_kit.shards import export_shards, import_shards
from synseg_kit.upkeep import KINDS, Finding, Mended, check, count_objects, find_pieces, mend, merge, seal, show_statistics, split, split_names, statistics

LISTS = 'ImageSets/Segmentation'


@pytest.fixture
def made(tmp_path):
    """A synthetic dataset of seven samples in blocks of two."""
    return write(tmp_path / 'farm').root


def found(folder, **options):
    """Kind and file of every finding."""
    return [(f.kind, f.file) for f in check(folder, progress=False, **options).findings]


# ---- check

def test_a_sound_dataset_has_no_findings(made, tmp_path):
    report = check(made, progress=False)
    assert (report.samples, report.findings, report.errors, str(report)) == (7, (), (), '7 samples, nothing is wrong')
    assert found(SyntheticFolder(made)) == []
    other = write(tmp_path / 'many', class_set=ClassSet('many', tuple(f'thing {i}' for i in range(600)), void=1000), make=lambda n, c: replace(sample(n), mask=example(n, class_set=c), image=example(n, class_set=c).image))
    assert found(other) == []


def test_an_unfinished_dataset_is_called_unfinished(tmp_path):
    with SampleWriter(tmp_path / 'x', FARM, 7, 2) as writer: writer.write(1, [sample(2), sample(3)])
    report = check(tmp_path / 'x', progress=False)
    assert [(f.kind, f.why) for f in report.findings] == [('unfinished', '3 of 4 blocks have not been made; start the same run again, it goes on')] and report.samples == 2
    assert mend(tmp_path / 'x', progress=False).left == report.findings and len(write(tmp_path / 'x')) == 7


def put(name, data): return lambda root: (root / name).write_bytes(data)


HARM = {
    'mask gone': (lambda r: (r / 'SegmentationClass/000003.png').unlink(), [('missing', 'SegmentationClass/000003.png')]),
    'image cut': (lambda r: put('JPEGImages/000002.jpg', (r / 'JPEGImages/000002.jpg').read_bytes()[:300])(r), [('broken', 'JPEGImages/000002.jpg')]),
    'image empty': (put('JPEGImages/000002.jpg', b''), [('broken', 'JPEGImages/000002.jpg')]),
    'image of another kind': (lambda r: example(2).image.save(r / 'JPEGImages/000002.jpg', 'PNG'), [('broken', 'JPEGImages/000002.jpg')]),
    'mask with one bit wrong': (lambda r: upend(r / 'SegmentationClass/000003.png'), [('broken', 'SegmentationClass/000003.png')]),
    'mask in colours': (lambda r: example(3).image.save(r / 'SegmentationClass/000003.png'), [('labels', 'SegmentationClass/000003.png')]),
    'mask of another class set': (lambda r: Image.new('L', (32, 24), 9).save(r / 'SegmentationClass/000003.png'), [('labels', 'SegmentationClass/000003.png')]),
    'mask of another size': (lambda r: encode_labels(example(3).labels[:-1], FARM).save(r / 'SegmentationClass/000003.png'), [('size', 'SegmentationClass/000003.png')]),
    'reliability in colours': (lambda r: example(3).image.save(r / 'SegmentationReliability/000003.png'), [('broken', 'SegmentationReliability/000003.png')]),
    'reliability of another size': (lambda r: Image.new('L', (31, 24), 9).save(r / 'SegmentationReliability/000003.png'), [('size', 'SegmentationReliability/000003.png')]),
    'record cut': (lambda r: put('blocks/000001.json', (r / 'blocks/000001.json').read_bytes()[:99])(r), [('record', 'blocks/000001.json')]),
    'record gone': (lambda r: (r / 'blocks/000001.json').unlink(), [('record', 'blocks/000001.json')]),
    'record of another block': (lambda r: shutil.copy(r / 'blocks/000002.json', r / 'blocks/000001.json'), [('record', 'blocks/000001.json')]),
    'metadata line cut': (lambda r: edit_line(r, 2, lambda text: text[:60]), [('metadata', 'metadata.jsonl')]),
    'metadata line lost': (lambda r: (r / 'metadata.jsonl').write_text(''.join((r / 'metadata.jsonl').read_text().splitlines(True)[1:])), [('metadata', 'metadata.jsonl')]),
    'metadata line changed': (lambda r: edit_line(r, 2, lambda text: text.replace('1002', '1003')), [('metadata', 'metadata.jsonl')]),
    'metadata gone': (lambda r: (r / 'metadata.jsonl').unlink(), [('metadata', 'metadata.jsonl')]),
    'list short': (lambda r: (r / LISTS / 'train.txt').write_text('000000\n'), [('list', f'{LISTS}/train.txt')]),
    'list gone': (lambda r: (r / LISTS / 'train.txt').unlink(), [('list', f'{LISTS}/train.txt')]),
    'card gone': (lambda r: (r / 'README.md').unlink(), [('list', 'README.md')]),
    'notes': (put('JPEGImages/Thumbs.db', b'x'), [('foreign', 'JPEGImages/Thumbs.db')]),
    'a link': (lambda r: (r / 'JPEGImages/more').symlink_to('/'), [('foreign', 'JPEGImages/more')]),
    'a sample too many': (put('JPEGImages/000009.jpg', b'x'), [('foreign', 'JPEGImages/000009.jpg')]),
}
KEPT = {
    'an image twice': (lambda r: shutil.copy(r / 'JPEGImages/000001.jpg', r / 'JPEGImages/000004.jpg'), [('duplicate', 'JPEGImages/000004.jpg')]),
    'all void': (lambda r: Image.new('L', (32, 24), 255).save(r / 'SegmentationClass/000003.png'), [('void', 'SegmentationClass/000003.png')]),
    'all background': (lambda r: Image.new('L', (32, 24), 0).save(r / 'SegmentationClass/000003.png'), [('empty', 'SegmentationClass/000003.png')]),
    'a black image': (lambda r: Image.new('RGB', (32, 24)).save(r / 'JPEGImages/000003.jpg'), [('empty', 'JPEGImages/000003.jpg')]),
}


def upend(path):
    """Flip a bit in the pixels of a PNG, which leaves them readable for a decoder that does not look at checksums."""
    data = bytearray(path.read_bytes())
    data[data.index(b'PLTE') + 8] ^= 1
    path.write_bytes(data)


def edit_line(folder, number, change):
    lines = (folder / 'metadata.jsonl').read_text().splitlines()
    lines[number] = change(lines[number])
    (folder / 'metadata.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('name', HARM)
def test_harm_is_named_and_mended(made, name):
    """Found by kind and file; after mending and, where that is needed, the same run again, the dataset is what it was; what was moved is all still there."""
    sound, (harm, expected) = contents(made), HARM[name]
    harm(made)
    harmed = contents(made)
    assert found(made) == expected
    assert all(f.error for f in check(made, progress=False).findings)
    mended = mend(made, progress=False)
    assert isinstance(mended, Mended) and mended.left == ()
    if mended.blocks: assert name not in ('record cut', 'record gone', 'record of another block'), 'a record can be written from the metadata'
    else: assert contents(made) == sound, 'nothing had to be made again'
    aside = contents(mended.aside) if mended.aside else {}
    assert all(data in (contents(made).get(file), aside.get(file)) for file, data in harmed.items()), 'nothing is deleted'
    write(made)
    assert contents(made) == sound and found(made) == []


@pytest.mark.parametrize('name', KEPT)
def test_what_came_out_poor_is_noted_and_kept(made, name):
    harm, expected = KEPT[name]
    harm(made)
    harmed = contents(made)
    report = check(made, progress=False)
    assert [(f.kind, f.file) for f in report.findings] == expected and report.errors == ()
    mended = mend(made, progress=False)
    assert str(mended) == 'there was nothing to mend' and contents(made) == harmed and not made.with_name('farm-set-aside').exists()


def test_many_things_at_once(made):
    sound = contents(made)
    for name in ('mask gone', 'record cut', 'metadata line cut', 'list short', 'notes'): HARM[name][0](made)
    assert {kind for kind, _ in found(made)} == {'record', 'metadata', 'foreign'}  # what the block holds whose record is cut, and so what the list should say, is not known
    mended = mend(made, progress=False)
    assert mended.blocks == (1,) and not (made / f'{LISTS}/train.txt').exists()
    write(made)
    assert contents(made) == sound


def test_mending_twice_uses_two_folders(made):
    for n in ('', '-2'):
        (made / 'notes.txt').write_text(n)
        assert mend(made, progress=False).aside == made.with_name(f'farm-set-aside{n}')
    assert (made.with_name('farm-set-aside') / 'notes.txt').read_text() == ''


def test_without_its_description_nothing_can_be_mended(made):
    (made / 'dataset.json').write_text('{"format": 1')
    before = contents(made)
    assert found(made) == [('settings', 'dataset.json')]
    assert 'put it back from a copy' in str(mend(made, progress=False)) and contents(made) == before


def test_filters_judge_again_from_the_damaged_block_on(tmp_path):
    root = write(tmp_path / 'x', filter=[{'filter': 'Duplicates'}]).root
    (root / 'filters').mkdir()
    for block in range(4): (root / f'filters/{block:06}.json').write_text('{}')
    assert found(root) == []
    (root / 'JPEGImages/000002.jpg').unlink()
    assert mend(root, progress=False).blocks == (1, 2, 3)
    assert [p.name for p in sorted((root / 'blocks').iterdir())] == ['000000.json'] == [p.name for p in sorted((root / 'filters').iterdir())]
    write(root, filter=[{'filter': 'Duplicates'}])
    for block in range(1, 4): (root / f'filters/{block:06}.json').write_text('{}')
    (root / 'filters/000003.json').write_text('{')
    assert found(root) == [('record', 'filters/000003.json')] and mend(root, progress=False).blocks == (3,)


def test_sizes_in_the_settings_are_compared(tmp_path):
    assert found(write(tmp_path / 'a', settings={'width': 32, 'height': 24})) == []
    wrong = write(tmp_path / 'b', 2, settings={'width': 64, 'height': 24})
    assert found(wrong) == [('size', 'JPEGImages/000000.jpg'), ('size', 'JPEGImages/000001.jpg')]


def test_masks_by_other_recipes_are_looked_at(tmp_path):
    root = write(tmp_path / 'x', make=lambda n, c: sample(n, c, others=('daam',)), settings={'also': {'daam': {}}}).root
    sound = contents(root)
    assert found(root) == []
    (root / 'SegmentationClass-daam/000001.png').unlink()
    (root / 'SegmentationClass-daam/000005.png').write_bytes(b'x')
    assert found(root) == [('missing', 'SegmentationClass-daam/000001.png'), ('broken', 'SegmentationClass-daam/000005.png')]
    assert mend(root, progress=False).blocks == (0, 2)
    write(root, make=lambda n, c: sample(n, c, others=('daam',)), settings={'also': {'daam': {}}})
    assert contents(root) == sound


def test_how_empty_is_too_empty(made):
    labels = np.zeros((24, 32), np.uint8)
    labels[0, :7] = 1  # 0.9 %
    encode_labels(labels, FARM).save(made / 'SegmentationClass/000003.png')
    assert found(made) == [] and found(made, least=.01) == [('empty', 'SegmentationClass/000003.png')]
    with pytest.raises(ValueError, match='least=2.0'): check(made, least=2.)


def test_a_sealed_dataset_tells_what_got_lost(made):
    (made / 'ImageSets/Segmentation/held.txt').write_text('000001\n')
    seal(made, progress=False)
    (made / 'ImageSets/Segmentation/held.txt').unlink()
    (made / 'SegmentationClass/000003.png').unlink()  # by the records, too, and named once
    assert found(made) == [('missing', 'ImageSets/Segmentation/held.txt'), ('missing', 'SegmentationClass/000003.png')]
    assert {f.file: f.block for f in check(made, progress=False).findings} == {'ImageSets/Segmentation/held.txt': None, 'SegmentationClass/000003.png': 1}


@pytest.mark.parametrize('name', ['../secret.txt', '/etc/hostname', 'a/../../secret.txt'])
def test_a_seal_that_names_files_elsewhere_reads_none_of_them(made, monkeypatch, name):
    seal(made, progress=False)
    (made.parent / 'secret.txt').write_text('secret')
    read, really = [], upkeep.sha256_of
    monkeypatch.setattr(upkeep, 'sha256_of', lambda path: (read.append(path), really(path))[1])
    with (made / 'SHA256SUMS').open('a') as file: file.write(f'{"0" * 64}  {name}\n')
    assert found(made) == [('broken', 'SHA256SUMS')] and all(made in path.resolve().parents for path in read)


def test_a_sealed_benchmark_tells_what_changed(tmp_path):
    root = write(tmp_path / 'farm').root
    for name in ('dataset.json', 'metadata.jsonl', 'README.md'): (root / name).unlink()
    shutil.rmtree(root / 'blocks')
    reader = VOCFolder(root, 'train', FARM)
    seal(root, progress=False)
    assert found(reader) == []
    (root / 'ImageSets/Segmentation/train.txt').write_text('000000\n')
    assert found(reader) == [('changed', 'ImageSets/Segmentation/train.txt')]


def test_lists_that_are_no_text_are_named(made):
    (made / LISTS / 'train.txt').write_bytes(b'000000\n\xff\xfe\n')
    (made / LISTS / 'held.txt').write_bytes(b'\xff\n')
    assert found(made) == [('list', f'{LISTS}/held.txt'), ('list', f'{LISTS}/train.txt')]


def test_a_sealed_dataset_tells_every_changed_bit(made):
    path = made / 'JPEGImages/000002.jpg'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    sound = contents(made)
    path.write_bytes(data)
    assert found(made) == []  # a JPEG has no checksum of its own
    path.write_bytes(sound['JPEGImages/000002.jpg'])
    assert seal(made, progress=False) == made / 'SHA256SUMS' and found(made) == []
    path.write_bytes(data)
    assert found(made) == [('changed', 'JPEGImages/000002.jpg')]
    assert mend(made, progress=False).blocks == (1,)
    write(made)
    assert found(made) == [] and {name: data for name, data in contents(made).items() if name != 'SHA256SUMS'} == sound
    (made / 'SHA256SUMS').write_text('gone\n')
    assert found(made) == [('broken', 'SHA256SUMS')]


def test_parts_are_checked_too(made):
    (made / LISTS / 'fit.txt').write_text('000001\n000009\n000001\n')
    report = check(made, progress=False)
    assert [f.why for f in report.findings] == ['names 1 samples that there are not, or that were rejected, first 000009; write it again with split', 'names 000001 twice']
    assert len(mend(made, progress=False).left) == 2  # a list that somebody chose cannot be guessed


def review(root, rejected):
    """Reject samples as a browser does: in the metadata and the records, and off the list."""
    lines = [json.loads(line) for line in (root / 'metadata.jsonl').read_text().splitlines()]
    for number in rejected: lines[number]['review'] = 'rejected'
    (root / 'metadata.jsonl').write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
    for path in (root / 'blocks').iterdir(): path.write_text(json.dumps([line for line in lines if line['block'] == int(path.stem)], indent=1) + '\n')
    (root / LISTS / 'train.txt').write_text(''.join(f'{n:06}\n' for n in range(len(lines)) if n not in rejected))
    (root / '.review.lock').write_text('')


def test_samples_that_were_rejected_by_hand(tmp_path):
    """They are no error; they are packed and unpacked, and neither merged, split nor counted."""
    dataset = write(tmp_path / 'x', make=lambda n, c: sample(n, c, others=('daam',)))
    review(dataset.root, [1, 4])
    dataset = SyntheticFolder(dataset.root)
    assert len(dataset) == 5 and found(dataset.root) == []
    (dataset.root / 'blocks/000002.json').unlink()
    assert mend(dataset.root, progress=False).rewritten == ('blocks/000002.json',) and found(dataset.root) == []
    packed = export_shards(dataset, tmp_path / 'shards', 3, progress=False)
    assert len(packed) == 5 and packed.names == dataset.names
    back = import_shards(packed.folder, tmp_path / 'back', progress=False)
    assert contents(back) == {name: data for name, data in contents(dataset.root).items() if name != '.review.lock'} and found(back) == []
    other = write(tmp_path / 'other', 3, first=10, make=lambda n, c: sample(n, c, others=('daam',)))
    assert len(merge([dataset.root, other.root], tmp_path / 'both', progress=False)) == 8
    assert statistics(dataset, progress=False).images == 5 and sum(map(len, split(dataset, {'a': .5, 'b': .5}, progress=False).values())) == 5


def test_a_part_is_packed_with_its_list_alone(made, tmp_path):
    split(SyntheticFolder(made), {'fit': .5, 'held': .5}, progress=False)
    part = SyntheticFolder(made, 'held')
    packed = export_shards(part, tmp_path / 'shards', 2, progress=False)
    back = import_shards(packed.folder, tmp_path / 'back', progress=False)
    assert packed.split == 'held' and packed.names == part.names and len(contents(back)) == 3 * len(part) + 1
    assert VOCFolder(back, 'held', FARM).names == part.names


def test_benchmarks_are_checked_by_their_reader(made):
    shutil.copy(made / 'SegmentationClass/000001.png', made / 'JPEGImages/000003.jpg')
    report = check(VOCFolder(made, 'train', FARM), progress=False)
    assert [(f.kind, f.file) for f in report.findings] == [('broken', 'JPEGImages/000003.jpg')] and report.samples == 7
    assert {f.kind for f in check(VOCFolder(made, 'train', ClassSet('one', ('cow',))), progress=False).findings} == {'broken', 'labels'}


def test_shards_are_checked_and_made_again(made, tmp_path):
    packed = export_shards(SyntheticFolder(made), tmp_path / 'shards', 3, progress=False)
    sound = contents(packed.folder)
    assert found(packed.folder) == []
    upend_tar(packed.folder / 'shard-000001.tar'), (packed.folder / 'shard-000002.tar').unlink(), (packed.folder / 'x').write_text('x')
    assert found(packed.folder) == [('missing', 'shard-000002.tar'), ('broken', 'shard-000001.tar'), ('foreign', 'x')]
    assert mend(packed.folder, progress=False).moved == ['shard-000001.tar', 'x']
    export_shards(SyntheticFolder(made), packed.folder, 3, progress=False)
    assert contents(packed.folder) == sound
    (packed.folder / 'manifest.json').write_text('{}')
    assert found(packed.folder) == [('settings', 'manifest.json')] and mend(packed.folder, progress=False).left


def test_what_was_broken_when_it_was_packed_is_found_in_the_shard(made, tmp_path):
    Image.new('L', (32, 24), 9).save(made / 'SegmentationClass/000004.png')
    packed = export_shards(SyntheticFolder(made), tmp_path / 'shards', 3, progress=False)
    report = check(packed.folder, progress=False)
    assert [(f.kind, f.file) for f in report.findings] == [('broken', 'shard-000001.tar')] and '000004.seg.png: unknown id 9' in report.findings[0].why


def upend_tar(path):
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def test_only_datasets_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match='neither a synthetic dataset'): check(tmp_path)
    with pytest.raises(ValueError, match="unknown kind of finding 'odd'"): Finding('odd', 'x', 'y')
    assert len(KINDS) == len({meaning for meaning, _ in KINDS.values()})


def test_tables_are_short(made):
    for n in range(30): (made / f'{n}.txt').write_text('x')
    report = check(made, progress=False)
    assert len(report.rows()) == 22 and report.rows()[-1] == ('...', '10 more', '') and '| foreign | 0.txt |' in report._repr_markdown_()


# ---- merge

@pytest.fixture
def pair(tmp_path):
    """Two datasets that have two samples in common."""
    return write(tmp_path / 'a', 5), write(tmp_path / 'b', 4, 3, first=3)


def test_merging_keeps_every_sample_once(pair, tmp_path):
    a, b = pair
    both = merge([a.root, b.root], tmp_path / 'both', block_size=3, progress=False)
    assert len(both) == 7 and both.about['equal'] == 2 and found(both) == []
    for number, read in enumerate(both):
        assert np.array_equal(read.labels, example(number).labels)
        assert (both.root / f'JPEGImages/{number:06}.jpg').read_bytes() == ((a if number < 5 else b).images[number if number < 5 else number - 3]).read_bytes()
    assert [line['seed'] for line in both.metadata] == [1000 + n for n in range(7)] and [line['block'] for line in both.metadata] == [0, 0, 0, 1, 1, 1, 2]
    assert both.metadata[5]['origin'] == {'part': 1, 'name': '000002', 'block': 0} and [p['name'] for p in both.about['merged']] == ['a', 'b']
    assert contents(merge([a.root, b.root], tmp_path / 'again', block_size=3, progress=False).root) == contents(both.root)


def test_provenance_survives_a_second_merge(pair, tmp_path):
    a, b = pair
    c = write(tmp_path / 'c', 2, first=20, model={'name': 'org/flux.1-dev'})
    both = merge([a.root, b.root], tmp_path / 'both', progress=False)
    all_ = merge([c.root, both.root], tmp_path / 'all', progress=False)
    assert [p['name'] for p in all_.about['merged']] == ['c', 'a', 'b'] and len(all_) == 9
    assert all_.metadata[8]['origin'] == {'part': 2, 'name': '000003', 'block': 1} and all_.metadata[0]['origin']['part'] == 0
    assert 'FLUX.1 [dev] Non-Commercial License' in (all_.root / 'README.md').read_text() and 'merged from 3 datasets' in (all_.root / 'README.md').read_text()


def test_links_share_files(pair, tmp_path):
    both = merge([d.root for d in pair], tmp_path / 'both', link=True, progress=False)
    assert both.images[0].stat().st_ino == pair[0].images[0].stat().st_ino
    assert contents(both.root) == contents(merge([d.root for d in pair], tmp_path / 'copied', progress=False).root)
    assert (tmp_path / 'copied/JPEGImages/000000.jpg').stat().st_ino != pair[0].images[0].stat().st_ino


def test_a_merge_that_was_killed_goes_on(pair, tmp_path, monkeypatch):
    start = lambda folder: merge([d.root for d in pair], folder, block_size=4, progress=False)
    whole = contents(start(tmp_path / 'whole').root)
    places = killed_at_every_rename(start, tmp_path, monkeypatch, SampleWriter)
    assert len(places) > 20 and all(contents(place) == whole for place in places)


def test_masks_that_all_have_are_merged(tmp_path):
    a = write(tmp_path / 'a', 2, make=lambda n, c: sample(n, c, others=('daam', 'otsu')))
    b = write(tmp_path / 'b', 2, first=5, make=lambda n, c: sample(n, c, others=('daam',)))
    both = merge([a.root, b.root], tmp_path / 'both', progress=False)
    assert both.about['recipes'] == ['daam'] and len([*both.root.glob('SegmentationClass-daam/*')]) == 4 and not (both.root / 'SegmentationClass-otsu').exists() and found(both) == []


def test_merging_refuses(pair, tmp_path):
    other = write(tmp_path / 'other', class_set=replace(FARM, names=('cow', 'goat', 'barn')))
    with pytest.raises(ValueError, match='names.2 is "sheep" there, "goat" here; datasets can be merged when their ids mean the same'): merge([pair[0].root, other.root], tmp_path / 'x')
    with pytest.raises(ValueError, match='at least two datasets'): merge([pair[0].root], tmp_path / 'x')
    with pytest.raises(FileNotFoundError, match='is not a synthetic dataset'): merge([pair[0].root, tmp_path], tmp_path / 'x')
    with pytest.raises(FileExistsError, match='holds another dataset'): merge([pair[0].root, pair[1].root], pair[0].root, progress=False)
    assert not (tmp_path / 'x').exists()


def test_colours_of_a_class_set_are_no_obstacle(pair, tmp_path):
    other = write(tmp_path / 'c', 2, first=30, class_set=replace(FARM, name='ranch', synonyms={'cow': ('cattle',)}))
    assert merge([pair[0].root, other.root], tmp_path / 'both', progress=False).class_set == FARM


# ---- split

def test_a_split_takes_its_share_of_every_class(tmp_path):
    dataset = write(tmp_path / 'x', 60, 20)
    parts = split(dataset, {'fit': .75, 'held': .25}, progress=False)
    assert sorted(parts['fit'] + parts['held']) == [*dataset.names] and {part: len(names) for part, names in parts.items()} == {'fit': 45, 'held': 15}
    for part, names in parts.items():
        each = [sum(int(name) % 3 + 1 == c for name in names) for c in WORDS]
        assert each == [len(names) // 3] * 3
        assert (dataset.root / LISTS / f'{part}.txt').read_text().split() == names == sorted(names)
        assert SyntheticFolder(dataset.root, part).names == tuple(names) and [line['seed'] - 1000 for line in SyntheticFolder(dataset.root, part).metadata] == [int(n) for n in names]
    assert SyntheticFolder(dataset.root).names == dataset.names and found(dataset) == []


def test_a_split_depends_on_names_and_seed_alone():
    names = [f'{n:06}' for n in range(500)]
    strata = [int(n) % 7 for n in names]
    whole = split_names(names, strata, {'a': .6, 'b': .3, 'c': .1}, 3)
    shuffled = np.random.default_rng(0).permutation(500)
    again = split_names([names[i] for i in shuffled], [strata[i] for i in shuffled], {'a': .6, 'b': .3, 'c': .1}, 3)
    assert {part: sorted(found) for part, found in again.items()} == whole
    assert split_names(names, strata, {'a': .6, 'b': .3, 'c': .1}, 4) != whole
    for c in range(7):
        members = [n for n in names if int(n) % 7 == c]
        for part, share in (('a', .6), ('b', .3), ('c', .1)): assert abs(sum(n in {*members} for n in whole[part]) - share * len(members)) < 1


def test_golden_split():
    """Another machine, another year: the same split."""
    assert split_names([f'{n:06}' for n in range(12)], [0] * 12, {'fit': .75, 'held': .25})['held'] == ['000001', '000002', '000004']


def test_classes_with_one_sample_are_spread():
    names = [f'{n:06}' for n in range(400)]
    parts = split_names(names, names, {'fit': .8, 'held': .2})
    assert 60 <= len(parts['held']) <= 100  # binomial: 80, standard deviation 8


def test_benchmarks_are_split_by_what_masks_show(tmp_path):
    dataset = write(tmp_path / 'x', 12)
    parts = split(VOCFolder(dataset.root, 'train', FARM), {'fit': .5, 'val': .5}, progress=False)
    assert sorted(parts['fit'] + parts['val']) == [*dataset.names]


def test_splitting_refuses(made):
    dataset = SyntheticFolder(made)
    for shares, says in (({'train': .5, 'val': .5}, "'train' is the list of all samples"), ({'a': .5, 'b': .6}, 'together 1'), ({'a': 1.}, 'two or more'), ({'a': 1., 'b': 0}, 'above 0'),
                         ({'../a': .5, 'b': .5}, "'../a' cannot be the name of a list"), ({'a': .999, 'b': .001}, "part 'b' would have none of the 7")):
        with pytest.raises(ValueError, match=says): split(dataset, shares, progress=False)
    assert [p.name for p in (made / LISTS).iterdir()] == ['train.txt']
    split(dataset, {'a': .5, 'b': .5}, progress=False), split(dataset, {'a': .5, 'b': .5}, progress=False)
    with pytest.raises(FileExistsError, match='is there with another split'): split(dataset, {'a': .5, 'b': .5}, seed=1, progress=False)


# ---- statistics

def test_counts_are_right(made):
    counted, dataset = statistics(SyntheticFolder(made), progress=False), SyntheticFolder(made)
    labels, trust = np.stack([e.labels for e in dataset]), np.stack([e.reliability for e in dataset])
    assert counted.images == 7 and counted.sizes == {(32, 24): 7} and counted.void == (labels == 255).sum()
    assert counted.pixels.tolist() == count_pixels(dataset, FARM, progress=False).tolist() == [(labels == c).sum() for c in range(4)]
    assert counted.shown.tolist() == [(labels == c).any((1, 2)).sum() for c in range(4)]
    assert np.allclose(counted.reliability, [trust[labels == c].mean() for c in range(4)])
    assert counted.asked.tolist() == [0, 3, 2, 2] and counted.answered.tolist() == [0, *(sum((labels[n] == c).any() for n in range(7) if n % 3 + 1 == c) for c in (1, 2, 3))]
    pieces = np.array([[flooded(e.labels, c) for c in range(4)] for e in dataset])
    assert counted.objects.tolist() == pieces.sum(0).tolist() and counted.per_image == {k: int((pieces[:, 1:].sum(1) == k).sum()) for k in np.unique(pieces[:, 1:].sum(1))}


def flooded(labels, c):
    """Count the connected pieces of a class, pixel by pixel."""
    left, pieces = {*zip(*np.nonzero(labels == c))}, 0
    while left:
        waiting, pieces = [left.pop()], pieces + 1
        while waiting:
            y, x = waiting.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            waiting += near
    return pieces


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (17, 23), (32, 32)])
@pytest.mark.parametrize('kinds', [1, 2, 3])
def test_pieces_are_those_of_the_slow_way(shape, kinds):
    for seed in range(6):
        labels = np.random.default_rng((seed, kinds, *shape)).integers(kinds, size=shape).astype(np.uint8)
        roots, areas = np.unique(connected_components(torch.from_numpy(labels.astype(np.int64))[None])[0].numpy(), return_counts=True)
        ids, found = find_pieces(labels)
        assert sorted(zip(ids.tolist(), found.tolist())) == sorted(zip(labels.ravel()[roots].tolist(), areas.tolist()))


def test_a_spiral_is_one_piece():
    """What takes many rounds: every turn is joined at its other end."""
    labels, (y, x), (dy, dx) = np.zeros((31, 31), np.uint8), (0, 0), (0, 1)
    free = lambda y, x: 0 <= y < 31 and 0 <= x < 31 and not labels[y, x]
    while True:
        labels[y, x] = 1
        if not (free(y + dy, x + dx) and (not (0 <= y + 2 * dy < 31 and 0 <= x + 2 * dx < 31) or free(y + 2 * dy, x + 2 * dx))):
            dy, dx = dx, -dy
            if not (free(y + dy, x + dx) and free(y + 2 * dy, x + 2 * dx)): break
        y, x = y + dy, x + dx
    ids, areas = find_pieces(labels)
    assert sorted(ids.tolist()) == [0, 1] and areas[ids == 1].sum() == labels.sum() > 400


def test_specks_are_no_things():
    labels = np.zeros((20, 50), np.uint8)
    labels[3, 3], labels[10:12, 10:12], labels[19, 40:] = 1, 2, 255
    assert count_objects(labels, FARM).tolist() == [1, 1, 1, 0] and count_objects(labels, FARM, .003).tolist() == [1, 0, 1, 0] and count_objects(labels, FARM, .5).tolist() == [1, 0, 0, 0]


def test_lists_of_examples_have_statistics_too():
    class Plain(list): class_set = FARM

    counted = statistics(Plain([Example(example().image, np.full((24, 32), 2, np.uint8))]), progress=False)
    assert counted.asked is None and counted.reliability[2] == 1 and np.isnan(counted.reliability[1]) and counted.rows()[2] == ('cow', '0', '0.00%', '0', '', '')
    assert counted.to_dict()['classes']['cow'] == {'images': 0, 'pixels': 0, 'objects': 0, 'reliability': None} and json.dumps(counted.to_dict())
    with pytest.raises(ValueError, match='is empty'): statistics(Plain(), progress=False)


def test_shards_have_the_statistics_of_their_folder(made, tmp_path):
    packed = export_shards(SyntheticFolder(made), tmp_path / 'x', 3, progress=False)
    assert statistics(packed, progress=False).rows() == statistics(SyntheticFolder(made), progress=False).rows()


def test_a_picture_has_a_bar_for_each_class(made):
    counted = statistics(SyntheticFolder(made), progress=False)
    panels = show_statistics(counted).axes
    assert len(panels) == 4 and [bar.get_width() for bar in panels[0].patches] == counted.shown[1:].tolist() and [t.get_text() for t in panels[0].get_yticklabels()] == ['cow', 'sheep', 'barn']
    assert len(show_statistics(counted, most=2).axes[0].patches) == 2
    many = upkeep.Statistics(voc(), 1, *[np.ones(21, np.int64)] * 1, 0, np.arange(21), np.ones(21, np.int64), {0: 1}, np.ones(21), {(8, 8): 1})
    assert len(show_statistics(many).axes[0].patches) == 20


# ---- the card

@pytest.mark.parametrize('name, licence', [
    ('CompVis/stable-diffusion-v1-4', 'CreativeML Open RAIL-M'), ('stable-diffusion-v1-5/stable-diffusion-v1-5', 'CreativeML Open RAIL-M'), ('stabilityai/stable-diffusion-2-1-base', 'CreativeML Open RAIL++-M'),
    ('stabilityai/stable-diffusion-xl-base-1.0', 'CreativeML Open RAIL++-M'), ('stabilityai/stable-diffusion-3-medium-diffusers', 'Stability AI Community License'),
    ('stabilityai/stable-diffusion-3.5-large', 'Stability AI Community License'), ('black-forest-labs/FLUX.1-schnell', 'Apache License 2.0'), ('black-forest-labs/FLUX.1-dev', 'FLUX.1 [dev] Non-Commercial License'),
    ('toy-sd', 'Apache License 2.0'), ('me/my-stable-diffusion-v1-5-tuned', 'unknown to synseg_kit'), ('FLUX.1-dev-tuned', 'unknown to synseg_kit')])
def test_licences_go_by_the_name(name, licence): assert model_licence(name)[0] == licence


def test_the_card_tells_how_a_dataset_was_made(tmp_path):
    about = dict(model={'name': 'org/thing', 'pipeline': 'SomePipeline', 'fingerprint': 'f' * 32, 'dtype': 'float32', 'device': 'cpu'}, settings={'recipe': 'synseg', 'steps': 7, 'seed': 3},
                 filter=[{'filter': 'AreaLimits'}], versions={'torch': '9.9'})
    text = (write(tmp_path / 'x', **about).root / 'README.md').read_text()
    for said in ('`org/thing` (SomePipeline, float32, ffffffffffff)', 'recipe synseg, steps 7, seed 3', 'filters: AreaLimits', 'torch 9.9', 'unknown to synseg_kit', 'Look it up'): assert said in text
    assert 'does not say which model' in (write(tmp_path / 'y').root / 'README.md').read_text()
