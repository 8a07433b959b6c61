"""The lexicon: senses, guards, hand lists, ImageNet's classes, and CLIP's real vocabulary."""
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from timm.data import ImageNetInfo
from transformers import CLIPTokenizer

from synseg_kit import cli
from synseg_kit.classes import CLASS_SETS, ClassSet, cityscapes, class_set, forms, imagenet_s, toy_objects, voc
from synseg_kit.lexicon import (
    UnknownWord,
    by_hand,
    find_sense,
    hand_names,
    imagenet_classes,
    lexicon,
    likelihood,
    own_words,
    spelling_guard,
    wordnet,
)
from synseg_kit.prompts import find_mentions, token_positions
from synseg_kit.toyworld import shipped

NET = wordnet()
VOC, CITY = lexicon(voc()), lexicon(cityscapes())
COCO = lexicon(ClassSet('coco', hand_names('coco')))
SETS = {'voc': VOC, 'cityscapes': CITY, 'coco': COCO}
IMAGENET = sorted(ImageNetInfo('imagenet-1k').label_names())

# class set, class, words that must not stand for it: each means something else, to WordNet or to everybody
TRAPS = [
    ('voc', 'aeroplane', 'jet fighter kamikaze amphibian'), ('voc', 'bicycle', 'wheel cycle tandem ordinary'),
    ('voc', 'bird', 'crane kite swift swallow rail turkey cock hen kiwi cuckoo nightingale dodo trumpeter roller babbler creeper chick cardinal'),
    ('voc', 'boat', 'lighter tender tower junk launch punch cutter shell tug packet ark scooter gravy'), ('voc', 'bottle', 'magnum calabash gourd canteen jug greybeard'),
    ('voc', 'bus', 'coach jalopy heap passenger'), ('voc', 'car', 'machine compact hack racer saloon cab berlin wagon bus electric cruiser'), ('voc', 'cat', 'queen tom puss lynx panther cougar tiger tortoiseshell'),
    ('voc', 'chair', 'rocker electric throne daybed president chairman shoofly'), ('voc', 'cow', 'steer beef grade springer kine'), ('voc', 'dining table', 'board counter mesa buffet'),
    ('voc', 'dog', 'boxer pointer setter toy harrier cairn chow frank andiron cur barker courser bow-wow'), ('voc', 'horse', 'chestnut bay stud nag mount plug shire hack poster charger dun knight'),
    ('voc', 'motorbike', 'scrambler'), ('voc', 'person', 'ancestor soul mortal individual slave victim black'), ('voc', 'potted plant', 'factory plant'), ('voc', 'sheep', 'ram bellwether tup'),
    ('voc', 'sofa', 'lounge convertible squab divan'), ('voc', 'train', 'gear caravan string rattler bullet'), ('voc', 'tv monitor', 'lizard proctor'),
    ('cityscapes', 'truck', 'technical van tipper semi wrecker rig'), ('cityscapes', 'pole', 'magnetic perch rod fishing stake'), ('cityscapes', 'fence', 'backstop fencing dealer hedge'), ('cityscapes', 'building', 'school club spa court diner ministry'),
    ('cityscapes', 'rider', 'clause amendment'), ('cityscapes', 'traffic sign', 'signal zodiac mark'), ('cityscapes', 'terrain', 'battlefield'), ('cityscapes', 'vegetation', 'flora botany'), ('cityscapes', 'road', 'line drive rue spur pike'),
    ('coco', 'mouse', 'rodent rat shiner'), ('coco', 'baseball bat', 'lumber'), ('coco', 'bear', 'bull'), ('coco', 'hot dog', 'showoff frank'), ('coco', 'tie', 'draw railroad'), ('coco', 'keyboard', 'clavier piano'),
    ('coco', 'orange', 'river'), ('coco', 'remote', 'outside broadcast'), ('coco', 'giraffe', 'okapi'), ('coco', 'toilet', 'bathroom john can stool throne'), ('coco', 'donut', 'sinker'), ('coco', 'cell phone', 'cell'),
]


def imagenet_file(folder, ids):
    """Write a category file."""
    path = Path(folder) / 'categories.txt'
    path.write_text(''.join(f'{one}\n' for one in ids))
    return path


