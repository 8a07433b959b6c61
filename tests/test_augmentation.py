"""Augmentation: captions, companions, attributes, variants of prompts, targets, side texts, reports."""
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
from tiny import tiny_pipeline
from transformers import CLIPTokenizer

from synseg_kit.attention import capture
from synseg_kit.augmentation import (
    ATTRIBUTES,
    TOY_ATTRIBUTES,
    PromptsExhausted,
    Targets,
    attribute_bank,
    augment,
    by_class_name,
    compose,
    distances,
    put_together,
    read_captions,
    report,
    show_gain,
    side_class_maps,
    side_texts,
    stands_for,
    take_apart,
    text_encoder,
    together,
)
from synseg_kit.classes import ClassSet, cityscapes, toy_objects, toy_streets, voc
from synseg_kit.lexicon import lexicon, own_words
from synseg_kit.prompts import Prompt, find_mentions, prompts_from_classes, replace_mention, token_positions
from synseg_kit.recipes import RECIPES, merge_captures, pseudo_masks
from synseg_kit.toyworld import PLACES, TOY_TEMPLATES

TOYS, VOC, CITY = own_words(toy_objects()), lexicon(voc()), lexicon(cityscapes())
CAPTIONS = ['A dog runs after two cars.', 'Three sheep in a field', 'a cat, a dog and a bird on a sofa', 'An aeroplane over a boat', 'People on bikes', 'a TV monitor', "the dog's bottle", 'a horse and a cow']
PLAIN = prompts_from_classes(voc(), 60, words='class')
CAPTIONED = [find_mentions(text, VOC.class_set) for text in CAPTIONS]
TOY = prompts_from_classes(toy_objects(), 40, words='class', templates=TOY_TEMPLATES, places=PLACES)
CASES = pytest.mark.parametrize(('sources', 'words', 'options'), [
    (PLAIN, VOC, {}), (CAPTIONED, VOC, {'synonym': .4}), (TOY, TOYS, {'attributes': TOY_ATTRIBUTES}), (PLAIN, VOC, {'targets': Targets.even(voc())}),
    (prompts_from_classes(cityscapes(), 30, words='all'), CITY, {'order': 1.}), (PLAIN, VOC, {'synonym': 0., 'hyponym': 0.})],
    ids=['templates', 'captions', 'toys', 'targets', 'streets', 'attributes'])


# mentions point at their words

@CASES
def test_mentions_point_at_words_of_their_class(sources, words, options):
    for prompt in islice(augment(sources, words, seed=4, **options), 400):
        for word, mention in zip(prompt.words, prompt.mentions, strict=True):
            assert word == prompt.text[mention.start:mention.stop]
            assert words.class_set.lexicon[re.sub(r'\s+', ' ', word.casefold())] == words.class_set.labels[mention.class_id]


@CASES
def test_classes_are_those_of_a_source(sources, words, options):
    known = {prompt.class_ids for prompt in sources}
    assert all(prompt.class_ids in known for prompt in islice(augment(sources, words, seed=5, **options), 200))


@CASES
def test_same_seed_same_prompts_and_lazily(sources, words, options):
    first = [*islice(augment(sources, words, seed=1, **options), 150)]
    assert [*islice(augment(iter(sources), words, seed=1, **options), 150)] == first
    assert [*augment(sources, words, 40, seed=1, **options)] == first[:40]
    assert [*islice(augment(sources, words, seed=2, **options), 150)] != first


@CASES
def test_nothing_comes_twice(sources, words, options):
    texts = [prompt.text for prompt in islice(augment(sources, words, **options), 1500)]
    assert len(texts) == len(set(texts)) and len(texts) > 300


def test_same_prompts_in_another_process():
    code = ('from synseg_kit.augmentation import augment; from synseg_kit.classes import toy_objects; from synseg_kit.lexicon import own_words; from synseg_kit.prompts import prompts_from_classes; '
            'print([p.text for p in augment(prompts_from_classes(toy_objects(), 5), own_words(toy_objects()), 9, seed=3)])')
    here = [p.text for p in augment(prompts_from_classes(toy_objects(), 5), TOYS, 9, seed=3)]
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == repr(here)


