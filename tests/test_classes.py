"""Class sets: ids, words, colours, what is refused, and the lists of the benchmarks."""
import copy
import json
import os
import pickle
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import numpy as np
import pytest

from synseg_kit.classes import (
    CITYSCAPES_GROUPS,
    CITYSCAPES_LABEL_IDS,
    CLASS_SETS,
    COCO,
    COCO_UNUSED,
    ClassSet,
    bit_palette,
    check_labels,
    cityscapes,
    class_set,
    coco,
    forms,
    imagenet_s,
    label_ids_to_train_ids,
    plural,
    toy_objects,
    toy_streets,
    toy_stuff,
    train_ids_to_label_ids,
    voc,
)
from synseg_kit.lexicon import hand_names

EVERY = pytest.mark.parametrize('c', [make() for make in CLASS_SETS.values()], ids=list(CLASS_SETS))


# ---------- words

@pytest.mark.parametrize('one, many', [('dog', 'dogs'), ('bus', 'buses'), ('box', 'boxes'), ('couch', 'couches'),
                                       ('bush', 'bushes'), ('ferry', 'ferries'), ('boy', 'boys'),
                                       ('person', 'people'), ('woman', 'women'), ('german shepherd',
                                           'german shepherds'), ('goose', 'geese'), ('sheep', 'sheep'),
                                       ('police officer', 'police officers'), ('calf', 'calves'), ('human',
                                           'humans'), ('fungus', 'fungi'), ('potted cactus', 'potted cacti')])
def test_plural(one, many):
    assert plural(one) == many


def test_forms_start_with_the_word_and_repeat_nothing():
    assert forms('sheep')[0] == 'sheep' and len(set(forms('sheep'))) == len(forms('sheep'))
    assert 'persons' in forms('person') and 'people' in forms('person')


@EVERY
def test_every_word_leads_to_its_class_in_both_numbers(c):
    for name in c.names:
        for word in c.words_of(name):
            assert c.class_of_word(word) == c.class_of_word(plural(word)) == c.class_of_word(word.upper()) == name


# ---------- ids

@EVERY
def test_ids_count_up_from_zero_and_void_is_none_of_them(c):
    assert [c.id_of(label) for label in c.labels] == list(range(c.num_classes))
    assert c.void >= c.num_classes
    assert (c.labels[0] == c.background) == (c.background is not None)
    assert c.num_classes == len(c.names) + (c.background is not None)


def test_one_byte_when_it_fits():
    assert voc().dtype is np.uint8
    assert replace(voc(), void=1000).dtype is np.uint16


# ---------- a value

@EVERY
def test_it_travels(c):
    for other in (ClassSet(**json.loads(json.dumps(asdict(c)))), pickle.loads(pickle.dumps(c)), copy.deepcopy(c)):
        assert other == c and hash(other) == hash(c)


def test_it_is_frozen_and_keeps_its_own_copy():
    words = {'cow': ('cattle',)}
    farm = ClassSet('farm', ('cow',), synonyms=words)
    words['cow'] = ('horse',)
    assert farm.words_of('cow') == ('cow', 'cattle')
    with pytest.raises(FrozenInstanceError): farm.name = 'zoo'


def test_the_words_are_part_of_the_value():
    assert ClassSet('farm', ('cow',)) != ClassSet('farm', ('cow',), synonyms={'cow': ('cattle',)})


# ---------- what is refused

@pytest.mark.parametrize('settings, message', [
    (dict(names=()), 'no class names'),
    (dict(names='cow'), 'got the string'),
    (dict(names=('cow', 'Cow')), 'given twice'),
    (dict(names=('cow', 'background')), 'given twice'),
    (dict(names=('cow', ' ox')), 'not a usable word'),
    (dict(names=('cow', '')), 'not a usable word'),
    (dict(names=('stop  sign',)), 'not a usable word'),
    (dict(names=('cow', 'cows')), "'cows' leads to both"),
    (dict(names=('cow', 'ox'), synonyms={'cow': ('ox',)}), "'ox' leads to both"),
    (dict(names=('cow',), synonyms={'cow': 'cattle'}), 'must be a tuple of words'),
    (dict(names=('cow',), hyponyms={'horse': ('pony',)}), "'horse', which is not one of its names"),
    (dict(names=('cow',), void=1), 'choose a larger void'),
    (dict(names=('cow',), void=-1), 'choose a larger void'),
    (dict(names=('cow',), void=70000), 'choose a larger void'),
    (dict(names=('cow',), colours=((0, 0, 0),)), '1 colours for 2 labels'),
    (dict(names=('cow',), colours=((0, 0, 0), (1, 2, 300))), 'not a colour'),
    (dict(names=('cow',), colours=((0, 0, 0), (0, 0, 0))), 'same colour')])
