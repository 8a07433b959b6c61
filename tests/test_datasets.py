"""Datasets: files that other readers read, errors that name their file, blocks that are whole or absent, draws that depend on their number alone."""
import json
import os
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCSegmentation

from synseg_kit import datasets
from synseg_kit.classes import CITYSCAPES_LABEL_IDS, ClassSet, coco, imagenet_s, voc
from synseg_kit.datasets import (NO_AUGMENTATION, Augmentation, CityscapesFolder, Draws, Example, Examples, ImageNetSFolder, Sample, SampleWriter, SyntheticFolder,
                                 VOCFolder, augment, batches, build_transform, coco_pieces, count_pixels, decode_labels, encode_labels, run_lengths, sample_name,
                                 write_coco, write_sample)
from synseg_kit.files import differences
from synseg_kit.prompts import Mention, Prompt

FARM = ClassSet('farm', ('cow', 'sheep', 'barn'))
MANY = ClassSet('many', tuple(f'thing {i}' for i in range(600)), void=1000)


def example(seed=0, size=(24, 32), class_set=FARM):
    "An image whose colours are those of its labels, so that both can be compared after any move."
    draw = np.random.default_rng(seed)
    labels = np.kron(draw.integers(class_set.num_classes, size=(size[0] // 8, size[1] // 8)), np.ones((8, 8))).astype(class_set.dtype)
    labels[:2, :2] = class_set.void
    reliability = np.where(labels == class_set.void, 0, (labels % 5 + 1) / 5).astype(np.float32)
    return Example(Image.fromarray(class_set.palette[labels]), labels, reliability, f'example {seed}')


def sample(number, class_set=FARM, size=(24, 32)):
    made = example(number, size, class_set)
    return Sample(made.image, made, Prompt('a cow on grass', (Mention(1, 2, 5),)), seed=1000 + number, source='painter')


def write(folder, count=5, block_size=2, class_set=FARM, make=sample, **about):
    "A dataset, finished; blocks that are there stay."
    with SampleWriter(folder, class_set, count, block_size, about) as writer:
        for block in writer.missing: writer.write(block, [make(n, class_set) for n in writer.numbers(block)])
        return writer.finish()


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# ---- label files

@pytest.mark.parametrize('classes', [1, 3, 254, 255, 600, 919])
def test_labels_survive_their_file(classes, tmp_path):
    class_set = ClassSet('some', tuple(f'thing {i}' for i in range(classes)), void=255 if classes < 255 else 1000)
    labels = np.append(np.arange(class_set.num_classes), class_set.void).astype(class_set.dtype)[None].repeat(3, 0)
    encode_labels(labels, class_set).save(tmp_path / 'mask.png')
    again = decode_labels(Image.open(tmp_path / 'mask.png'), class_set)
    assert again.dtype == class_set.dtype and np.array_equal(again, labels)


def test_255_ids_fit_a_palette_and_256_do_not():
    small, large = (ClassSet('some', tuple(f'thing {i}' for i in range(n)), void=1000) for n in (254, 255))
    assert encode_labels(np.zeros((1, 1), np.uint16), small).mode == 'P'
    assert encode_labels(np.zeros((1, 1), np.uint16), large).mode == 'RGB'


def test_palette_is_vocs_own():
    picture = encode_labels(np.uint8([[0, 1, 15, 255]]), voc())
    assert np.array(picture.convert('RGB')).tolist() == [[[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]]
    assert np.array(picture).tolist() == [[0, 1, 15, 255]]


def test_rgb_encoding_has_no_room_for_more_than_1000_ids():
    with pytest.raises(ValueError, match='1000 marks void'): encode_labels(np.zeros((1, 1), np.uint16), ClassSet('huge', tuple(f'thing {i}' for i in range(1000)), void=2000))


# ---- VOC

@pytest.fixture
def voc_root(tmp_path):
    "Three images of different shapes under VOCdevkit/VOC2012, with a plain and an augmented split."
    root = tmp_path / 'VOCdevkit/VOC2012'
    for inner in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'): (root / inner).mkdir(parents=True)
    for i, size in enumerate(((24, 32), (40, 16), (8, 8))):
        made = example(i, size)
        made.image.save(root / f'JPEGImages/2007_{i:06}.jpg')
        for folder in ('SegmentationClass', 'SegmentationClassAug'): encode_labels(made.labels, FARM).save(root / folder / f'2007_{i:06}.png')
    Image.fromarray(np.full((8, 8), 3, np.uint8)).save(root / 'SegmentationClassAug/2007_000002.png')  # mode L, as SBD masks are
    (root / 'ImageSets/Segmentation/val.txt').write_text('2007_000001\n2007_000000\n\n')
    return root


@pytest.mark.parametrize('above', ['', '..', '../..'])
def test_voc_is_found_from_above(voc_root, above):
    folder = VOCFolder(voc_root / above, 'val', FARM)
    assert folder.names == ('2007_000001', '2007_000000') and len(folder) == 2
    assert folder[0].image.size == (16, 40) and np.array_equal(folder[0].labels, example(1, (40, 16)).labels)  # its own size
    assert folder[-1].name == '2007_000000' and [e.name for e in folder] == list(folder.names)
    assert folder[0].reliability is None and isinstance(folder, Examples)


@pytest.mark.parametrize('name', ['trainaug', 'train_aug', 'aug'])
@pytest.mark.parametrize('asked', ['trainaug', 'train_aug', 'aug'])
@pytest.mark.parametrize('line', ['2007_{:06}', '/JPEGImages/2007_{:06}.jpg /SegmentationClassAug/2007_{:06}.png'])
def test_augmented_split_by_any_name(voc_root, name, asked, line):
    (voc_root / 'ImageSets/Segmentation/val.txt').write_text('2007_000001\n')
    (voc_root / f'ImageSets/Segmentation/{name}.txt').write_text(''.join(line.format(i, i) + '\n' for i in (0, 2)))
    folder = VOCFolder(voc_root, asked, FARM)
    assert folder.names == ('2007_000000', '2007_000002') and (folder[1].labels == 3).all()


def test_other_masks_may_be_named(voc_root): assert VOCFolder(voc_root, 'val', FARM, masks='SegmentationClassAug').masks[0].parent.name == 'SegmentationClassAug'


def test_training_names_that_are_scored_too_are_refused(voc_root):
    """The masks of SBD cover VOC's val; the list of 10,582 leaves it out, a list made from the folder does not."""
    (voc_root / 'ImageSets/Segmentation/trainaug.txt').write_text('2007_000002\n2007_000000\n')
    with pytest.raises(ValueError, match="1 names of 'aug' are in val too, first 2007_000000"): VOCFolder(voc_root, 'aug', FARM)  # whatever name the list has
    (voc_root / 'ImageSets/Segmentation/val.txt').unlink()
    assert len(VOCFolder(voc_root, 'trainaug', FARM)) == 2


def test_a_part_of_a_benchmark_is_called_a_part(voc_root):
    classes = replace(FARM, name='voc')
    assert repr(VOCFolder(voc_root, 'val', classes)) == "VOCFolder(2 examples of the 1,449 that the benchmark has, 4 ids of 'voc')"
    assert repr(VOCFolder(voc_root, 'val', FARM)) == "VOCFolder(2 examples, 4 ids of 'farm')"
    assert datasets.OFFICIAL_COUNTS['voc']['aug'] == 10_582


def test_the_test_split_has_no_masks(voc_root):
    (voc_root / 'ImageSets/Segmentation/val.txt').rename(voc_root / 'ImageSets/Segmentation/test.txt')
    shutil.rmtree(voc_root / 'SegmentationClass')
    folder = VOCFolder(voc_root, 'test', FARM)
    assert folder[0].labels.shape == (40, 16) and (folder[0].labels == 255).all() and folder[0].image.size == (16, 40)


@pytest.mark.parametrize('harm, error, says', [
    (lambda r: (r / 'SegmentationClass/2007_000001.png').unlink(), FileNotFoundError, r'1 of 2 mask files are missing, first .*SegmentationClass/2007_000001.png'),
    (lambda r: (r / 'JPEGImages/2007_000001.jpg').unlink(), FileNotFoundError, '1 of 2 image files are missing'),
    (lambda r: (r / 'ImageSets/Segmentation/val.txt').write_text('\n'), ValueError, 'val.txt is empty'),
    (lambda r: (r / 'ImageSets/Segmentation/val.txt').rename(r / 'ImageSets/Segmentation/train.txt'), FileNotFoundError, r"has no split 'val'.* there is train"),
    (lambda r: (r / 'ImageSets').rename(r / 'Sets'), FileNotFoundError, 'is not a VOC dataset'),
    (lambda r: (r / 'JPEGImages').rename(r / 'images'), FileNotFoundError, r"lacks JPEGImages \(the photographs, in VOC's own download\); its folders are ImageSets, SegmentationClass, SegmentationClassAug, images"),
    (lambda r: shutil.rmtree(r / 'SegmentationClass'), FileNotFoundError, r'lacks SegmentationClass \(palette PNG'),
    (lambda r: (r / 'SegmentationClass/2007_000001.png').write_text('<html>'), ValueError, '2007_000001.png is not an image that can be read'),
    (lambda r: (r / 'SegmentationClass/2007_000001.png').write_bytes((r / 'SegmentationClass/2007_000000.png').read_bytes()[:60]), ValueError, '2007_000001.png is not an image'),
    (lambda r: (r / 'JPEGImages/2007_000001.jpg').write_bytes((r / 'JPEGImages/2007_000001.jpg').read_bytes()[:300]), ValueError, '2007_000001.jpg is not an image'),
    (lambda r: (r / 'JPEGImages/2007_000001.jpg').write_bytes(b''), ValueError, '2007_000001.jpg is not an image'),
    (lambda r: example(1, (40, 16)).image.save(r / 'SegmentationClass/2007_000001.png'), ValueError, r'2007_000001.png has colours \(mode RGB\), not class ids'),
    (lambda r: Image.new('L', (16, 40), 9).save(r / 'SegmentationClass/2007_000001.png'), ValueError, "2007_000001.png: unknown id 9; class set 'farm' has 0 to 3 and void 255"),
    (lambda r: Image.new('L', (16, 39)).save(r / 'SegmentationClass/2007_000001.png'), ValueError, '2007_000001: the mask is 16 x 39 pixels, its image 16 x 40'),
])
def test_voc_refuses(voc_root, harm, error, says):
    harm(voc_root)
    with pytest.raises(error, match=says): VOCFolder(voc_root, 'val', FARM)[0]


@pytest.mark.parametrize('harm', [lambda r: None, lambda r: ((r / 'ImageSets/Segmentation/aug.txt').write_text('2007_000002\n'), shutil.rmtree(r / 'SegmentationClassAug'))])
def test_what_is_missing_of_the_augmented_set_is_said(voc_root, harm):
    harm(voc_root)
    with pytest.raises(FileNotFoundError, match=r"(list of 10,582 names|SegmentationClassAug \(The list).* not in VOC's own download: they come with the masks of Hariharan"): VOCFolder(voc_root, 'trainaug', FARM)


# ---- ImageNet-S and Cityscapes

@pytest.fixture
def imagenet_root(tmp_path):
    tmp_path = tmp_path / 'imagenet-s'
    for wnid in ('n01443537', 'n02012849'):
        for inner in ('validation', 'validation-segmentation'): (tmp_path / inner / wnid).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (5, 3)).save(tmp_path / f'validation/{wnid}/val_{i}.JPEG')
            ids = np.array([[0, 1, 2, 1000, 0]] * 3)
            Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], 2).astype(np.uint8)).save(tmp_path / f'validation-segmentation/{wnid}/val_{i}.png')
    return tmp_path