@pytest.mark.parametrize('prompt', [*CAPTIONED, *PLAIN[:10]], ids=lambda p: p.text[:20])
def test_taken_apart_and_put_together_is_the_same(prompt):
    frame = take_apart(prompt, VOC.class_set)
    made = put_together(frame, [(slot.class_id, '', '') for slot in frame.slots])
    assert made == prompt


@pytest.mark.parametrize('prompt', [*CAPTIONED, *PLAIN[:10]], ids=lambda p: p.text[:20])
@pytest.mark.parametrize('which', ['synonym', 'kind'])
def test_one_word_exchanged_is_what_replace_mention_makes(prompt, which):
    frame = take_apart(prompt, VOC.class_set)
    for i, slot in enumerate(frame.slots):
        words = VOC[VOC.class_set.labels[slot.class_id]].texts(which)
        for word in words[:3]:
            contents = [(s.class_id, word if j == i else '', '') for j, s in enumerate(frame.slots)]
            assert put_together(frame, contents) == replace_mention(prompt, i, word, VOC.class_set)


def test_articles_follow_adjectives_and_words():
    for prompt in augment(PLAIN, VOC, 500, attribute=1.):
        for wrong in (r'\ba (?=[aeio])', r'\ban (?=[bcdfgjklmnpqrstvwxyz])'):
            found = re.search(wrong, prompt.text)
            assert not found or prompt.text[found.end():].startswith(('one', 'ewe', 'eu', 'hour')), prompt.text


def test_plurals_stay_plural_and_irregular_ones_are_not_guessed():
    herd = [find_mentions('two dogs and three people', VOC.class_set)]
    for prompt in augment(herd, VOC, 100, attribute=0.):
        assert re.fullmatch(r'two .*s and three \w.*', prompt.text) and all(w.casefold() in VOC.class_set.lexicon for w in prompt.words)
        assert not {'mans', 'womans', 'childs', 'businessmans', 'businesswomans', 'policemans', 'fishermans'} & {*prompt.words}


def test_lists_change_their_order_and_other_texts_do_not():
    sources = [find_mentions('a dog, a cat and a bird', VOC.class_set), find_mentions('a dog on a sofa', VOC.class_set)]
    orders = {source: set() for source in sources}
    for prompt in augment(sources, VOC, synonym=0., hyponym=0., attribute=0., order=1.):
        orders[sources[len(prompt.mentions) == 2]].add(prompt.words)
    assert len(orders[sources[0]]) == 6 and orders[sources[1]] == {('dog', 'sofa')}


@pytest.mark.parametrize(('option', 'relation'), [('synonym', {'name', 'synonym'}), ('hyponym', {'kind'})])
def test_each_kind_of_change_alone(option, relation):
    chances = dict(synonym=0., hyponym=0., attribute=0., order=0.) | {option: 1.}
    for prompt in augment(TOY, TOYS, 60, **chances):
        assert {s.relation for s in stands_for(prompt, TOYS)} <= relation
    only = [*augment(TOY[:3], TOYS, 30, **dict(synonym=0., hyponym=0., order=0., attribute=1.), attributes=TOY_ATTRIBUTES)]
    assert all(s.relation == 'name' for prompt in only for s in stands_for(prompt, TOYS)) and any('red' in p.text for p in only)


# attributes

def test_banks_name_no_class_of_their_set():
    for class_set in (voc(), cityscapes(), toy_objects(), toy_streets()):
        for phrases in attribute_bank(class_set).values(): assert not any(find_mentions(phrase, class_set).mentions for phrase in phrases)
    assert set(attribute_bank(toy_objects())) == set(ATTRIBUTES)


def test_places_are_added_only_where_none_is_said():
    places = {'place': ('in a park',)}
    said = [*augment([find_mentions('a dog on a sofa', voc())], VOC, 5, attribute=1., attributes=places)]
    free = [*augment([find_mentions('a photo of a dog', voc())], VOC, 5, attribute=1., attributes=places)]
    assert not any('park' in p.text for p in said) and all(p.text.endswith(' in a park') for p in free)