@pytest.fixture(scope='module')
def clip():
    """CLIP's own tokenizer, from the vocabulary in the open_clip_torch wheel."""
    package = importlib.util.find_spec('open_clip')
    if package is None: pytest.skip('open_clip_torch is not installed')
    lines = gzip.open(Path(package.submodule_search_locations[0]) / 'bpe_simple_vocab_16e6.txt.gz', 'rt', encoding='utf-8').read().split('\n')
    merges = [tuple(line.split()) for line in lines[1:49152 - 256 - 2 + 1]]
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*letters, *(letter + '</w>' for letter in letters), *(''.join(pair) for pair in merges), '<|startoftext|>', '<|endoftext|>']
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def test_clip_vocabulary_is_the_real_one(clip):
    assert clip('a photo of a dog').input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]


# the file

def test_file_is_small_and_has_a_licence():
    folder = shipped('lexicon')
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
    assert 'WordNet 3.0 Copyright 2006 by Princeton University' in (folder / 'LICENSE').read_text()


def test_loads_lazily_and_soon():
    code = ('import time, synseg_kit.lexicon as l; start = time.process_time(); assert not l.wordnet.cache_info().currsize; '
            'l.wordnet(); print(time.process_time() - start)')
    assert min(float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(2)) < 1.5


def test_importing_the_lexicon_imports_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, synseg_kit.lexicon; sys.exit("torch" in sys.modules)']).returncode == 0


@pytest.mark.parametrize(('id_', 'word', 'above'), [('n02084071', 'dog', 'n02083346'), ('n02012849', 'crane', 'n02000954'), ('n03126707', 'crane', 'n03664675'), ('n06874185', 'traffic light', 'n06874019')])
def test_ids_are_those_of_wordnet_3(id_, word, above):
    synset = NET.synset(id_)
    assert word in synset.words and above in synset.hypernyms and synset.visible and not synset.individual


def test_every_class_of_imagenet_is_there_and_visible():
    assert all(NET.synset(one).visible for one in IMAGENET)


def test_names_of_individuals_are_known_but_never_visible():
    found = [synset for synset, _ in NET.meanings('Crane')]
    assert found and all(synset.individual and not synset.visible for synset in found)


def test_the_region_is_a_tree_walk_with_the_shortest_depth():
    region = NET.region(['n02084071'])
    assert region['n02084071'] == 0 and all(any(region.get(above) == depth - 1 for above in NET.synset(id_).hypernyms) for id_, depth in region.items() if depth)
    assert min(region.values()) == 0 and len(region) > 150


# what words mean

@pytest.mark.parametrize(('word', 'id_', 'least', 'most'), [('crane', 'n01503061', 0, .4), ('crane', 'n03126707', .6, 1), ('mouse', 'n02330245', .6, 1), ('bat', 'n02139199', .4, .8), ('tank', 'n04389033', 0, .8),
                                                          ('train', 'n04468005', .6, 1), ('poodle', 'n02084071', 1, 1), ('nothing like it', 'n02084071', 0, 0)])
def test_likelihood(word, id_, least, most):
    assert least <= likelihood(word, NET.region([id_])) <= most


@pytest.mark.parametrize('name', ['crane', 'bat', 'seal'])
def test_an_ambiguous_name_is_asked_about_or_has_one_likely_sense(name):
    try: (chosen,) = find_sense(name)
    except UnknownWord as error:
        assert 'has several meanings' in str(error) and 'senses={' in str(error)
        return
    synset = NET.synset(chosen)
    assert next(sense for sense in synset.senses if sense.word == name).tagged > 0


def test_a_word_it_lacks_gets_an_error_that_shows_the_way_out():
    with pytest.raises(UnknownWord) as caught: lexicon(ClassSet('mine', ('gizmotron',)))
    assert "'gizmotron'" in str(caught.value) and "add={'gizmotron': (\"another word\",)}" in str(caught.value)
    found = lexicon(ClassSet('mine', ('gizmotron',)), add={'gizmotron': ('red gizmotron',)})
    assert found['gizmotron'].texts('kind') == ('red gizmotron',) and found.class_set.class_of_word('red gizmotrons') == 'gizmotron'


