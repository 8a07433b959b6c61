"""Prompts: mentions in text, text from class names, positions in tokenizers, words exchanged."""
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from synseg_kit.classes import (
    CLASS_SETS,
    ClassSet,
    cityscapes,
    plural,
    toy_objects,
    toy_streets,
    toy_stuff,
    voc,
)
from synseg_kit.prompts import (
    IDIOMS,
    WORDS,
    Mention,
    Prompt,
    PromptTooLong,
    article,
    balanced_choices,
    choose_word,
    fill_template,
    find_mentions,
    listing,
    prompts_from_captions,
    prompts_from_classes,
    replace_mention,
    require_mentions,
    token_positions,
    with_article,
)

TOYS, VOC = toy_objects(), voc()
GOLDEN = ['a picture of a duck, a yield sign and a football on the grass',
          'a photograph of a sailboat and a van under the sky', 'a photo of a cottage and a palm on the grass']
EVERY = pytest.mark.parametrize('c', [make() for make in CLASS_SETS.values()], ids=list(CLASS_SETS))


def clip_tokenizer(pieces, limit=77):
    """Build a CLIP tokenizer that knows the given pieces; a piece that ends a word ends in '</w>'."""
    split = [[*piece.removesuffix('</w>')] for piece in pieces]
    for letters, piece in zip(split, pieces, strict=True):
        if piece.endswith('</w>'): letters[-1] += '</w>'
    merges = [(''.join(letters[:i]), letters[i]) for letters in split for i in range(1, len(letters))]
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + '</w>' for c in letters), *dict.fromkeys(a + b for a, b in merges), '<|startoftext|>',
              '<|endoftext|>']
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=list(dict.fromkeys(merges)),
                         model_max_length=limit)


def t5_tokenizer(limit=512):
    """Build a T5 tokenizer: no start token, pieces that begin a word carry a mark."""
    pieces = ['▁', '▁a', '▁and', '▁two', '▁flam', 'ingo', '▁owl', 's', '▁stop', '▁sign', ',',
              *'abcdefghijklmnopqrstuvwxyz']
    return T5Tokenizer(vocab=[('<pad>', 0.), ('</s>', 0.), ('<unk>', -20.),
                              *((p, -2. if len(p) > 1 else -9.) for p in pieces)], model_max_length=limit)


class Slow:
    """The same tokenizer as seen by code that gets no offsets from it."""
    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer, self.model_max_length = tokenizer, tokenizer.model_max_length

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=verbose)


CLIP = clip_tokenizer(['a</w>', 'and</w>', 'two</w>', 'fla', 'mingo</w>', 'tab', 'bies</w>', 'stop</w>', 'sign</w>',
                       'owl</w>'])


# ---------- values

def test_prompt_keeps_mentions_in_text_order():
    p = Prompt('a cat and a dog', (Mention(7, 12, 15), Mention(6, 2, 5)))
    assert p.words == ('cat', 'dog') and p.class_ids == (6, 7)


def test_prompt_travels():
    p = find_mentions('two cats and a cat', TOYS)
    assert Prompt(**json.loads(json.dumps(asdict(p)))) == p and hash(p) == hash(Prompt(p.text, p.mentions))
    assert p.class_ids == (TOYS.id_of('cat'),) and len(p.mentions) == 2


@pytest.mark.parametrize('make, message', [
    (lambda: Mention(-1, 0, 3), 'class id of 0 or more'), (lambda: Mention(1, 3, 3),
                                                           'start < stop'), (lambda: Mention(1, -1, 3), 'start < stop'),
    (lambda: Prompt('a cat', (Mention(1, 2, 6),)), 'beyond the 5 characters'), (lambda: Prompt('a cat',
        (Mention(1, 1, 5),)), 'leave out the spaces'),
    (lambda: Prompt('a cat', (Mention(1, 2, 5), Mention(2, 4, 5))), 'mentions overlap')])
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_display_marks_mentions():
    assert find_mentions('a cat, a dog', TOYS)._repr_markdown_() == 'a **cat**<sub>6</sub>, a **dog**<sub>7</sub>'


# ---------- finding

@EVERY
def test_every_word_is_found_in_both_numbers(c):
    for name in c.names:
        for word in c.words_of(name):
            for form in (word, plural(word), word.upper()):
                p = find_mentions(f'Look: {form}, there!', c)
                assert p.words == (form,) and p.class_ids == (c.id_of(name),)


@pytest.mark.parametrize('text, words', [
    ('a carpet for the cartoon cat', ('cat',)),                 # whole words
    ('stop signs and a sign', ('stop signs', 'sign')),          # the longest first
    ('a stop-sign, a stop  sign', ('stop-sign', 'stop  sign')), # however it is spaced
    ('dog dog dog', ('dog', 'dog', 'dog')),
    ("the dog's bowl", ('dog',)),
    ('"Dog," she said', ('Dog',)),
    ('a dog-like thing in a cat-free house', ('house',)),
    ('a hot dog and a dog', ('dog',)),
    ('two people, many persons', ('people', 'persons')),
    ('', ()), ('nothing here', ()), ('ĐOG Dog dög', ('Dog',))])
