"""What a segmenter gets wrong: counts of each image against the evaluation's own, ranks, and what the gallery sends."""
import json
import re

import numpy as np
import pytest
from PIL import Image
from synseg_kit.atlas import decode_image, unpack
from synseg_kit.classes import ClassSet
from synseg_kit.datasets import Example
from synseg_kit.evaluation import confusion_matrix, evaluate, iou_per_class
from synseg_kit.failures import PLAIN_VIEW, Failures, count_image, image_part, look_again, score_images, scores_part, worst_predictions
from synseg_kit.pictures import Case

PETS = ClassSet('pets', ('cat', 'dog', 'owl'))


def examples(count=10, size=(12, 16), seed=0, classes=PETS):
    """Random masks of a few blocks, a corner void; the image's red channel says the number of the example."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        labels = rng.integers(0, classes.num_classes, (3, 4), np.uint8).repeat(size[0] // 3, 0).repeat(size[1] // 4, 1).astype(classes.dtype)
        labels[:2, :2] = classes.void
        image = np.zeros((*size, 3), np.uint8)
        image[..., 0] = number
        made.append(Example(Image.fromarray(image), labels, rng.random(size, np.float32) if number % 2 else None, f'pet {number}'))
    return made


class Guess:
    """A segmenter that is right but for a part of the picture, larger from example to example; it counts what it is asked."""
    def __init__(self, made): self.made, self.asked = made, []

    def __call__(self, images):
        self.asked.append(len(images))
        return [self._one(int(np.asarray(image)[0, 0, 0])) for image in images]

    def _one(self, number):
        labels = self.made[number].labels.copy()
        labels[labels == PETS.void] = 0
        labels[:, :number] = (labels[:, :number] + 1) % PETS.num_classes
        return labels


@pytest.fixture(scope='module')
def made(): return examples()


@pytest.fixture(scope='module')
def scores(made): return score_images(Guess(made), made, PETS, batch_size=4, progress=False)


def test_each_image_has_the_iou_of_its_own_confusion_matrix(made, scores):
    guess = Guess(made)
    for number, example in enumerate(made):
        said = guess([example.image])[0]
        iou = iou_per_class(confusion_matrix(said, example.labels, PETS.num_classes), 'voc').numpy()
        assert scores.iou()[number] == pytest.approx(np.nanmean(iou))
        for name, value in zip(PETS.labels, iou): np.testing.assert_allclose(scores.iou(name)[number], value)
    total = evaluate(guess, made, PETS, progress=False).confusion.numpy()
    for class_id in range(PETS.num_classes):
        rows = scores.counts[scores.counts[:, 1] == class_id]
        assert rows[:, 2:].sum(0).tolist() == [total[class_id, class_id], total[class_id].sum(), total[:, class_id].sum()]


def test_disagreement_weighs_pixels_by_trust(made, scores):
    guess = Guess(made)
    for number, example in enumerate(made):
        said, wrong, weight = guess([example.image])[0], 0., 0.
        for y, x in np.ndindex(example.labels.shape):
            if example.labels[y, x] == PETS.void: continue
            trust = 1. if example.reliability is None else float(example.reliability[y, x])
            weight, wrong = weight + trust, wrong + trust * (said[y, x] != example.labels[y, x])
        assert scores.disagreement[number] == pytest.approx(wrong / weight)


def test_images_are_ranked_by_order_and_class(scores):
    assert scores.worst(3, 'disagreement')[0] == 9 and scores.worst(20, 'disagreement')[-1] == 0
    assert len(scores.worst(20)) == 10 and scores.worst(20)[:4] == scores.worst(4)
    for order in ('iou', 'disagreement'):
        owls = scores.worst(20, order, 'owl')
        assert set(owls) == {i for i in range(10) if not np.isnan(scores.iou('owl')[i])}
    values = scores.iou('dog')[scores.worst(20, class_name='dog')]
    assert (np.diff(values) >= 0).all()
    with pytest.raises(ValueError, match="order is 'iou' or 'disagreement'; got 'loss'"): scores.worst(order='loss')
    with pytest.raises(ValueError, match='did you mean'): scores.worst(class_name='owls')


def test_images_without_a_label_are_never_ranked():
    nothing = Example(Image.new('RGB', (8, 6)), np.full((6, 8), 255, np.uint8), name='void')
    doubted = Example(Image.new('RGB', (8, 6)), np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.float32), 'doubted')
    found = score_images(lambda images: [np.ones((6, 8), np.uint8) for _ in images], [nothing, doubted, Example(Image.new('RGB', (8, 6)), np.zeros((6, 8), np.uint8))], PETS, progress=False)
    assert found.worst() == [2] and np.isnan(found.disagreement[:2]).all() and found.names == ('void', 'doubted', '2')


def test_memory_holds_counts_and_no_picture(made):
    guess = Guess(made)
    found = score_images(guess, made, PETS, batch_size=4, progress=False)
    assert guess.asked == [4, 4, 2] and found.counts.nbytes <= 10 * 4 * 5 * 8
    gallery = Failures(guess, made, found, count=3)
    guess.asked.clear()
    gallery.parts([0, 1]), gallery.parts([1, 2, 2])
    assert guess.asked == [2, 1]  # what was fetched before is not predicted again


def test_what_was_fetched_is_forgotten_at_last(made, scores, monkeypatch):
    monkeypatch.setattr('synseg_kit.failures.KEPT', 4)
    gallery = Failures(Guess(made), made, scores)
    for start in range(0, 9, 3): assert len(gallery.parts([start, start + 1, start + 2])) == 3 and len(gallery._made) <= 4
    assert len(gallery.parts(range(10))) == 10


def test_predictions_that_cannot_be_scored_are_named(made):
    with pytest.raises(ValueError, match=r'pet 0: the prediction is \[16, 12\] and the mask \[12, 16\]'): count_image(made[0].labels.T, made[0], PETS)
    with pytest.raises(ValueError, match='prediction of pet 0: unknown id 9'): count_image(np.full_like(made[0].labels, 9), made[0], PETS)
    with pytest.raises(ValueError, match='the dataset is empty'): score_images(Guess([]), [], PETS)
    with pytest.raises(ValueError, match='2 label maps for 1 images'): score_images(lambda images: [0, 0], made[:1], PETS, progress=False)


def test_a_part_holds_small_pictures_with_ids_of_their_own():
    many = ClassSet('many', tuple(f'thing{i}' for i in range(300)), void=1000)
    mask = np.full((40, 80), 300, np.uint16)
    mask[:20], mask[:, 70:] = 0, 1000
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    about, tensors = unpack(image_part(7, Case(image=image, mask=mask, prediction=np.full_like(mask, 12)), many, side=40))
    assert about == {'part': 'image', 'number': 7, 'ids': [0, 12, 300], 'size': [20, 40]}
    assert decode_image(tensors['image']).shape == (20, 40, 3)
    assert np.unique(tensors['mask'][:, :34]).tolist() == [0, 2] and (tensors['mask'][:, 36:] == 255).all() and (tensors['said'] == 1).all()
    assert unpack(image_part(7, Case(image=image, mask=mask, prediction=mask), many))[1]['mask'].shape == (40, 80)  # never larger than it is


def test_scores_go_without_pictures(scores):
    about, tensors = unpack(scores_part(scores, 5))
    assert about['names'] == [f'pet {i}' for i in range(10)] and [one['name'] for one in about['classes']] == list(PETS.labels) and (about['count'], about['background']) == (5, 0)
    assert tensors['rows'].shape == (len(scores.counts), 3) and tensors['rows'][:, 2] == pytest.approx(scores.class_iou, abs=1e-6)
    beasts = ClassSet('beasts', ('cat', 'dog'), None)
    found = score_images(lambda images: [np.zeros((12, 16), np.uint8) for _ in images], examples(2, classes=beasts), beasts, progress=False)
    assert unpack(scores_part(found, 5))[0]['background'] is None


def test_the_widget_answers(made, scores):
    gallery = Failures(Guess(made), made, scores, 2, {'order': 'disagreement'})
    sent = []
    gallery.send = lambda content, buffers=None: sent.append((content, buffers))
    assert gallery.view == {**PLAIN_VIEW, 'order': 'disagreement'} and gallery.numbers == scores.worst(2, 'disagreement')
    gallery.answer({'ask': 'images', 'numbers': [9, 3]})
    assert [content for content, _ in sent] == [{'part': 'image:9'}, {'part': 'image:3'}] and unpack(sent[1][1][0])[0]['number'] == 3
    for asked in ({'ask': 'images', 'numbers': [10]}, {'ask': 'scores'}, {}): gallery.answer(asked)
    assert 'there is no image 10; the dataset has 10, from 0' in sent[2][0]['error'] and 'there is no' in sent[3][0]['error'] and len(sent) == 5
    with pytest.raises(ValueError, match="has no 'sort'; it has order"): Failures(Guess(made), made, scores, view={'sort': 1})


def test_pictures_stand_in_where_there_is_no_kernel(made, scores):
    gallery = Failures(Guess(made), made, scores, 2)
    assert gallery._repr_mimebundle_()[0]['image/png']
    assert len(gallery.show().axes) == 2 * 4
    case = look_again(Guess(made), made, [4])[0]
    assert (case.mask == made[4].labels).all() and (case.prediction != made[4].labels).any() and case.image[0, 0, 0] == 4


def test_its_page_asks_nobody_and_holds_the_worst(made, scores, tmp_path):
    text = Failures(Guess(made), made, scores, 2).page(tmp_path / 'page.html', most=3, title='Mine').read_text()
    about = json.loads(re.search(r'id="values">(.*?)</script>', text)[1])
    expected = {f'image:{i}' for i in {*scores.worst(3), *scores.worst(3, 'disagreement')}}
    assert "default-src 'none'" in text and set(about['parts']) == set(about['values']['offers']) == expected


def test_one_call_does_it(made):
    class Answer:
        class_set = PETS
        def __init__(self): self.predict = Guess(made)
    gallery = worst_predictions(Answer(), made, count=4, class_name='dog', progress=False)
    assert gallery.numbers == gallery.scores.worst(4, class_name='dog') and gallery.view['class_id'] == PETS.id_of('dog')
    assert worst_predictions(Guess(made), made, PETS, order='disagreement', progress=False).numbers[0] == 9
    with pytest.raises(ValueError, match='give class_set'): worst_predictions(Guess(made), made)
    with pytest.raises(ValueError, match='order is'): worst_predictions(Guess(made), made, PETS, order='x')