def test_a_class_set_that_could_not_be_used_is_refused(settings, message):
    with pytest.raises(ValueError, match=message): ClassSet('farm', **settings)


def test_unknown_names_come_with_near_ones():
    with pytest.raises(ValueError, match="did you mean 'dining table'"): voc().id_of('diningtable')
    with pytest.raises(ValueError, match="unknown class in 'voc': 'zeppelin'"): voc().words_of('zeppelin')
    with pytest.raises(ValueError, match="unknown word in 'voc': 'dachshunt'; did you mean 'dachshund'"):
        voc().class_of_word('dachshunt')
    with pytest.raises(ValueError, match='no word leads to it'): voc().words_of('background')


# ---------- colours

def test_bit_palette_is_that_of_voc():
    golden = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
              (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0),
              (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0,
                  192, 0), (128, 192, 0), (0, 64, 128)]
    assert bit_palette()[:21].tolist() == [list(rgb) for rgb in golden]
    assert voc().palette[:21].tolist() == [list(rgb) for rgb in golden]


@EVERY
def test_colours_tell_ids_apart(c):
    palette = c.palette
    assert palette.dtype == np.uint8 and palette.shape == (256, 3)
    assert palette[c.void].tolist() == [224, 224, 192]
    seen = palette[[*range(c.num_classes), c.void]]
    assert len(np.unique(seen, axis=0)) == c.num_classes + 1


def test_the_table_has_a_row_for_each_id():
    assert toy_objects()._repr_markdown_().count('\n| ') == 13 + 1
    many = ClassSet('many', tuple(f'class {i}' for i in range(200)))
    assert '177 more' in many._repr_markdown_()


# ---------- masks

def test_check_labels():
    labels = np.array([[0, 20], [255, 3]], np.uint8)
    assert check_labels(labels, voc()) is labels
    with pytest.raises(ValueError, match=r"dog\.png: unknown id 21, 22; class set 'voc' has 0 to 20 and void 255"):
        check_labels(np.array([21, 22]), voc(), 'dog.png')
    with pytest.raises(ValueError, match='unknown id -1'): check_labels(np.array([-1]), voc())
    with pytest.raises(ValueError, match='must be integers'): check_labels(np.array([1.5]), voc())


# ---------- the benchmarks

def test_voc_order():
    assert voc().names == ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
                           'dining table', 'dog', 'horse', 'motorbike', 'person',
                           'potted plant', 'sheep', 'sofa', 'train', 'tv monitor')