def test_imagenet_s(imagenet_root):
    folder = ImageNetSFolder(imagenet_root, 'validation', imagenet_s(imagenet_root / 'validation'))
    assert folder.names == tuple(f'{w}/val_{i}' for w in ('n01443537', 'n02012849') for i in range(2))
    assert folder[3].labels.tolist() == [[0, 1, 2, 255, 0]] * 3 and folder[3].labels.dtype == np.uint8
    assert ImageNetSFolder(imagenet_root, 'validation', MANY)[0].labels.tolist() == [[0, 1, 2, 1000, 0]] * 3


@pytest.mark.parametrize('harm, says', [
    (lambda r: (r / 'validation/n02012849/val_1.JPEG').unlink(), '1 of 4 image files are missing'),
    (lambda r: (r / 'validation-segmentation/n02012849/val_1.png').unlink(), r'1 images of .* have no mask in validation-segmentation, first n02012849/val_1;'),
    (lambda r: Image.new('L', (5, 3)).save(r / 'validation-segmentation/n01443537/val_0.png'), 'has mode L; needed is an RGB PNG'),
    (lambda r: Image.new('RGB', (5, 3), (1, 0, 9)).save(r / 'validation-segmentation/n01443537/val_0.png'), 'has blue in it'),
    (lambda r: Image.new('RGB', (5, 3), (9, 0, 0)).save(r / 'validation-segmentation/n01443537/val_0.png'), r'val_0.png: unknown id 9'),
    (lambda r: shutil.rmtree(r / 'validation'), r"lacks validation \(the images, which ImageNet-S's scripts copy from your ImageNet\); its folders are validation-segmentation"),
    (lambda r: shutil.rmtree(r / 'validation-segmentation'), "lacks validation-segmentation .*ImageNet-S's own download"),
    (lambda r: (shutil.rmtree(r / 'validation-segmentation'), (r / 'validation-segmentation').mkdir()), "has nothing in split 'validation'"),
    (lambda r: [(r / f'{folder}/n02012849').rename(r / f'{folder}/n03126707') for folder in ('validation', 'validation-segmentation')],
     "has 1 classes that 'imagenet-s-2' lacks, such as n03126707; make the class set from the list of this dataset"),
])
def test_imagenet_s_refuses(imagenet_root, harm, says):
    classes = imagenet_s(imagenet_root / 'validation')
    harm(imagenet_root)
    with pytest.raises((ValueError, FileNotFoundError), match=says): ImageNetSFolder(imagenet_root, 'validation', classes)[0]


