"""The word picker: choices as values, what follows from them, the picture, and the widget in line with its value."""
import json
import subprocess
import sys
from dataclasses import asdict, replace

import ipywidgets
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline

from synseg_kit.classes import ClassSet, cityscapes, toy_objects, voc
from synseg_kit.lexicon import lexicon, own_words
from synseg_kit.word_picker import (
    MOST_SHOWN,
    Picks,
    WordPicker,
    as_code,
    as_lists,
    decide,
    lexicon_arguments,
    look_up,
    meanings,
    painter,
    show_words,
    with_picks,
)

VOC, TOYS = lexicon(voc()), own_words(toy_objects())


class Paint:
    """A painter that counts."""

    def __init__(self): self.asked = []

    def __call__(self, word):
        self.asked.append(word)
        return [Image.new('RGB', (8, 8), (10 * number, 0, 0)) for number in range(3)]


def texts(words):
    """The words' texts."""
    return [word.text for word in words]


# choices

def test_a_choice_survives_json():
    one = Picks('dog', ticked=['dog', 'poodle', 'poodle'], own=['wolfdog'])
    assert one.ticked == ('dog', 'poodle') and Picks(**json.loads(json.dumps(asdict(one)))) == one and hash(one)


@pytest.mark.parametrize('key', ['ticked', 'own', 'shown'])
def test_a_string_is_no_list_of_words(key):
    with pytest.raises(ValueError, match=f'{key} must be a sequence of words'): Picks('dog', **{key: 'poodle'})


def test_nothing_ticked_yet_is_what_the_lexicon_takes():
    entry = look_up(Picks('dog'), VOC)
    assert decide(entry, Picks('dog')) == entry and texts(entry.accepted) == texts(VOC['dog'].accepted)
    assert not any(word.refused == 'is a form of a word that is used' for word in entry.words)


def test_ticks_turn_reasons_over_and_the_name_stays():
    entry = look_up(Picks('dog'), VOC)
    chosen = decide(entry, Picks('dog', ticked=('Boxer', 'poodle')))
    assert texts(chosen.accepted) == ['dog', 'poodle', 'boxer'] and len(chosen.words) == len(entry.words)
    assert {word.refused for word in chosen.refused if word.text in texts(entry.accepted)} == {'was not ticked'}
    assert next(word for word in chosen.refused if word.text == 'pointer').refused.startswith('means rather')
    with pytest.raises(ValueError, match="'cat'.*add them with own="): decide(entry, Picks('dog', ticked=('cat',)))


def test_any_noun_and_its_meanings():
    assert texts(look_up(Picks('otter')).accepted)[0] == 'otter'
    assert [synset.id for synset in meanings('crane')] == ['n03126707', 'n02012849'] and meanings('gizmotron') == ()
    with pytest.raises(ValueError, match='has several meanings'): look_up(Picks('crane'))
    assert look_up(Picks('crane', 'n02012849')).senses == ('n02012849',) == look_up(Picks('n02012849')).senses
    assert texts(look_up(Picks('gizmotron', own=('red gizmotron',))).accepted) == ['gizmotron', 'red gizmotron']
    with pytest.raises(ValueError, match='has no word'): look_up(Picks('gizmotron'))