def test_find_mentions(text, words):
    assert find_mentions(text, TOYS).words == words


def test_idioms_yield_to_the_class_set():
    buns = ClassSet('food', ('hot dog', 'dog'))
    assert 'hot dog' in IDIOMS and find_mentions('a hot dog', buns).words == ('hot dog',)
    assert find_mentions('a hot dog', TOYS, idioms=()).words == ('dog',)


def test_letters_that_change_length_in_lower_case():
    p = find_mentions('İİİ a TABBY', TOYS)
    assert p.words == ('TABBY',)


def test_one_text_two_class_sets():
    text = 'a farmer on the lawn by a hedge'
    assert find_mentions(text, TOYS).words == ('farmer',) and find_mentions(text, toy_stuff()).words == ('lawn',
        'hedge')
    assert find_mentions(text, toy_streets()).words == ('farmer', 'hedge')


def test_class_sets_with_the_same_names_and_other_words_are_not_confused():
    one, two = ClassSet('x', ('cow',), synonyms={'cow': ('moo',)}), ClassSet('x', ('cow',))
    assert find_mentions('moo', one).words == ('moo',) and find_mentions('moo', two).words == ()


def test_require_mentions():
    assert require_mentions('a hound and a ship', TOYS, ['dog', 'boat']).words == ('hound', 'ship')
    with pytest.raises(ValueError, match="no word for class 'boat' in the prompt 'a hound'; write one of: boat, ship, "
                       "sailboat, steamer"):
        require_mentions('a hound', TOYS, ['dog', 'boat'])
    with pytest.raises(ValueError, match="unknown class in 'toy': 'boot'"): require_mentions('a hound', TOYS, ['boot'])
    with pytest.raises(ValueError, match='got the string'): require_mentions('a dog', TOYS, 'dog')


def test_captions():
    found = prompts_from_captions(['A man\n walks.', 'Rain.', '', 'Cats and dogs'], VOC)
    assert [p.text for p in found] == ['A man walks.', 'Cats and dogs']
    with pytest.raises(ValueError, match='got one string'): prompts_from_captions('a dog', VOC)


# ---------- making

@pytest.mark.parametrize('phrase, wanted', [('owl', 'an owl'), ('dog', 'a dog'), ('ewe', 'a ewe'),
                                            ('unicycle', 'a unicycle'), ('umbrella', 'an umbrella'),
                                            ('uninteresting wall', 'an uninteresting wall'),
                                            ('hour glass', 'an hour glass'), ('house', 'a house'), ('one-eyed cat',
                                                'a one-eyed cat'), ('user', 'a user'), ('utility pole',
                                                'a utility pole'), ('ugly boat', 'an ugly boat'),
                                            ('foliage', 'foliage'), ('dry grass', 'dry grass'), ('sky',
                                                'the sky'), ('orange orb', 'an orange orb')])
def test_articles(phrase, wanted):
    assert with_article(phrase) == wanted


def test_listing_and_template():
    assert [listing(list('abc')[:n]) for n in (1, 2, 3)] == ['a', 'a and b', 'a, b and c']
    assert fill_template('{objects}', ['owl', 'cat'], 'on sand') == 'an owl and a cat on sand'
    assert fill_template('{place}: {objects}', ['owl'], 'on sand') == 'on sand: an owl'
    assert fill_template('a photo of {words}', ['sky', 'owl', 'cat'], 'on sand') == 'a photo of sky, owl and cat on sand'


@EVERY
@pytest.mark.parametrize('words', WORDS)
def test_prompts_from_classes(c, words):
    low, high = 1, 4
    prompts = prompts_from_classes(c, 120, seed=5, objects=(low, high), words=words)
    uses = Counter(i for p in prompts for i in p.class_ids)
    assert max(uses.values()) - min(uses.values()) <= 1 and len(uses) == len(c.names)
    for p in prompts:
        assert low <= len(p.class_ids) == len(p.mentions) <= high   # no class twice
        assert p == find_mentions(p.text, c)                        # the text says no more than the mentions
        for m, word in zip(p.mentions, p.words, strict=True):
            name = c.labels[m.class_id]
            allowed = {'class': (name,), 'synonyms': (name, *c.synonyms.get(name, ())),
                       'kinds': c.hyponyms.get(name, (name,)), 'all': c.words_of(name)}[words]
            assert word in allowed
    assert {len(p.mentions) for p in prompts} == {1, 2, 3, 4}