def test_imagenet_s_has_no_masks_for_test(imagenet_root):
    classes = imagenet_s(imagenet_root)
    with pytest.raises(FileNotFoundError, match='lacks test'): ImageNetSFolder(imagenet_root, 'test', classes)
    with pytest.raises(FileNotFoundError, match='"validation" and "train-semi" have some'): ImageNetSFolder(imagenet_root, 'train', classes)
    (imagenet_root / 'validation').rename(imagenet_root / 'test')
    folder = ImageNetSFolder(imagenet_root, 'test', classes)
    assert len(folder) == 4 and (folder[0].labels == 255).all()


@pytest.mark.parametrize('count', [50, 300, 919])
def test_imagenet_s_is_found_from_above(tmp_path, count):
    """The official tree has a folder for each number of classes."""
    wnids = [f'n{i:08}' for i in range(count)]
    for other in (50, 300, 919):
        for inner in ('validation', 'validation-segmentation'): (tmp_path / f'ImageNetS{other}' / inner / wnids[-1]).mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(tmp_path / f'ImageNetS{count}/validation/{wnids[-1]}/ILSVRC2012_val_00000001.JPEG')
    ids = np.full((4, 4), count)
    Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], 2).astype(np.uint8)).save(tmp_path / f'ImageNetS{count}/validation-segmentation/{wnids[-1]}/ILSVRC2012_val_00000001.png')
    (tmp_path / 'list.txt').write_text('\n'.join(wnids))
    folder = ImageNetSFolder(tmp_path, 'validation', ClassSet.imagenet_s(tmp_path / 'list.txt'))
    assert folder.root.name == f'ImageNetS{count}' and (folder[0].labels == count).all() and 'examples of the ' in repr(folder)