@pytest.mark.parametrize('words', [lexicon(voc()), lexicon(cityscapes())], ids=['voc', 'cityscapes'])
def test_the_script_line_gives_the_words_that_were_ticked(words):
    rng = np.random.default_rng(0)
    for name in words.class_set.names[2::5]:  # bird, cat, horse, sofa; building, traffic sign, rider, motorcycle
        entry = look_up(Picks(name), words)
        others = {form for other in words.class_set.names if other != name for form in words.class_set.words_of(other)}
        pool = [word.text for word in entry.words if word.refused.startswith(('means', 'was', 'is not among')) and word.text.casefold() not in others] + texts(entry.accepted)[1:]
        ticked = tuple(rng.permutation(pool)[:max(1, len(pool) // 2)].tolist())
        picks = Picks(name, ticked=(*ticked, 'home-made thing'), own=('home-made thing',))
        entry = look_up(picks, words)
        found = lexicon({'voc': voc, 'cityscapes': cityscapes}[words.class_set.name](), **lexicon_arguments(entry, picks))
        wanted = {*texts(with_picks(words, picks)[name].accepted)}
        assert {*texts(found[name].accepted)} == wanted == {name, 'home-made thing', *ticked}


def test_a_dropped_word_lets_no_other_in_and_an_added_one_passes_the_guards():
    capped = ClassSet('animals', ('bear',))
    kinds = lexicon(capped, most=3)['bear'].texts('kind')
    assert lexicon(capped, most=3, drop={'bear': kinds[:1]})['bear'].texts('kind') == kinds[1:]
    assert 'boxer' in lexicon(voc(), add={'dog': ('boxer',)})['dog'].texts('kind')
    assert 'wheelchair' not in VOC['chair'].texts('kind') and 'wheelchair' in lexicon(voc(), add={'chair': ('wheelchair',)})['chair'].texts('kind')
    with pytest.raises(ValueError, match="class name 'dog' cannot be dropped"): lexicon(voc(), drop={'dog': ('dog',)})


def test_a_lexicon_takes_a_choice_in():
    mine = with_picks(TOYS, Picks('dog', ticked=('poodle',)), Picks('cat', own=('lynx',), ticked=('lynx',)))
    assert mine.class_set.words_of('dog') == ('dog', 'poodle') and mine.class_set.words_of('cat') == ('cat', 'lynx')
    assert mine.class_set.words_of('car') == TOYS.class_set.words_of('car') and mine.class_set.num_classes == TOYS.class_set.num_classes
    assert 'hound' not in mine.relations and mine.relations['lynxes'] == 'kind'
    with pytest.raises(ValueError, match='sedan'): with_picks(TOYS, Picks('dog', own=('sedan',), ticked=('sedan',)))


def test_lists_are_short_sorted_and_searched():
    entry = look_up(Picks('dog'), VOC)
    (takes, taken), (leaves, left) = as_lists(entry, Picks('dog'), most=5)
    assert texts(taken) == texts(entry.accepted)[:5] and len(left) == 5
    assert takes == f'Words that the lexicon takes: {len(entry.accepted)} of {len(entry.accepted)} ticked (5 listed)'
    assert [word.frequency for word in left] == sorted((word.frequency for word in entry.refused), reverse=True)[:5]
    _, (_, found) = as_lists(entry, Picks('dog'), 'TERRIER')
    assert found and all('terrier' in word.text for word in found)
    assert as_lists(look_up(Picks('dog'), TOYS), Picks('dog'))[1] == ('Words that it leaves out: none', ())
    assert texts(as_lists(entry, Picks('dog', ticked=('setter',)), most=1)[1][1]) == ['setter']


def test_code_is_python_that_names_the_choice():
    entry = look_up(Picks('crane', 'n02012849'))
    assert as_code(entry, Picks('crane', 'n02012849', ('crane',))) == "lexicon(class_set, senses={'crane': 'n02012849'}, drop={'crane': ('whooper', 'whooping crane')})"
    assert eval(as_code(look_up(Picks('dog'), TOYS), Picks('dog', ticked=('poodle',))), {'with_picks': with_picks, 'words': TOYS, 'Picks': Picks})['dog'].texts('kind') == ('poodle',)


# images

def test_the_painter_starts_every_word_from_the_same_noise():
    paint = painter(tiny_pipeline(), '{objects}', images=2, steps=2, seed=5)
    first, again = paint('cat'), painter(tiny_pipeline(), '{objects}', images=2, steps=2, seed=5)('cat')
    assert [a.tobytes() for a in first] == [b.tobytes() for b in again] and first[0].tobytes() != first[1].tobytes()
    assert paint('cat') is first and paint('dog')[0].tobytes() != first[0].tobytes()
    with pytest.raises(ValueError, match='images and steps must be at least 1'): painter(tiny_pipeline(), images=0)


def test_the_picture_has_a_card_for_each_word():
    entry, picks = look_up(Picks('dog'), VOC), Picks('dog', ticked=('poodle', 'boxer'))
    figure = show_words(entry, picks, {word: Paint()(word) for word in ('dog', 'poodle', 'boxer', 'pointer')})
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert said[::2] == ['☑ dog', '☑ poodle', '☑ boxer', '☐ pointer'] and said[7].startswith('means rather')
    assert sum(len(ax.images) for ax in figure.axes) == 12
    with pytest.raises(ValueError, match='no images to show'): show_words(entry, picks, {})
    with pytest.raises(ValueError, match="'cat' is no word of 'dog'"): show_words(entry, picks, {'cat': Paint()('cat')})


# the widget

def shown_rows(picker):
    """What the lists show: word -> (ticked, looked at)."""
    return {row.children[0].description: (row.children[0].value, row.children[1].value) for box in picker.lists for row in box.children}


def test_clicking_changes_the_value_and_the_value_changes_what_is_seen():
    picker = WordPicker(TOYS, Picks('dog'), Paint())
    assert shown_rows(picker) == dict.fromkeys(TOYS.class_set.words_of('dog'), (True, False)) and picker.code.value == ''
    rows = {row.children[0].description: row.children for row in picker.lists[0].children}
    rows['hound'][0].value = False
    assert picker.value.ticked == picker.ticked == ('dog', 'dalmatian', 'dachshund', 'poodle') and '4 of 5 ticked' in picker.heads[0].value
    rows['poodle'][1].value = True
    assert picker.value.shown == ('poodle',) and picker.paint.asked == ['poodle'] and bytes(picker.picture.value)[1:4] == b'PNG' and picker.picture.layout.display is None
    picker.value = Picks('dog', ticked=('poodle',), shown=('hound',))
    assert shown_rows(picker) == {'dog': (True, False), 'hound': (False, True), 'dalmatian': (False, False), 'dachshund': (False, False), 'poodle': (True, False)}
    picker.hide.click()
    assert picker.value.shown == () and picker.picture.layout.display == 'none' and rows['dog'][0].disabled


def test_equal_values_look_equal_whatever_came_before():
    first, second = WordPicker(VOC, Picks('dog'), Paint()), WordPicker(VOC, Picks('cat'), Paint())
    second.find.value = 'x'
    second.find.value = ''
    second.name.value = 'dog'
    for picker in (first, second): picker.value = Picks('dog', ticked=('poodle', 'boxer', 'wolfdog'), own=('wolfdog',), shown=('boxer',))
    assert shown_rows(first) == shown_rows(second) and shown_rows(first)['boxer'] == (True, True) and shown_rows(first)['wolfdog'] == (True, False)
    assert (first.code.value, first.heads[0].value, bytes(first.picture.value)) == (second.code.value, second.heads[0].value, bytes(second.picture.value))


def test_typing_a_class_own_words_and_meanings():
    picker = WordPicker(value=Picks('crane'))
    assert picker.ticked == () and 'choose one above' in picker.status.value and picker.sense.layout.display is None and not picker.lists[0].children
    picker.sense.value = 'n02012849'
    assert picker.problem == picker.status.value == '' and picker.value == Picks('crane', 'n02012849') and 'whooping crane' in picker.ticked
    picker.own.value = ' grey  crane '
    assert picker.value.own == ('grey crane',) and picker.ticked[-1] == 'grey crane' and picker.own.value == ''
    picker.name.value = 'gizmotron'
    assert picker.value == Picks('gizmotron') and 'has no word' in picker.status.value and picker.sense.layout.display == 'none'
    picker.own.value = 'red gizmotron'
    assert picker.problem == '' and picker.ticked == ('gizmotron', 'red gizmotron')
    picker.name.value = 'otter'
    assert picker.value == Picks('otter') and picker.problem == '' and 'otter' in picker.ticked


def test_a_wrong_class_is_said_and_nothing_old_is_left():
    picker = WordPicker(TOYS, Picks('dog', shown=('dog',)), Paint())
    picker.name.value = 'dok'
    assert "unknown class" in picker.problem and 'dok' in picker.status.value and not shown_rows(picker)
    assert picker.picture.layout.display == 'none' and picker.code.value == '' and picker.lists[0].layout.display == 'none'


def test_only_so_many_words_are_painted_at_once_and_none_twice_in_a_row():
    picker = WordPicker(VOC, Picks('dog'), Paint())
    picker.look.click()
    assert picker.value.shown == picker.ticked[:MOST_SHOWN] and picker.paint.asked == list(picker.ticked[:MOST_SHOWN])
    picker.find.value = 'terrier'
    assert len(picker.paint.asked) == MOST_SHOWN and all('terrier' in word for word in shown_rows(picker)) and f'{MOST_SHOWN} words are shown' in picker.status.value


def test_words_are_text_not_markup():
    picker = WordPicker(TOYS, Picks('dog'))
    picker.value = replace(picker.value, name='<b>dog</b>')
    assert '<b>dog' not in picker.status.value and '&lt;b&gt;dog' in picker.status.value
    assert isinstance(picker, ipywidgets.VBox) and picker.look.disabled
    with pytest.raises(ValueError, match="value must be Picks.*got 'dog'"): picker.value = 'dog'


def test_importing_the_picker_imports_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, synseg_kit.word_picker; sys.exit("torch" in sys.modules)']).returncode == 0