def test_decisions_for_classes_that_are_not_there_are_refused():
    for table in ({'senses': {'cat': 'n02121620'}}, {'add': {'cat': ()}}, {'drop': {'cat': ()}}):
        with pytest.raises(ValueError, match="'cat', which is not a class"): lexicon(ClassSet('mine', ('dog',)), **table)
    with pytest.raises(ValueError, match='must be a tuple of words'): lexicon(ClassSet('mine', ('dog',)), add={'dog': 'hound'})
    with pytest.raises(ValueError, match='depth=-1'): lexicon(ClassSet('mine', ('dog',)), depth=-1)
    with pytest.raises(ValueError, match='ids look like'): lexicon(ClassSet('mine', ('dog',)), senses={'dog': 'n99999999'})


@pytest.mark.parametrize(('word', 'fit'), [('Siamese cat', True), ('Old English sheepdog', True), ('Canis familiaris', False), ('Labrador', False), ('S.U.V.', False), ('B-52', False), ('ai', False), ('West Highland white terrier', False)])
def test_spelling(word, fit):
    assert (spelling_guard(word, '', NET) == '') is fit


def test_words_that_hurt_are_left_out():
    everyone = lexicon(ClassSet('mine', ('man', 'woman')), senses={'man': 'n10287213', 'woman': 'n10787470'}, depth=9, most=1000)
    marked = [word for name in ('man', 'woman') for word in everyone[name].words if 'offensive' in word.gloss or 'derogatory' in word.gloss]
    assert marked and all(word.refused for word in marked)


# the benchmarks' lists

@pytest.mark.parametrize(('set_', 'name', 'words'), TRAPS, ids=[f'{s}-{n}' for s, n, _ in TRAPS])
def test_traps(set_, name, words):
    used = {form for word in SETS[set_][name].accepted for form in forms(word.text.casefold())}
    assert not used & set(words.casefold().split())
    assert all(SETS[set_].class_set.lexicon.get(word.casefold()) != name for word in words.split())


# class set, class, words for what the benchmark's own labelling rules put elsewhere
RULES = [
    ('voc', 'car', ('police car', 'squad car', 'ambulance')), ('voc', 'train', ('tram', 'streetcar')), ('voc', 'dining table', ('picnic table', 'desk')), ('voc', 'sofa', ('sofa bed', 'futon')), ('voc', 'chair', ('wheelchair', 'stool')),
    ('voc', 'cat', ('lion', 'wildcat')), ('cityscapes', 'fence', ('guard rail',)), ('cityscapes', 'vegetation', ('ivy', 'grass')), ('cityscapes', 'person', ('cyclist', 'skateboarder', 'rider')),
]


@pytest.mark.parametrize(('set_', 'name', 'words'), RULES, ids=[f'{s}-{n}' for s, n, _ in RULES])
def test_what_a_benchmark_labels_otherwise_is_no_word_of_the_class(set_, name, words):
    assert not {word.text for word in SETS[set_][name].accepted} & {*words}
    assert not {*class_set(set_).words_of(name)} & {*words}


@pytest.mark.parametrize('set_', ['voc', 'cityscapes', 'coco'])
def test_words_that_come_with_a_class_set_are_not_refused(set_):
    classes = class_set(set_)
    refused = {name: {word.text: word.refused for word in SETS[set_][name].refused} for name in classes.names}
    assert not {(name, word): refused[name][word] for name in classes.names for word in classes.words_of(name) if word in refused[name]}


def test_one_class_set_may_decide_otherwise():
    assert 'tram' in CITY['train'].texts('kind') and 'tram' not in VOC['train'].texts('kind')
    assert 'police car' in CITY['car'].texts('kind') and 'van' in VOC['car'].texts('kind') and CITY.class_set.class_of_word('skateboarder') == 'rider'
    assert {*by_hand('train').drop} < {*by_hand('train', 'voc').drop} and by_hand('train', 'voc').senses == by_hand('train').senses