@pytest.fixture
def cityscapes_root(tmp_path):
    tmp_path = tmp_path / 'cityscapes'
    for inner in ('leftImg8bit/val/ulm', 'gtFine/val/ulm', 'leftImg8bit/val/bonn', 'gtFine/val/bonn'): (tmp_path / inner).mkdir(parents=True)
    for city in ('ulm', 'bonn'):
        Image.new('RGB', (34, 2)).save(tmp_path / f'leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png')
        Image.fromarray(np.arange(34, dtype=np.uint8)[None].repeat(2, 0)).save(tmp_path / f'gtFine/val/{city}/{city}_000000_000019_gtFine_labelIds.png')
    return tmp_path


def test_cityscapes(cityscapes_root):
    folder = CityscapesFolder(cityscapes_root)
    assert folder.names == ('bonn/bonn_000000_000019', 'ulm/ulm_000000_000019')
    labels = folder[1].labels[0]
    assert [i for i in labels if i != 255] == list(range(19)) and labels[7] == 0 and labels[33] == 18 and labels[26] == 13


def test_cityscapes_with_a_table_of_ones_own(cityscapes_root):
    labels = CityscapesFolder(cityscapes_root, 'val', ClassSet('two', ('road', 'car'), background=None), {7: 0, 26: 1})[0].labels[0]
    assert (labels[7], labels[26], (labels == 255).sum()) == (0, 1, 32)


def test_cityscapes_refuses(cityscapes_root):
    mask = cityscapes_root / 'gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png'
    Image.new('L', (34, 2), 77).save(mask)
    with pytest.raises(ValueError, match='labelIds.png: 77 is not one of the label ids'): CityscapesFolder(cityscapes_root)[1]
    mask.unlink()
    with pytest.raises(FileNotFoundError, match='1 of 2 mask files'): CityscapesFolder(cityscapes_root)
    with pytest.raises(FileNotFoundError, match=r'lacks leftImg8bit/train \(the photographs, leftImg8bit_trainvaltest.zip\) and gtFine/train .*; its folders are gtFine, leftImg8bit'): CityscapesFolder(cityscapes_root, 'train')
    with pytest.raises(FileNotFoundError, match='lacks leftImg8bit/val .*; it has no folders'): CityscapesFolder(cityscapes_root / 'nowhere')


def test_cityscapes_needs_both_archives(cityscapes_root):
    photograph = cityscapes_root / 'leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png'
    photograph.rename(photograph.with_name('ulm_000000_000020_leftImg8bit.png'))
    with pytest.raises(FileNotFoundError, match='1 of 2 mask files are missing, first .*ulm_000000_000020_gtFine_labelIds.png'): CityscapesFolder(cityscapes_root)
    photograph.with_name('ulm_000000_000020_leftImg8bit.png').unlink()
    with pytest.raises(FileNotFoundError, match='1 label files of gtFine/val have no photograph in leftImg8bit/val, first ulm/ulm_000000_000019'): CityscapesFolder(cityscapes_root)
    shutil.rmtree(cityscapes_root / 'gtFine')
    with pytest.raises(FileNotFoundError, match=r'lacks gtFine/val \(the labels, gtFine_trainvaltest.zip\); its folders are leftImg8bit$'): CityscapesFolder(cityscapes_root)
    (cityscapes_root / 'leftImg8bit/val').rename(cityscapes_root / 'leftImg8bit/test')
    assert (CityscapesFolder(cityscapes_root, 'test')[0].labels == 255).all()


def test_cityscapes_refuses_a_table_for_other_classes(cityscapes_root):
    with pytest.raises(ValueError, match="labelIds.png: unknown id 2, 3"): CityscapesFolder(cityscapes_root, 'val', ClassSet('two', ('road', 'car'), background=None))[0]


# ---- predictions and exports