def test_it_does_not_rain_in_kitchens():
    for prompt in augment(PLAIN, VOC, 800, attribute=1.):
        assert not (any(room in prompt.text for room in ATTRIBUTES['room']) and any(w in prompt.text for w in ATTRIBUTES['weather'])), prompt.text


def test_attributes_with_a_class_and_bare_strings_are_refused():
    with pytest.raises(ValueError, match="'in a car' names a class"): augment(PLAIN, VOC, attributes={'place': ('in a car',)})
    with pytest.raises(ValueError, match='must be a sequence of phrases'): augment(PLAIN, VOC, attributes={'place': 'in a park'})


# limits and errors

def letters_tokenizer(limit):
    """A CLIP tokenizer that knows letters only, so that prompts are long."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + '</w>' for c in letters), '<|startoftext|>', '<|endoftext|>']
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=limit)


@pytest.mark.parametrize('limit', [30, 40, 77])
def test_no_prompt_is_over_the_token_limit(limit):
    tokenizer = letters_tokenizer(limit)
    made = [*islice(augment(PLAIN, VOC, tokenizers=[tokenizer]), 300)]
    assert len(made) == 300
    for prompt in made:
        assert len(tokenizer(prompt.text).input_ids) <= limit
        assert len(token_positions(prompt, tokenizer)) == len(prompt.mentions)


def test_too_tight_a_limit_ends_in_an_error():
    few = [find_mentions('a photo of a dog', voc())]
    with pytest.raises(PromptsExhausted, match='0 different prompts could be made'): [*augment(few, VOC, 5, attribute=0., tokenizers=[letters_tokenizer(8)])]


def test_when_nothing_new_is_left():
    few = [find_mentions('a dog', toy_objects())]
    every = {p.text for p in augment(few, TOYS, attribute=0.)}
    assert every == {'a dog', 'a hound', 'a dalmatian', 'a dachshund', 'a poodle'}
    with pytest.raises(PromptsExhausted, match='5 different prompts could be made of 1, and 6 were asked for'): [*augment(few, TOYS, 6, attribute=0.)]


@pytest.mark.parametrize(('options', 'says'), [({'synonym': 2.}, 'synonym is a chance'), ({'synonym': .6, 'hyponym': .6}, 'together are at most 1'), ({'count': 0}, 'at least 1'), ({'attribute': -.1}, 'attribute is a chance')])
def test_wrong_settings(options, says):
    with pytest.raises(ValueError, match=says): augment(PLAIN, VOC, **options)


def test_wrong_sources():
    with pytest.raises(ValueError, match='no prompts to start from'): augment([], VOC)
    with pytest.raises(ValueError, match='prompt 1 mentions no class'): augment([PLAIN[0], Prompt('nothing')], VOC)
    with pytest.raises(ValueError, match='class id 20, which'): augment([find_mentions('a tv', voc())], TOYS)


# speed

def test_a_hundred_thousand_in_ten_seconds():
    code = ('import time; from synseg_kit.augmentation import augment; from synseg_kit.classes import voc; from synseg_kit.lexicon import lexicon; from synseg_kit.prompts import prompts_from_classes; '
            'words, plain = lexicon(voc()), prompts_from_classes(voc(), 60, words="class"); start = time.process_time(); '
            'assert sum(1 for _ in augment(plain, words, 100_000)) == 100_000; print(time.process_time() - start)')  # a process of its own, where no shapes are checked
    assert float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) < 10


# targets

def test_even_classes_and_shares_of_numbers():
    sources = compose(voc(), 600, objects=(1, 3))
    made = [*augment(sources, VOC, 1000, targets=Targets.even(voc(), {1: .5, 2: .3, 3: .2}))]
    sizes, classes = Counter(len(p.class_ids) for p in made), Counter(i for p in made for i in p.class_ids)
    assert all(abs(sizes[n] - 1000 * share) <= 1 for n, share in {1: .5, 2: .3, 3: .2}.items())
    assert max(classes.values()) - min(classes.values()) <= 8 and len(classes) == 20


def test_targets_that_no_source_meets():
    with pytest.raises(ValueError, match='prompts with 7 classes'): augment(PLAIN, VOC, targets=Targets(objects={7: 1.}))
    with pytest.raises(ValueError, match="'dog', and none"): augment([find_mentions('a cat', voc())], VOC, targets=Targets({'dog': 1.}))
    with pytest.raises(ValueError, match='unknown class'): augment(PLAIN, VOC, targets=Targets({'dok': 1.}))
    with pytest.raises(ValueError, match='not all 0'): Targets({'dog': 0.})


# captions

def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return path


@pytest.mark.parametrize(('name', 'text'), [
    ('a.txt', 'a dog\n\na dog\nrain\nTwo  cats\n'),
    ('a.jsonl', '{"text": "a dog"}\n\n{"caption": ""}\n{"text": "a dog"}\n"rain"\n{"caption": "Two cats"}\n'),
    ('a.json', json.dumps({'images': [], 'annotations': [{'caption': c} for c in ('a dog', '', 'A DOG', 'rain', 'Two cats\n')]})),
    ('b.json', json.dumps(['a dog', ' ', 'a dog', 'rain', 'Two cats']))])
def test_captions_of_every_format(tmp_path, name, text):
    found = read_captions(write(tmp_path, name, text), voc())
    assert [p.text for p in found] == ['a dog', 'Two cats'] and [p.words for p in found] == [('dog',), ('cats',)]
    assert found.read == 5 and found.skipped == {'empty': 1, 'there already': 1, 'without a class word': 1}


@pytest.mark.parametrize(('name', 'text', 'says'), [
    ('a.jsonl', '{"text": "a dog"}\n{"text": \n', 'line 2 is not JSON'), ('a.json', '{"annotations": [', 'is not JSON'), ('a.json', '{"captions": []}', 'list under "annotations"'),
    ('a.jsonl', '{"sentence": "a dog"}\n', 'under "text" or "caption"'), ('a.csv', 'a dog', 'read from .txt'), ('a.txt', 'rain\nsnow', r'\(2 read\) names a class'), ('a.txt', '', r'\(0 read\) names a class')])
def test_captions_that_cannot_be_used(tmp_path, name, text, says):
    with pytest.raises(ValueError, match=says): read_captions(write(tmp_path, name, text), voc())


def test_captions_that_are_missing_or_long(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file'): read_captions(tmp_path / 'none.txt', voc())
    found = read_captions(write(tmp_path, 'a.txt', 'a dog\n' + 'very ' * 50 + 'big dog'), voc())
    assert len(found) == 1 and found.skipped == {'over 40 words': 1}


# companions

def test_companions_follow_the_counts():
    seen = [find_mentions(text, voc()) for text in ['a person and a horse'] * 30 + ['a person and a cat']]
    counts = together(seen, voc())
    assert counts[14, 14] == 31 and counts[14, 12] == counts[12, 14] == 30 and counts.trace() == 62
    made = compose(voc(), 400, objects=2, counts=counts, smoothing=.01, seed=1)
    partners = Counter(p.class_ids for p in made if 13 in p.class_ids)
    assert partners.most_common(1)[0][0] == (13, 15)
    used = Counter(i for p in compose(voc(), 400, objects=1) for i in p.class_ids)
    assert max(used.values()) - min(used.values()) == 0
    assert compose(voc(), 10, seed=3) == compose(voc(), 30, seed=3)[:10] or len(compose(voc(), 10, seed=3)) == 10


def test_compose_refuses():
    with pytest.raises(ValueError, match='objects from 1 to 20'): compose(voc(), 5, objects=(1, 21))
    with pytest.raises(ValueError, match=r'must be \[20, 20\]'): compose(voc(), 5, counts=np.zeros((3, 3)))


# which word stands for which class

def test_standing_words_survive_json():
    (prompt,) = augment([find_mentions('a dog', toy_objects())], TOYS, 1, hyponym=1., synonym=0.)
    again = Prompt(**json.loads(json.dumps(asdict(prompt))))
    (standing,) = stands_for(again, TOYS)
    assert standing.class_name == 'dog' and standing.relation == 'kind' and standing.word in toy_objects().hyponyms['dog']


def test_side_texts_name_each_class_once():
    prompts = [find_mentions('a beagle and an owl', VOC.class_set), find_mentions('two poodles', VOC.class_set)]
    texts = side_texts(prompts, voc())
    assert [t.text for t in texts] == ['a photo of a bird', 'a photo of a dog'] and [t.words for t in texts] == [('bird',), ('dog',)]
    awkward = ClassSet('awkward', ('photo',))
    assert side_texts([find_mentions('a photo', awkward)], awkward)[0].words == ('photo',)


def test_side_maps_are_those_of_the_class_names():
    pipe = tiny_pipeline()
    pets = ClassSet('pets', ('cat', 'dog'))
    prompts = [find_mentions('a dog and a cat', pets), find_mentions('a cat', pets)]
    texts = side_texts(prompts, pets, '{objects}')
    with capture(pipe, prompts, side=texts) as trace:
        pipe([p.text for p in prompts], num_inference_steps=2)
    ids, maps = side_class_maps(trace, 0)
    assert ids == (1, 2) and maps.shape[0] == 2 and (maps >= 0).all() and not maps[0].equal(maps[1])
    ids, maps = side_class_maps(trace, 1)
    assert ids == (1,) and maps.shape[0] == 1
    assert maps[0].equal(trace.side_maps(1, 0)[1].mean(0))
    with capture(pipe, prompts, side=texts[:1]) as trace: pipe([p.text for p in prompts], num_inference_steps=1)
    with pytest.raises(ValueError, match='no side text names class 2'): side_class_maps(trace, 0)


def test_recipes_read_class_names_through_a_trace_of_them():
    pipe, pets = tiny_pipeline(), ClassSet('pets', ('cat', 'dog'), hyponyms={'cat': ('ball',)})  # of the few words that the tiny vocabulary has, one plays a kind
    prompts = [find_mentions('a ball and a dog', pets), find_mentions('a ball', pets)]
    with capture(pipe, prompts, side=side_texts(prompts, pets, '{objects}'), **merge_captures(RECIPES['otsu'])) as trace:
        images = pipe([p.text for p in prompts], num_inference_steps=2).images
    named = by_class_name(trace)
    for i in range(2):
        (ids, maps), (own_ids, own) = named.class_maps(i), trace.class_maps(i)
        assert ids == own_ids and maps.equal(side_class_maps(trace, i)[1]) and maps.shape == own.shape and not maps.equal(own)
    assert named.num_images == 2 and len(pseudo_masks(named, images, pets, 'otsu')) == 2


# the report

def test_report_counts():
    prompts = [find_mentions(t, toy_objects()) for t in ('a dog', 'two poodles and a tree', 'a dog')]
    found = report(prompts, TOYS)
    assert (found.prompts, found.distinct_words, found.objects, found.relations) == (3, 3, {1: 2, 2: 1}, {'name': 3, 'kind': 1})
    assert found.classes['dog'] == 3 and found.classes['cat'] == 0 and found.coverage['dog'] == 2 / 5 and found.distance is None
    assert 'distinct words | 3' in found._repr_markdown_()
    with pytest.raises(ValueError, match='no prompts to report on'): report([], TOYS)


def test_distances_grow_with_other_words():
    pipe = tiny_pipeline()
    encode = text_encoder(pipe)
    same, other = encode(['a cat', 'a cat']), encode(['a cat', 'a dog on grass'])
    assert np.allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)
    assert abs(distances(same)[0]) < 1e-5 < distances(other)[0]
    pets = own_words(ClassSet('pets', ('cat', 'dog')))
    found = report([find_mentions(t, pets.class_set) for t in ('a cat', 'a dog', 'a cat and a dog')], pets, encode)
    assert 0 < found.nearest <= found.distance < 2 and 'mean distance' in found._repr_markdown_()
    with pytest.raises(ValueError, match='at least two'): distances(np.eye(1))


def test_picture_of_the_gain():
    before, after = report(TOY, TOYS), report([*augment(TOY, TOYS, 200, attributes=TOY_ATTRIBUTES)], TOYS)
    figure = show_gain(before, after, TOYS)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(toy_objects().names)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [round(after.coverage[n] * len(TOYS[n].accepted)) for n in toy_objects().names]