def test_there_are_at_least_forty_traps():
    assert sum(len(words.split()) for *_, words in TRAPS) >= 40 and len(TRAPS) >= 40


@pytest.mark.parametrize('set_', list(SETS))
def test_every_class_has_words_of_its_own_and_no_two_share_one(set_):
    found, owner = SETS[set_], {}
    for name, entry in found.entries.items():
        assert entry.words[0].text == name and not entry.words[0].refused
        assert entry.senses or by_hand(name, set_).closed
        for word in entry.accepted:
            for form in forms(word.text.casefold()): assert owner.setdefault(form, name) == name, (form, name, owner[form])
    assert found.class_set.lexicon.items() >= owner.items()


@pytest.mark.parametrize('set_', ['voc', 'cityscapes'])
def test_benchmarks_have_kinds_for_every_class(set_):
    assert all(len(entry.texts('kind')) >= 3 for entry in SETS[set_].entries.values()), SETS[set_].counts


@pytest.mark.parametrize('set_', ['voc', 'cityscapes'])
def test_words_of_the_class_set_stay(set_):
    plain = CLASS_SETS[set_]()
    for name in plain.names:
        struck = {word.text for word in SETS[set_][name].refused}
        assert set(plain.words_of(name)) - struck <= set(SETS[set_].class_set.words_of(name))


def test_no_word_holds_a_word_of_another_class():
    for found in SETS.values():
        given = {w for name in found.class_set.names for w in (by_hand(name, found.class_set.name) or by_hand('rider')).kinds}
        plain = CLASS_SETS.get(found.class_set.name, lambda found=found: ClassSet('coco', hand_names('coco')))()
        for name, entry in found.entries.items():
            own = {*plain.words_of(name), *given}
            for word in entry.accepted:
                if word.text in own: continue
                inside = find_mentions(word.text, plain)
                assert all(plain.labels[i] == name for i in inside.class_ids), (name, word.text)


def test_a_cyclist_is_a_rider_and_a_pedestrian_is_a_person():
    assert [CITY.class_set.class_of_word(word) for word in ('cyclists', 'pedestrian', 'motorcyclist')] == ['rider', 'person', 'rider']


def test_senses_of_a_class_are_those_of_its_pictures():
    assert COCO['mouse'].senses == ('n03793489',) and COCO['toilet'].senses == ('n04446521',) and COCO['microwave'].senses == ('n03761084',)
    assert COCO['kite'].senses == ('n03621473',) and CITY['rider'].senses == ('n10530150',) and VOC['cat'].senses == ('n02121808',)


def test_hand_lists_name_synsets_and_classes_that_are_there():
    lists = json.loads((shipped('lexicon') / 'hand.json').read_text())
    assert set(lists['sets']) == {'voc', 'cityscapes', 'coco'} and len(lists['sets']['coco']) == 80
    assert list(lists['sets']['voc']) == list(voc().names) and list(lists['sets']['cityscapes']) == list(cityscapes().names)
    for entry in lists['words'].values():
        for one in entry.get('senses', ()): assert NET.synset(one).visible
    for one in lists['names']: assert NET.synset(one).visible
    for table in lists['sets'].values():
        for value in table.values():
            if isinstance(value, dict): assert value['like'] in lists['words'] and {*value} <= {'like', 'synonyms', 'kinds', 'drop'}
            else: assert value in lists['words'] or value in (NET.synset(value).id,)


def test_more_depth_gives_more_kinds_and_a_cap_holds():
    animals = ClassSet('animals', ('bear',))
    counts = [len(lexicon(animals, depth=depth)['bear'].texts('kind')) for depth in (0, 1, 2)]
    assert counts[0] == 0 < counts[1] < counts[2]
    capped = lexicon(animals, most=3)['bear']
    assert len(capped.texts('kind')) == 3 and any('3 commonest' in word.refused for word in capped.refused)
    ranked = [word.frequency for word in capped.accepted if word.relation == 'kind']
    assert ranked == sorted(ranked, reverse=True)


def test_a_class_sets_own_words_are_a_lexicon():
    toys = own_words(toy_objects())
    assert toys.class_set == toy_objects() and toys['car'].texts('kind') == ('sedan', 'van', 'pickup')
    assert set(toys.relations) == set(toy_objects().lexicon)
    assert Counter(toys.relations.values())['kind'] >= 31