def test_predictions_lie_where_the_benchmarks_look(tmp_path, voc_root, imagenet_root, cityscapes_root):
    """The truth, predicted, gives back the files of the truth; whatever is left void is refused or unlabelled."""
    for folder, where in ((VOCFolder(voc_root, 'val', FARM), 'results/VOC2012/Segmentation/comp6_val_cls/2007_000001.png'),
                          (ImageNetSFolder(imagenet_root, 'validation', imagenet_s(imagenet_root)), 'n01443537/val_0.png'),
                          (CityscapesFolder(cityscapes_root), 'bonn_000000_000019_pred_labelIds.png')):
        labels = folder[0].labels
        if not folder.void_may_be_predicted:
            with pytest.raises(ValueError, match=f'{folder.names[0]}: {(labels == 255).sum()} pixels of the prediction are void'): folder.write_prediction(tmp_path / 'out', folder.names[0], labels)
            labels = np.where(labels == 255, 0, labels)
        written = folder.write_prediction(tmp_path / 'out', folder.names[0], labels)
        assert written == tmp_path / 'out' / where and [p for p in written.parent.iterdir() if p.is_file()] == [written]
        assert np.array_equal(folder.decode(Image.open(written), written), labels)
    assert Image.open(tmp_path / 'out/n01443537/val_0.png').mode == 'RGB'  # also for few classes
    assert Image.open(tmp_path / 'out/results/VOC2012/Segmentation/comp6_val_cls/2007_000001.png').mode == 'P'
    ids = np.array(Image.open(tmp_path / 'out/bonn_000000_000019_pred_labelIds.png'))[0]
    assert [i for i in ids if i] == list(CITYSCAPES_LABEL_IDS)
    with pytest.raises(ValueError, match='unknown id 9'): CityscapesFolder(cityscapes_root).write_prediction(tmp_path, 'a/b', np.full((2, 2), 99))


def decode_runs(segmentation):
    """Read a run-length code one run after the other."""
    height, width = segmentation['size']
    pixels, value = [], 0
    for run in segmentation['counts']:
        pixels += [value] * run
        value = 1 - value
    return np.array(pixels, bool).reshape(width, height).T


@pytest.mark.parametrize('seed', range(5))
def test_run_lengths_lose_nothing(seed):
    mask = np.random.default_rng(seed).random((7, 5)) < (0, .2, .5, .8, 1)[seed]
    assert np.array_equal(decode_runs(run_lengths(mask)), mask) and len(run_lengths(mask)['counts']) <= 36


def test_coco_json_holds_the_labels(tmp_path):
    """Boxes, areas and segmentations, decoded one by one, paint the labels again."""
    dataset = write(tmp_path / 'data', 3)
    path = write_coco(dataset, tmp_path / 'annotations/all.json', progress=False)
    found = json.loads(path.read_text())
    assert found['categories'] == [{'id': i + 1, 'name': name, 'supercategory': 'farm'} for i, name in enumerate(FARM.names)]
    assert [piece['id'] for piece in found['annotations']] == [*range(1, len(found['annotations']) + 1)]
    for image, read in zip(found['images'], dataset, strict=True):
        assert (dataset.root / image['file_name']).is_file() and (image['width'], image['height']) == read.image.size
        painted = np.zeros_like(read.labels)
        for piece in (p for p in found['annotations'] if p['image_id'] == image['id']):
            mask = decode_runs(piece['segmentation'])
            rows, columns = mask.nonzero()
            assert piece['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1] and piece['area'] == mask.sum() and not piece['iscrowd']
            assert not painted[mask].any() and flood(mask, (rows[0], columns[0])) == mask.sum()
            painted[mask] = piece['category_id']
        assert np.array_equal(painted, np.where(read.labels == 255, 0, read.labels))


def flood(mask, start):
    """Count the pixels that are reached from one, step by step."""
    seen, waiting = {start}, [start]
    while waiting:
        row, column = waiting.pop()
        for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1] and mask[near] and near not in seen: seen.add(near); waiting.append(near)
    return len(seen)


def test_coco_classes_get_cocos_ids(voc_root):
    labels = np.zeros((4, 4), np.uint8)
    labels[:2, :2], labels[3, 3], labels[0, 3] = coco().id_of('toothbrush'), coco().id_of('person'), 255
    Image.new('RGB', (4, 4)).save(voc_root / 'JPEGImages/2007_000009.jpg')
    encode_labels(labels, coco()).save(voc_root / 'SegmentationClass/2007_000009.png')
    (voc_root / 'ImageSets/Segmentation/val.txt').write_text('2007_000009\n')
    found = json.loads(write_coco(VOCFolder(voc_root, 'val', coco()), voc_root / 'val.json', progress=False).read_text())
    assert [(piece['category_id'], piece['bbox']) for piece in found['annotations']] == [(90, [0, 0, 2, 2]), (1, [3, 3, 1, 1])] and len(found['categories']) == 80
    found = json.loads(write_coco(VOCFolder(voc_root, 'val', coco()), voc_root / 'val.json', min_area=2, progress=False).read_text())
    assert [piece['category_id'] for piece in found['annotations']] == [90]