def test_cityscapes_ids():
    c = cityscapes()
    assert c.num_classes == 19 and c.background is None and c.id_of('bicycle') == 18
    assert CITYSCAPES_LABEL_IDS == (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    assert sorted(name for group in CITYSCAPES_GROUPS.values() for name in group) == sorted(c.names)


def test_cityscapes_translation():
    every = np.arange(34, dtype=np.uint8).reshape(2, 17)
    train = label_ids_to_train_ids(every)
    assert train.shape == every.shape and train.dtype == np.uint8
    assert sorted(train[train != 255].tolist()) == list(range(19)) and (train == 255).sum() == 15
    back = train_ids_to_label_ids(train)
    assert (back[train != 255] == every[train != 255]).all() and (back[train == 255] == 0).all()
    with pytest.raises(ValueError, match='200 is not one of the label ids'): label_ids_to_train_ids(np.array([200]))
    with pytest.raises(ValueError, match='19 is not one of the train ids'): train_ids_to_label_ids(np.array([19]))
    with pytest.raises(ValueError, match='-1 is not one of'): label_ids_to_train_ids(np.array([-1]))
    with pytest.raises(ValueError, match='must be integers'): label_ids_to_train_ids(np.array([7.]))


def test_coco():
    """Eighty names in the order of the annotation files, ids without a gap, category ids with ten."""
    c = coco()
    assert c.names == hand_names('coco') == tuple(COCO) and c.num_classes == 81 and c.background == 'background'
    assert sorted([*COCO.values(), *COCO_UNUSED]) == list(range(1, 91)) and list(COCO.values()) == sorted(COCO.values())
    golden = {'person': 1, 'stop sign': 13, 'backpack': 27, 'handbag': 31, 'bottle': 44, 'wine glass': 46, 'dining table': 67,
              'toilet': 70, 'tv': 72, 'book': 84, 'toothbrush': 90}
    assert {name: COCO[name] for name in golden} == golden
    assert plural('scissors') == 'scissors' and c.class_of_word('scissors') == 'scissors'


def wordnet(folder, ids):
    """Write a category file."""
    path = folder/'categories.txt'
    path.write_text('\n'.join(ids))
    return path


def test_imagenet_s_ids_are_places_in_the_list(tmp_path):
    ids = [f'n{i:08}' for i in range(5, 60)]
    c = imagenet_s(wordnet(tmp_path, ids))
    assert c.name == 'imagenet-s-55' and c.num_classes == 56 and c.void == 255
    assert [c.id_of(i) for i in ids] == list(range(1, 56))


def test_imagenet_s_from_class_folders(tmp_path):
    for name in ('n00000002', 'n00000001', 'not a class'): (tmp_path/name).mkdir()
    assert imagenet_s(tmp_path).names == ('n00000001', 'n00000002')


@pytest.mark.parametrize('split', ['train', 'train-semi', 'validation'])
def test_imagenet_s_from_the_dataset_itself(tmp_path, split):
    for name in ('n00000002', 'n00000001'): (tmp_path/split/name).mkdir(parents=True)
    (tmp_path/'train-full').mkdir()
    assert ClassSet.imagenet_s(tmp_path) == imagenet_s(tmp_path/split) and imagenet_s(tmp_path).names == ('n00000001', 'n00000002')


def test_imagenet_s_is_not_imagenet(tmp_path):
    """Five classes of ImageNet-1k are merged into others, so its list would give wrong ids."""
    with pytest.raises(ValueError, match='ImageNet-S has 919 of them'): imagenet_s(wordnet(tmp_path, [f'n{i:08}' for i in range(1000)]))


def test_imagenet_s_of_many_classes_keeps_its_own_void(tmp_path):
    c = imagenet_s(wordnet(tmp_path, [f'n{i:08}' for i in range(919)]))
    assert c.void == 1000 and c.dtype is np.uint16 and c.palette.shape == (1001, 3)
    assert len(np.unique(c.palette[:920], axis=0)) == 920


def test_imagenet_s_words(tmp_path):
    ids = ['n00000001', 'n00000002', 'n00000003', 'n00000004']
    words = tmp_path/'words.txt'
    words.write_text('n00000001\ttench, Tinca tinca\nn00000002 cardigan\nn00000003 Cardigan, Cardigan Welsh '
                     'corgi\nn00000004 goose\nn00000009 other\n')
    c = imagenet_s(wordnet(tmp_path, ids), words)
    assert c.names == ('tench', 'cardigan (n00000002)', 'Cardigan Welsh corgi', 'goose')
    assert c.words_of('tench') == ('tench', 'Tinca tinca') and c.class_of_word('geese') == 'goose'
    words.write_text('n00000001 tench\n')
    with pytest.raises(ValueError, match='no words for 3 of 4 classes, such as n00000002'):
        imagenet_s(wordnet(tmp_path, ids), words)


@pytest.mark.parametrize('ids, message', [(['n00000002', 'n00000001'], 'must be sorted'),
                                          (['n00000001', 'n00000001'], 'must be sorted'),
                                          (['tench'], "'tench' is not a WordNet id"), ([], 'holds no WordNet ids')])
def test_imagenet_s_refuses_other_lists(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message): imagenet_s(wordnet(tmp_path, ids))


def test_imagenet_s_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not there'): imagenet_s(tmp_path/'none.txt')


@pytest.mark.skipif('IMAGENET_S_CATEGORIES' not in os.environ, reason='set IMAGENET_S_CATEGORIES to the folder of the '
                    'official category lists')
@pytest.mark.parametrize('count', [50, 300, 919])
def test_official_imagenet_s_lists(count):
    folder = Path(os.environ['IMAGENET_S_CATEGORIES'])
    assert imagenet_s(folder/f'ImageNetS_categories_im{count}.txt').num_classes == count + 1


def test_toy_sets_share_words():
    """Every word of the streets is known from the object look, and no word means an object and stuff at once."""
    objects, stuff, streets = toy_objects(), toy_stuff(), toy_streets()
    assert set(streets.lexicon) <= set(objects.lexicon) | set(stuff.lexicon)
    assert not set(objects.lexicon) & set(stuff.lexicon)
    assert len(objects.names) >= 12 and sum(len(k) >= 2
                                            for k in objects.hyponyms.values()) >= 8 and len(objects.synonyms) >= 6


def test_by_name():
    assert class_set('toy-stuff') == toy_stuff()
    with pytest.raises(ValueError, match="did you mean 'cityscapes'"): class_set('cityscape')
    with pytest.raises(ValueError, match=r'imagenet_s\(path\)'): class_set('imagenet-s')