def test_seed_and_count():
    assert prompts_from_classes(TOYS, 40, seed=1) == prompts_from_classes(TOYS, 90, seed=1)[:40]
    assert prompts_from_classes(TOYS, 40, seed=1) != prompts_from_classes(TOYS, 40, seed=2)


def test_first_prompts_of_seed_0_are_golden():
    assert [p.text for p in prompts_from_classes(TOYS, 3, places=('on the grass', 'under the sky'))] == GOLDEN


def test_kinds_are_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(choose_word(TOYS, 'dog', 'kinds', rng) for _ in range(3000))
    assert set(counts) == {'dalmatian', 'dachshund', 'poodle'} and min(counts.values()) > 900


def test_balanced_choices_with_all_names():
    assert sorted(balanced_choices(('a', 'b', 'c'), [3], np.random.default_rng(0))[0]) == ['a', 'b', 'c']


def test_places_may_mention_classes():
    streets = toy_streets()
    for p in prompts_from_classes(streets, 30, objects=1, places=('on the road under the sky',)):
        assert {'road', 'sky'} <= {streets.labels[i] for i in p.class_ids}


@pytest.mark.parametrize('settings, message', [
    (dict(count=0), 'count must be at least 1'), (dict(objects=0), 'from 1 to 12'), (dict(objects=(3, 2)),
        'from 1 to 12'), (dict(objects=(1, 13)), 'from 1 to 12'),
    (dict(words='kind'), "words must be one of 'class', 'synonyms', 'kinds', 'all'; got 'kind'"),
    (dict(templates=()), 'no templates'), (dict(templates='a {objects}'),
                                           'got one string'), (dict(templates=('a photo',)), 'needs {objects} or {words} once'),
    (dict(templates=('{objects} and {objects}',)), 'needs {objects} or {words} once'), (dict(templates=('{objects} {where}',)),
        'nothing else in braces'),
    (dict(templates=('{objects} {place}',)), 'no places were given'), (dict(places='on sand'), 'got one string')])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message): prompts_from_classes(TOYS, **{'count': 3, **settings})


def test_a_template_with_words_has_no_articles():
    (prompt,) = prompts_from_classes(toy_streets(), 1, objects=3, templates=('a photo of {words}, in rain',), words='class')
    names = [toy_streets().labels[i] for i in prompt.class_ids]
    first, second, third = sorted(names, key=prompt.text.index)
    assert prompt.text == f'a photo of {first}, {second} and {third}, in rain'


# ---------- tokens

@pytest.mark.parametrize('text, positions', [
    ('a flamingo and two tabbies', [[2, 3], [6, 7]]),            # two words of two pieces, one a plural
    ('stop sign', [[1, 2]]),                                      # two words, at the start
    ('a stop sign, a flamingo', [[2, 3], [6, 7]]),                # a comma is a token
    ('an owl and an owl', [[3], [7]]),                            # twice; "an" is two pieces here
    ('A FLAMINGO', [[2, 3]]),
    ("the owl's owl", [[4], [7]]),
    ('a  stop \n sign', [[2, 3]])])                               # the tokenizer drops spaces, the characters stay
@pytest.mark.parametrize('slow', [False, True], ids=['fast', 'slow'])
def test_clip_positions(text, positions, slow):
    p = find_mentions(text, TOYS)
    assert token_positions(p, Slow(CLIP) if slow else CLIP) == positions
    ids = CLIP(text).input_ids
    for word, where in zip(p.words, positions, strict=True):
        assert CLIP.decode([ids[i] for i in where]).split() == word.casefold().split()


@pytest.mark.parametrize('slow', [False, True], ids=['fast', 'slow'])
def test_t5_positions(slow):
    tokenizer = t5_tokenizer()
    p = find_mentions('a flamingo, two owls and a stop sign', TOYS)
    assert tokenizer.convert_ids_to_tokens(tokenizer(p.text).input_ids) == ['▁a', '▁flam', 'ingo', ',', '▁two', '▁owl',
        's', '▁and', '▁a', '▁stop', '▁sign', '</s>']
    assert token_positions(p, Slow(tokenizer) if slow else tokenizer) == [[1, 2], [5, 6], [9, 10]]


@pytest.mark.parametrize('c', [VOC, cityscapes(), TOYS], ids=lambda c: c.name)
def test_positions_spell_every_word_letter_by_letter(c):
    """With a tokenizer that knows letters only, a mention has as many tokens as letters, fast and slow alike."""
    letters = clip_tokenizer([])
    for name in c.names:
        for word in c.words_of(name):
            p = find_mentions(f'a photo of two {plural(word)} at dusk', c)
            positions = token_positions(p, letters)
            assert positions == token_positions(p, Slow(letters))
            assert len(positions[0]) == len(plural(word).replace(' ', '')) and positions[0][0] == 12