def test_classes_without_a_background_are_all_written():
    pieces = coco_pieces(np.uint8([[0, 0, 255], [0, 1, 1]]), ClassSet('two', ('road', 'car'), background=None))
    assert [(piece['class_id'], piece['area']) for piece in pieces] == [(0, 3), (1, 2)]


# ---- the dataset on disk

@pytest.mark.parametrize('class_set', [FARM, MANY], ids=['palette', 'rgb'])
def test_written_is_read(tmp_path, class_set):
    dataset = write(tmp_path, class_set=class_set)
    assert dataset.class_set == class_set and len(dataset) == 5
    for number, read in enumerate(dataset):
        made = example(number, class_set=class_set)
        assert np.array_equal(read.labels, made.labels) and read.labels.dtype == class_set.dtype
        assert np.abs(read.reliability - made.reliability).max() <= .5 / 255
        assert np.abs(np.array(read.image, float) - np.array(made.image, float)).mean() < 3
    assert dataset.prompts[3] == sample(3).prompt and [line['seed'] for line in dataset.metadata] == [1000, 1001, 1002, 1003, 1004]
    assert [line['block'] for line in dataset.metadata] == [0, 0, 1, 1, 2]


def test_torchvision_reads_it(tmp_path):
    write(tmp_path / 'VOCdevkit/VOC2012')
    theirs = VOCSegmentation(str(tmp_path), year='2012', image_set='train', download=False)
    ours = VOCFolder(tmp_path, 'train', FARM)
    assert len(theirs) == len(ours) == 5
    for (image, mask), read in zip(theirs, ours):
        assert image.tobytes() == read.image.tobytes() and mask.mode == 'P' and np.array_equal(np.array(mask), read.labels)


def test_torchvision_reads_subfolders(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'FOLDER_FROM', 4)
    monkeypatch.setattr(datasets, 'PER_FOLDER', 2)
    dataset = write(tmp_path / 'VOCdevkit/VOC2012')
    assert dataset.names == ('000/000000', '000/000001', '001/000002', '001/000003', '002/000004')
    assert len([*dataset.root.glob('JPEGImages/001/*')]) == 2
    image, mask = VOCSegmentation(str(tmp_path), year='2012', image_set='train', download=False)[3]
    assert np.array_equal(np.array(mask), dataset[3].labels)


def test_a_synthetic_dataset_is_no_part_of_a_benchmark(tmp_path):
    assert repr(write(tmp_path, class_set=replace(FARM, name='voc'))) == "SyntheticFolder(5 examples, 4 ids of 'voc')"


def test_hugging_face_reads_it(tmp_path):
    huggingface = pytest.importorskip('datasets', reason='the Hugging Face library is not installed')
    dataset = write(tmp_path / 'made')
    read = huggingface.load_dataset(str(tmp_path / 'made'), cache_dir=str(tmp_path / 'cache'))['train']
    assert {'image', 'mask', 'reliability', 'text', 'seed'} <= set(read.column_names) and len(read) == 5
    assert np.array_equal(np.array(read[3]['mask']), dataset[3].labels) and read[3]['text'] == 'a cow on grass'


def test_names_sort_as_numbers():
    for count in (1, 10_000, 10_001, 2_000_000):
        numbers = sorted({0, 1, 9, 10, 999, 1000, 9999, 10_000, 999_999, 1_999_999} & set(range(count)))
        names = [sample_name(n, count) for n in numbers]
        assert names == sorted(names) and len({len(n) for n in names}) == 1


def png_chunks(data):
    at = 8
    while at < len(data):
        length, kind = struct.unpack('>I4s', data[at:at + 8])
        yield kind.decode()
        at += 12 + length


def test_files_are_plain_and_alike(tmp_path):
    for folder in ('a', 'b'): write_sample(tmp_path / folder, '000000', sample(0), FARM)
    files = contents(tmp_path / 'a')
    assert files == contents(tmp_path / 'b') and len(files) == 3
    assert set(png_chunks(files['SegmentationClass/000000.png'])) <= {'IHDR', 'PLTE', 'IDAT', 'IEND'}  # no time stamps
    with Image.open(tmp_path / 'a/JPEGImages/000000.jpg') as photo:
        assert [layer[1:3] for layer in photo.layer] == [(1, 1)] * 3  # colours at full resolution
        assert photo.quantization[0][0] == 2 and 'exif' not in photo.info  # quality 95


def test_metadata_is_self_contained(tmp_path):
    write(tmp_path)
    for line in map(json.loads, (tmp_path / 'metadata.jsonl').read_text().splitlines()):
        assert all((tmp_path / line[key]).is_file() for key in ('file_name', 'mask_file_name', 'reliability_file_name'))
        assert line['class_ids'] == [1] and line['mentions'] == [{'class_id': 1, 'start': 2, 'stop': 5}]
    about = json.loads((tmp_path / 'dataset.json').read_text())
    assert ClassSet(**about['class_set']) == FARM and (about['count'], about['block_size']) == (5, 2)