# ImageNet

@pytest.mark.parametrize('ids', [IMAGENET[:919], IMAGENET[81:], IMAGENET[::20]], ids=['first', 'last', 'fifty'])
def test_every_imagenet_class_has_a_name_that_clip_reads(tmp_path, clip, ids):
    check_imagenet(imagenet_file(tmp_path, ids), clip)


@pytest.mark.skipif('SYNSEG_IMAGENET_S' not in os.environ, reason='SYNSEG_IMAGENET_S names no category list of ImageNet-S, nor a folder of them')
def test_every_class_of_the_users_imagenet_s_lists(clip):
    path = Path(os.environ['SYNSEG_IMAGENET_S'])
    lists = sorted(path.glob('ImageNetS_categories_im*.txt')) or [path]
    for one in lists: check_imagenet(one, clip)
    sizes = {len(imagenet_classes(one).names) for one in lists}
    assert not path.is_dir() or len(lists) == len(sizes) and sizes <= {50, 300, 919}


def check_imagenet(path, clip):
    """Every class has at least its own name, found in a caption and in CLIP's tokens."""
    plain, named = imagenet_s(path), imagenet_classes(path)
    assert (named.num_classes, named.void, named.background) == (plain.num_classes, plain.void, plain.background)
    for number, name in enumerate(named.names, start=1):
        prompt = find_mentions(f'a photo of a {name}', named)
        assert prompt.class_ids == (number,) and prompt.words == (name,), name
        (places,) = token_positions(prompt, clip)
        assert places == list(range(5, 5 + len(places))) and 1 <= len(places) <= 12, (name, places)


@pytest.mark.parametrize(('id_', 'name'), [('n02012849', 'crane bird'), ('n02108089', 'boxer dog'), ('n02930766', 'taxi'), ('n02129604', 'tiger'), ('n03793489', 'computer mouse'), ('n02096294', 'Australian terrier')])
def test_names_say_what_is_meant(tmp_path, id_, name):
    assert imagenet_classes(imagenet_file(tmp_path, [id_])).names == (name,)


@pytest.mark.parametrize('set_', list(SETS))
def test_clip_finds_every_word_of_every_class(clip, set_):
    found = SETS[set_].class_set
    for name in found.names:
        for word in found.words_of(name):
            prompt = find_mentions(f'a photo of a {word}', found)
            assert prompt.words == (word,) and prompt.class_ids == (found.id_of(name),)
            assert 1 <= len(token_positions(prompt, clip)[0]) <= 8, word


# the command line

def test_command_shows_words_and_reasons(capsys):
    assert cli.main(['words', 'dog', '--classes', 'voc']) == 0
    said = capsys.readouterr().out
    assert 'dog (n02084071)' in said and 'poodle' in said and 'because it' in said and '(--all)' in said
    assert cli.main(['words', 'dog', '--classes', 'voc', '--all']) == 0
    assert 'means rather: someone who fights with his fists' in capsys.readouterr().out


def test_command_takes_a_sense_an_id_and_a_class_set(capsys):
    assert cli.main(['words', 'crane', '--sense', 'n02012849']) == 0 and 'wading bird' in capsys.readouterr().out
    assert cli.main(['words', 'n02099601']) == 0 and 'golden retriever (n02099601)' in capsys.readouterr().out
    assert cli.main(['words', '--classes', 'cityscapes']) == 0
    said = capsys.readouterr().out
    assert all(f'{name} (' in said for name in cityscapes().names)


@pytest.mark.parametrize(('arguments', 'says'), [(['crane'], '--sense n03126707'), (['gizmotron'], 'has no word'), ([], 'name a class'), (['dog', 'cat', '--sense', 'n02084071'], 'give one name'),
                                                (['otter', '--classes', 'voc'], "unknown class in 'voc'"), (['dog', '--classes', 'vok'], "did you mean 'voc'")])
def test_command_refuses_in_one_line(capsys, arguments, says):
    assert cli.main(['words', *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count('\n') == 1