@pytest.mark.parametrize('slow', [False, True], ids=['fast', 'slow'])
@pytest.mark.parametrize('tokenizer, closing', [(CLIP, 1), (t5_tokenizer(), 1)], ids=['clip', 't5'])
def test_token_limit(tokenizer, closing, slow):
    p = find_mentions('a flamingo and a flamingo', TOYS)
    length = len(tokenizer(p.text).input_ids)
    view = Slow(tokenizer) if slow else tokenizer
    assert len(token_positions(p, view, max_length=length)) == 2
    for limit in (length - 1, length - 2):  # the second word loses its last piece, then all of it
        with pytest.raises(PromptTooLong, match="'flamingo' is token"): token_positions(p, view, max_length=limit)


def test_the_positions_of_a_cut_text_are_those_the_encoder_reads():
    p = find_mentions('a flamingo and two and two and two', TOYS)
    ids = CLIP(p.text, truncation=True, max_length=6).input_ids
    read = [ids[i] for i in token_positions(p, CLIP, max_length=6)[0]]  # the cut comes after the mention
    assert read == CLIP('flamingo').input_ids[1:-1]


def test_the_tokenizers_own_limit_counts():
    short = clip_tokenizer(['a</w>', 'fla', 'mingo</w>'], limit=4)
    with pytest.raises(PromptTooLong, match='reads 4 tokens'): token_positions(find_mentions('a flamingo', TOYS), short)
    assert issubclass(PromptTooLong, ValueError)


def test_no_mentions_no_positions():
    assert token_positions(Prompt('a quiet evening'), CLIP) == [] == token_positions(Prompt('a quiet evening'),
        Slow(CLIP))


def test_a_tokenizer_that_joins_words_is_refused():
    class Joins:
        """Makes one token of the whole text."""
        is_fast, model_max_length = False, 77
        def __call__(self, text, add_special_tokens=True, verbose=True):
            return {'input_ids': [len(text)] if text else []}
    with pytest.raises(ValueError, match="joins 'dog' with its neighbours"):
        token_positions(find_mentions('a dog here', TOYS), Joins())


# ---------- other words

@pytest.mark.parametrize('text, index, word, wanted', [
    ('a bird by a car', 0, 'owl', 'an owl by a car'),
    ('a bird by a car', 1, 'automobile', 'a bird by an automobile'),
    ('An owl', 0, 'duck', 'A duck'),
    ('a red car', 0, 'automobile', 'a red automobile'),           # the article belongs to the adjective
    ('an orange car', 0, 'van', 'an orange van'),
    ('two birds and birds', 1, 'owl', 'two birds and owls'),
    ('people', 0, 'chef', 'chefs'),
    ('Dogs play', 0, 'poodle', 'Poodles play'),
    ('the signs', 0, 'stop sign', 'the stop signs'),
    ('a banana', 0, 'owl', None)])
def test_replace_mention(text, index, word, wanted):
    p = find_mentions(text, TOYS)
    if wanted is None:
        with pytest.raises(ValueError, match='mention 0 of 0'): replace_mention(p, index, word, TOYS)
        return
    new = replace_mention(p, index, word, TOYS)
    assert new.text == wanted and new == find_mentions(wanted, TOYS)


@pytest.mark.parametrize('text, word, wanted', [('a sheep', 'ewe', 'a ewe'), ('two sheep', 'ewe', 'two ewes'),
                                                ('several white sheep', 'lamb', 'several white lambs'),
                                                ('a lamb', 'sheep', 'a sheep'),
                                                ('a cow', 'cattle', 'cattle'), ('a photo of a cow', 'ox',
                                                    'a photo of an ox')])
def test_words_with_one_form_for_both_numbers(text, word, wanted):
    assert replace_mention(find_mentions(text, VOC), 0, word, VOC).text == wanted


@EVERY
def test_replacing_everything_keeps_the_classes(c):
    rng = np.random.default_rng(0)
    for p in prompts_from_classes(c, 40, objects=(2, 4), words='class'):
        new = p
        for i, m in enumerate(p.mentions):
            new = replace_mention(new, i, choose_word(c, c.labels[m.class_id], 'all', rng), c)
        assert [m.class_id for m in new.mentions] == [m.class_id for m in p.mentions]
        assert new == find_mentions(new.text, c)


def test_replace_refuses_other_classes_and_takes_new_words():
    p = find_mentions('a dog', TOYS)
    with pytest.raises(ValueError, match="'tabby' leads to class 'cat'; the mention 'dog' means 'dog'"):
        replace_mention(p, 0, 'tabby', TOYS)
    with pytest.raises(ValueError, match='mention -1 of 1'): replace_mention(p, -1, 'poodle', TOYS)
    assert replace_mention(p, 0, 'airedale', TOYS) == Prompt('an airedale', (Mention(7, 3, 11),))


def test_article_of_words_without_one():
    assert article('vegetation') == '' and article('greens') == 'a'