def test_masks_by_another_recipe(tmp_path):
    def both(number, class_set):
        made = sample(number, class_set)
        return replace(made, others={'flipped': replace(made.mask, labels=made.mask.labels[::-1])})

    dataset = write(tmp_path, make=both)
    flipped = VOCFolder(tmp_path, 'train', FARM, masks='SegmentationClass-flipped')
    assert all(np.array_equal(a.labels, b.labels[::-1]) for a, b in zip(flipped, dataset))
    assert flipped[0].reliability is None and dataset[0].reliability is not None  # it belongs to the dataset's own masks


class Killed(BaseException): "Stands for a kill; nothing catches it."


def test_killed_at_any_rename(tmp_path, monkeypatch):
    write(tmp_path / 'whole')
    rename, moves = os.replace, []
    monkeypatch.setattr(os, 'replace', lambda a, b: (moves.append(b), rename(a, b)))
    write(tmp_path / 'counted')
    for last in range(len(moves)):
        folder, left = tmp_path / f'killed{last}', [last]

        def until(a, b, left=left):
            if left[0] == 0: raise Killed
            left[0] -= 1
            rename(a, b)

        monkeypatch.setattr(SampleWriter, '__exit__', lambda self, *error: self._lock.release())  # a kill does not tidy up
        monkeypatch.setattr(os, 'replace', until)
        with pytest.raises(Killed): write(folder)
        monkeypatch.undo()
        if (folder / 'dataset.json').exists() and not (folder / 'ImageSets/Segmentation/train.txt').exists():
            with pytest.raises(ValueError, match='is not finished'): SyntheticFolder(folder)
        write(folder)
        assert contents(folder) == contents(tmp_path / 'whole')


def test_a_finished_dataset_is_left_alone(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    write(tmp_path, make=lambda *_: pytest.fail('nothing is to be made'))
    assert contents(tmp_path) == before


@pytest.mark.parametrize('other, says', [
    (dict(count=6), 'count is 5 there, 6 here'), (dict(block_size=3), 'block_size is 2 there, 3 here'), (dict(class_set=voc()), 'class_set.name is "farm" there, "voc" here'),
    (dict(maker={'steps': 3}), 'maker.steps is absent there, 3 here')])
def test_another_dataset_is_refused(tmp_path, other, says):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=says): write(tmp_path, **other)
    assert contents(tmp_path) == before


