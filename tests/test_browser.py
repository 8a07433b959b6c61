"""The browser of a dataset: decisions that are written safely and taken back, what it sends, and its page."""
import json
import multiprocessing
import re

import numpy as np
import pytest
from PIL import Image
from synseg_kit.atlas import unpack
from synseg_kit.browser import PLAIN_VIEW, Browser, all_lines, all_samples, browse, card, facts_part, page_part, review, samples_part
from synseg_kit.classes import ClassSet, toy_objects
from synseg_kit.datasets import Sample, SampleWriter, SyntheticFolder, name_of
from synseg_kit.explorer import explore
from synseg_kit.masks import PseudoMask
from synseg_kit.prompts import find_mentions

TOYS = toy_objects()


def make(root, count=7, block=3, rejected=()):
    """A dataset of small squares; sample i is trusted by i/10 and has i+1 rows of its class."""
    with SampleWriter(root, TOYS, count, block) as writer:
        for k in writer.missing:
            samples = []
            for i in writer.numbers(k):
                labels = np.zeros((16, 24), np.uint8)
                labels[:i + 1] = TOYS.id_of('cat' if i % 2 else 'dog')
                labels[-1] = TOYS.void
                prompt = find_mentions(f'a {"cat" if i % 2 else "dog"} on grass', TOYS)
                samples.append(None if i in rejected else Sample(Image.new('RGB', (24, 16), (9 * i, 80, 0)), PseudoMask(labels, np.full((16, 24), i / 10, np.float32)), prompt, i, 'test'))
            writer.write(k, samples)
        return writer.finish()


@pytest.fixture
def dataset(tmp_path): return make(tmp_path / 'data')


def test_a_decision_is_a_word_in_a_line_and_nothing_else_changes(dataset):
    before, names = all_lines(dataset.root), dataset.names
    files = sorted(path.relative_to(dataset.root) for path in dataset.root.rglob('*') if path.is_file())
    found = review(dataset.root, {names[1]: 'rejected', names[2]: 'accepted'})
    assert found.names == (names[0], *names[2:]) and len(found.metadata) == 6 and found[1].labels.shape == (16, 24)
    after = all_lines(dataset.root)
    assert [{key: value for key, value in line.items() if key != 'review'} for line in after] == before
    assert [line.get('review') for line in after] == [None, 'rejected', 'accepted', None, None, None, None]
    assert sorted(path.relative_to(dataset.root) for path in dataset.root.rglob('*') if path.is_file() and path.name != '.review.lock') == files
    assert review(dataset.root, {names[1]: '', names[2]: ''}).names == names and all_lines(dataset.root) == before


def test_decisions_outlive_the_dataset_being_put_together_again(dataset):
    names = dataset.names
    review(dataset.root, {names[0]: 'rejected', names[5]: 'accepted'})
    again = make(dataset.root)
    assert again.names == names[1:] and {name_of(line): line.get('review') for line in all_lines(dataset.root)}[names[5]] == 'accepted'


def test_wrong_decisions_change_nothing(dataset):
    names, text = dataset.names, (dataset.root / 'metadata.jsonl').read_bytes()
    for decisions, message in (({names[0]: 'nice'}, "got 'nice'"), ({names[0]: 'rejected', '9': 'accepted'}, "has no sample '9'; there are 7"), (dict.fromkeys(names, 'rejected'), 'keep one at least')):
        with pytest.raises(ValueError, match=message): review(dataset.root, decisions)
    assert (dataset.root / 'metadata.jsonl').read_bytes() == text
    with pytest.raises(FileNotFoundError, match='not a synthetic dataset'): browse(dataset.root.parent)


def decide(root, name): review(root, {name: 'accepted'})


def test_two_browsers_lose_no_decision(dataset):
    with multiprocessing.get_context('fork').Pool(3) as pool: pool.starmap(decide, [(dataset.root, name) for name in dataset.names])
    assert [line['review'] for line in all_lines(dataset.root)] == ['accepted'] * 7


def test_rejected_samples_are_still_looked_at(dataset):
    names = dataset.names
    review(dataset.root, {names[3]: 'rejected'})
    samples = all_samples(dataset.root)
    assert samples.names == names and int((samples[3].labels == TOYS.id_of('cat')).sum()) == 4 * 24
    about, _ = unpack(samples_part(dataset.root))
    assert [one['review'] for one in about['samples']] == ['', '', '', 'rejected', '', '', ''] and about['size'] == [16, 24]
    assert about['classes'][TOYS.id_of('cat')]['name'] == 'cat' and about['samples'][1]['mentions'] == [{'class_id': TOYS.id_of('cat'), 'start': 2, 'stop': 5}]