def test_other_folders_are_refused(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(FileExistsError, match='holds other files, such as file'): write(tmp_path)
    with pytest.raises(NotADirectoryError, match='is a file'): write(tmp_path / 'file')
    assert contents(tmp_path) == {'file': b'mine'}


def test_one_writer_at_a_time(tmp_path):
    with SampleWriter(tmp_path, FARM, 5, 2):
        with pytest.raises(RuntimeError, match='another process is writing'): write(tmp_path)
    assert len(write(tmp_path)) == 5


def test_leavings_of_a_killed_run_are_removed(tmp_path):
    write(tmp_path / 'whole')
    (tmp_path / 'killed/writing/block/JPEGImages').mkdir(parents=True)
    (tmp_path / 'killed/writing/block/JPEGImages/000001.jpg').write_text('half')
    write(tmp_path / 'killed')
    assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')


@pytest.mark.parametrize('spoil, says', [
    (lambda s: replace(s, mask=replace(s.mask, labels=s.mask.labels + np.uint8(9))), 'unknown id'),
    (lambda s: replace(s, mask=replace(s.mask, reliability=s.mask.reliability * 2)), 'must be from 0 to 1'),
    (lambda s: replace(s, mask=replace(s.mask, reliability=s.mask.reliability * np.float32('nan'))), 'must be from 0 to 1')])
def test_a_bad_sample_leaves_nothing(tmp_path, spoil, says):
    with pytest.raises(ValueError, match=says), SampleWriter(tmp_path, FARM, 2, 2) as writer: writer.write(0, [sample(0), spoil(sample(1))])
    assert not [*tmp_path.iterdir()]
    assert contents(write(tmp_path, 2).root) == contents(write(tmp_path.with_name('fresh'), 2).root)


def test_rejected_samples_leave_gaps(tmp_path):
    with SampleWriter(tmp_path, FARM, 5, 2) as writer:
        with pytest.raises(ValueError, match='lacks 3 blocks, first 0'): writer.finish()
        with pytest.raises(ValueError, match='block 2 has 1 samples; got 2'): writer.write(2, [sample(4), sample(5)])
        for block in writer.missing: writer.write(block, [sample(n) if n % 2 else None for n in writer.numbers(block)])
        assert writer.finish().names == ('000001', '000003')


def test_all_rejected(tmp_path):
    with pytest.raises(ValueError, match='all 5 samples'): write(tmp_path, make=lambda *_: None)


def test_not_a_synthetic_dataset(voc_root):
    with pytest.raises(FileNotFoundError, match='read other VOC folders with VOCFolder'): SyntheticFolder(voc_root)


def test_differences():
    assert differences({'a': 1, 'b': {'c': [1], 'd': {}}}, {'a': 1, 'b': {'c': [1], 'd': {}}}) == []
    assert differences({'a': 'x' * 99}, {'a': 1})[0] == 'a is "' + 'x' * 36 + '... there, 1 here'


# ---- augmentation

@pytest.mark.parametrize('seed', range(20))
def test_image_and_labels_move_together(seed):
    made = example(seed, (40, 64))
    image, labels, reliability = augment(made, build_transform(Augmentation(crop=48, scale=(1., 1.), colour=0., hue=0., blur=0.), FARM.void), seed)
    expected = torch.from_numpy(FARM.palette[labels.numpy()]).permute(2, 0, 1)
    inside = (labels != FARM.void).expand_as(image)
    assert image.shape == (3, 48, 48) and torch.equal(image[inside], expected[inside])
    assert torch.equal(reliability == 0, labels == FARM.void)
    assert torch.equal(reliability[labels != FARM.void], ((labels % 5 + 1) / 5)[labels != FARM.void])


@pytest.mark.parametrize('seed', range(20))
def test_scaled_image_and_labels_stay_together(seed):
    made = example(seed, (64, 96))
    image, labels, reliability = augment(made, build_transform(Augmentation(crop=64, colour=0., hue=0., blur=0.), FARM.void), seed)
    near = (image.permute(1, 2, 0).int() - torch.from_numpy(FARM.palette[labels.numpy()]).int()).abs().sum(2) < 30
    assert near[labels != FARM.void].float().mean() > .7  # borders are mixed in the image only
    assert torch.equal(reliability == 0, labels == FARM.void)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_light_leaves_labels_alone():
    made = example(0, (64, 64))
    image, labels, reliability = augment(made, build_transform(Augmentation(crop=64, scale=(1., 1.), flip=0., colour=.5, blur=1.), FARM.void), 3)
    assert np.array_equal(labels, made.labels) and np.array_equal(reliability, made.reliability)
    assert not np.array_equal(image.permute(1, 2, 0), made.image)


def test_without_augmentation_nothing_changes():
    made = example(0, (128, 128))
    image, labels, _ = augment(replace(made, reliability=None), build_transform(NO_AUGMENTATION, FARM.void), 0)
    assert np.array_equal(image.permute(1, 2, 0), made.image) and np.array_equal(labels, made.labels)


def test_many_classes_are_padded_with_their_own_void():
    image, labels, reliability = augment(example(0, (16, 16), MANY), build_transform(Augmentation(crop=32, scale=(.5, 1.)), MANY.void), 0)
    assert labels.dtype == torch.int32 and (labels == 1000).sum() >= 32 * 32 - 16 * 16 and reliability[labels == 1000].max() == 0


@pytest.mark.parametrize('wrong', [dict(crop=0), dict(scale=(2., 1.)), dict(scale=(0., 1.)), dict(flip=2.), dict(colour=-1.), dict(hue=.6), dict(blur=1.5)])
def test_augmentation_refuses(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}=.*; needed is'): Augmentation(**wrong)


def test_augmenting_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    augment(example(), build_transform(Augmentation(), 255), 1)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- batches

def test_workers_change_nothing(tmp_path):
    dataset = write(tmp_path, 7)
    alone, shared = ([*batches(dataset, 255, 6, 4, Augmentation(crop=32), seed=5, num_workers=n)] for n in (0, 2))
    assert len(alone) == 6 and all(torch.equal(a, b) for x, y in zip(alone, shared) for a, b in zip(x, y))
    assert (alone[0].images.shape, alone[0].images.dtype) == ((4, 3, 32, 32), torch.uint8)


def test_a_later_start_gives_the_same_batches():
    examples = [example(i) for i in range(5)]
    whole, rest = ([*batches(examples, 255, 7, 3, Augmentation(crop=32), start=start)] for start in (0, 4))
    assert len(rest) == 3 and all(torch.equal(a, b) for x, y in zip(whole[4:], rest) for a, b in zip(x, y))


def test_every_pass_is_a_permutation():
    draws = Draws([example(i) for i in range(9)], build_transform(NO_AUGMENTATION, 255), seed=3)
    passes = [[draws.index(n) for n in range(9 * e, 9 * e + 9)] for e in range(4)]
    assert all(sorted(p) == list(range(9)) for p in passes) and len({tuple(p) for p in passes}) == 4


def test_no_examples():
    with pytest.raises(ValueError, match='no examples'): batches([], 255, 1)


def test_counting_checks_everything(tmp_path):
    dataset = write(tmp_path)
    labels = np.stack([e.labels for e in dataset])
    assert count_pixels(dataset, FARM, progress=False).tolist() == [int((labels == i).sum()) for i in range(4)]
    (tmp_path / 'SegmentationClass/000003.png').write_text('broken')
    with pytest.raises(ValueError, match='000003.png is not an image'): count_pixels(dataset, FARM, progress=False)