def test_pages_hold_pictures_and_what_a_reviewer_asks(dataset, tmp_path):
    samples = all_samples(dataset.root)
    about, tensors = unpack(page_part(samples, 1, 3))
    assert (about['first'], len(about['cards'])) == (3, 3)
    ends, data = about['ends'], tensors['bytes'].tobytes()
    for k, kind in ((0, 'JPEG'), (1, 'PNG')):
        (tmp_path / 'one').write_bytes(data[ends[k - 1] if k else 0:ends[k]])
        picture = Image.open(tmp_path / 'one')
        assert picture.format == kind and picture.size == (24, 16)
    overlay = np.asarray(picture)
    assert overlay[0, 0].tolist() == [*TOYS.palette[TOYS.id_of('cat')].tolist(), 255] and overlay[8, 0, 3] == 0 and overlay[15, 0].tolist() == [190, 190, 190, 255]
    assert about['cards'][0] == {'areas': {str(TOYS.id_of('cat')): .25}, 'void': .0625, 'confidence': pytest.approx(.3, abs=.003)}
    facts, _ = unpack(facts_part(samples))
    assert facts['confidence'] == pytest.approx([i / 10 for i in range(7)], abs=.003) and [sum(areas.values()) for areas in facts['areas']] == pytest.approx([(i + 1) / 16 for i in range(7)], abs=1e-4)
    with pytest.raises(ValueError, match='there is no page 3; 7 samples make 3'): page_part(samples, 3, 3)


def test_a_card_of_nothing_and_of_sets_without_background():
    nothing = np.full((2, 2), 255, np.uint8)
    assert card(nothing, np.ones((2, 2), np.float32), 255) == {'areas': {}, 'void': 1., 'confidence': 0.}
    assert card(np.zeros((2, 2), np.uint8), np.ones((2, 2), np.float32), 255, background=False)['areas'] == {0: 1.}


def test_the_widget_answers(dataset):
    browser = explore(dataset, view={'state': 'rejected'})
    assert isinstance(browser, Browser) and browser.view == {**PLAIN_VIEW, 'state': 'rejected'} and browser.offers == ['page:0', 'facts', 'review'] and browser.reviews == {}
    sent = []
    browser.send = lambda content, buffers=None: sent.append((content, buffers))
    for asked in ({'ask': 'review', 'changes': {dataset.names[0]: 'rejected'}}, {'ask': 'review', 'changes': {'x': 'rejected'}}, {'ask': 'page:0'}, {'ask': 'page:x'}, {}): browser.answer(asked)
    assert sent[0][0] == {'reviewed': 1} and 'has no sample' in sent[1][0]['error'] and sent[2][0] == {'part': 'page:0'} and all('no ' in content['error'] for content, _ in sent[3:])
    assert browser.reviews == {dataset.names[0]: 'rejected'} and len(SyntheticFolder(dataset.root)) == 6


def test_its_page_asks_nobody(dataset, tmp_path):
    text = browse(dataset).page(tmp_path / 'page.html').read_text()
    assert "default-src 'none'" in text and json.loads(re.search(r'id="values">(.*?)</script>', text)[1])['parts'] == {'page:0': 'part0', 'facts': 'part1'}


def test_a_dataset_may_be_named_by_its_folder(dataset):
    for named in (dataset, dataset.root, str(dataset.root)): assert browse(named).root == dataset.root


def test_large_class_sets(tmp_path):
    many = ClassSet('many', tuple(f'thing{i}' for i in range(300)), void=1000)
    with SampleWriter(tmp_path / 'many', many, 1, 1) as writer:
        labels = np.zeros((8, 8), np.uint16)
        labels[:4] = 300
        writer.write(0, [Sample(Image.new('RGB', (8, 8)), PseudoMask(labels, np.ones((8, 8), np.float32)), find_mentions('a thing299', many), 0)])
        writer.finish()
    about, _ = unpack(page_part(all_samples(tmp_path / 'many'), 0))
    assert about['cards'] == [{'areas': {'300': .5}, 'void': 0., 'confidence': 1.}]
