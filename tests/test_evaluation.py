"""Evaluation: every figure against one counted by hand, a naive loop, or another library."""
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

import synseg_kit.evaluation as evaluation
from synseg_kit.classes import CITYSCAPES_GROUPS, CITYSCAPES_LABEL_IDS, ClassSet, cityscapes, toy_objects, toy_stuff, voc
from synseg_kit.datasets import CityscapesFolder
from synseg_kit.evaluation import (ImageNetSTally, Pointing, Scorecard, add_up, bootstrap_miou, confusion_matrix, evaluate, iou_per_class, pointing_auc, pointing_table, prompt_fidelity,
                                   score_pseudo_masks, show_pointing, words_of_scene, write_predictions)
from synseg_kit.prompts import Mention, Prompt, find_mentions
from synseg_kit.toyworld import held_out_seeds, write_cityscapes

LETTERS = ClassSet('letters', ('a', 'b', 'c'))


def naive_confusion(prediction, truth, classes, void=255):
    """Count pixel by pixel."""
    table = np.zeros((classes, classes), np.int64)
    for said, there in zip(prediction.ravel(), truth.ravel()):
        if there != void: table[there, said] += 1
    return table


def random_labels(rng, shape=(5, 16, 17), classes=4, void_share=.1):
    truth, prediction = rng.integers(classes, size=shape), rng.integers(classes, size=shape)
    truth[rng.random(shape) < void_share] = 255
    return prediction.astype(np.uint8), truth.astype(np.uint8)


# ---------- the confusion matrix

@pytest.mark.parametrize('seed', range(3))
def test_confusion_is_what_a_loop_counts(seed):
    prediction, truth = random_labels(np.random.default_rng(seed))
    table = confusion_matrix(prediction, truth, 4)
    assert table.dtype == torch.int64
    assert (table.numpy() == naive_confusion(prediction, truth, 4)).all()
    torch.testing.assert_close(confusion_matrix(torch.from_numpy(prediction), truth.astype(np.uint16), 4), table)


def test_confusion_adds_up_over_images():
    prediction, truth = random_labels(np.random.default_rng(0))
    parts = [confusion_matrix(p, t, 4) for p, t in zip(prediction, truth)]
    torch.testing.assert_close(torch.stack(parts).sum(0), confusion_matrix(prediction, truth, 4))


def test_what_cannot_be_counted_is_refused():
    labels = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r'the prediction is \[5, 4\] and the truth \[4, 5\]'): confusion_matrix(labels.T, labels, 3)
    with pytest.raises(ValueError, match='the prediction holds id 3, but there are 3 classes'): confusion_matrix(labels + np.uint8(3), labels, 3)
    with pytest.raises(ValueError, match='the truth holds id 7'): confusion_matrix(labels, labels + np.uint8(7), 3)
    with pytest.raises(ValueError, match='the prediction holds id 255'): confusion_matrix(labels + np.uint8(255), labels, 3)
    with pytest.raises(ValueError, match='holds id -1'): confusion_matrix(labels.astype(np.int64) - 1, labels, 3)
    assert confusion_matrix(labels, labels + np.uint8(255), 3).sum() == 0


def test_id_255_is_a_class_where_void_is_another():
    many = np.array([[255, 254], [1000, 0]], np.uint16)
    table = confusion_matrix(np.array([[255, 255], [3, 0]], np.uint16), many, 301, void=1000)
    assert (table[255, 255], table[254, 255], table[0, 0], table.sum()) == (1, 1, 1, 3)


# ---------- the protocols

def test_miou_is_torchmetrics():
    prediction, truth = random_labels(np.random.default_rng(1))
    theirs = MulticlassJaccardIndex(4, average=None, ignore_index=255)
    expected = theirs(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    ours = iou_per_class(confusion_matrix(prediction, truth, 4), 'voc')
    torch.testing.assert_close(ours.float(), expected)
    assert Scorecard(confusion_matrix(prediction, truth, 4), LETTERS).miou == pytest.approx(float(expected.mean()))


def test_golden_numbers():
    """Two pixels of background of which one is found; three of a, all found; one of b, taken for a; c nowhere."""
    table = torch.tensor([[1, 1, 0, 0], [0, 3, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    card = Scorecard(table, LETTERS, 'voc')
    assert [card.iou[name] for name in ('background', 'a', 'b')] == [1 / 2, 3 / 5, 0]
    assert np.isnan(card.iou['c'])
    assert card.miou == pytest.approx((1 / 2 + 3 / 5 + 0) / 3)
    assert card.pixel_accuracy == pytest.approx(4 / 6)
    assert Scorecard(table, LETTERS, 'imagenet-s').miou == pytest.approx((1 / 2 + 3 / 5 + 0 + 0) / 4, abs=1e-9)
    assert card.metrics()['iou']['c'] is None
    assert '| a | 0.600 |' in card._repr_markdown_() and 'Nowhere, and skipped: c.' in card._repr_markdown_()


def test_imagenet_s_as_its_authors_write_it():
    """Sums of intersections, outputs and targets in K + 1 bins over pixels that are not 1000 (LUSSeg/ImageNet-S)."""
    rng, classes = np.random.default_rng(2), 301
    truth, prediction = rng.integers(60, size=(2, 40, 41)), rng.integers(60, size=(2, 40, 41))
    truth[0, :5] = 1000
    kept = truth != 1000
    hit = np.bincount(truth[kept & (truth == prediction)], minlength=classes)
    target, output = np.bincount(truth[kept], minlength=classes), np.bincount(prediction[kept], minlength=classes)
    expected = np.mean(hit / (target + output - hit + 1e-10))
    dataset = [SimpleNamespace(image=p, labels=t.astype(np.uint16), name='x') for p, t in zip(prediction, truth)]
    many = ClassSet('many', tuple(f'thing {i}' for i in range(300)), void=1000)
    assert evaluate(lambda images: images, dataset, many, 'imagenet-s', progress=False).miou == pytest.approx(expected, rel=1e-12)


def official_cityscapes(prediction, truth):
    """The score on all 34 label ids, as cityscapesScripts computes it: one matrix; ignored truth is no false alarm, a pixel given to an ignored label is a miss."""
    table = np.zeros((34, 34), np.int64)
    np.add.at(table, (truth.ravel(), prediction.ravel()), 1)
    scores = []
    for label in CITYSCAPES_LABEL_IDS:
        hit, others = table[label, label], [other for other in CITYSCAPES_LABEL_IDS if other != label]
        misses, alarms = table[label].sum() - hit, table[others, label].sum()
        scores.append(hit / (hit + misses + alarms) if hit + misses + alarms else np.nan)
    return np.nanmean(scores)


def test_cityscapes_on_train_ids_is_the_official_score_on_label_ids():
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(34, size=(3, 20, 30)), rng.integers(34, size=(3, 20, 30))
    truth[truth == 31], prediction[prediction == 31] = 30, 29  # no train anywhere: the class is skipped
    to_train = np.full(34, 255, np.uint8)
    to_train[list(CITYSCAPES_LABEL_IDS)] = range(19)
    dataset = [SimpleNamespace(image=to_train[p], labels=to_train[t], name='x') for p, t in zip(prediction, truth)]
    card = evaluate(lambda images: images, dataset, cityscapes(), 'cityscapes', progress=False)
    assert card.miou == pytest.approx(official_cityscapes(prediction, truth), rel=1e-12)
    assert np.isnan(card.iou['train'])


def mistaken(ids, draw, choices):
    """Spoil labels as a bad segmenter would: shifted, and with blocks of ids that were drawn."""
    said = np.roll(ids, (3, -5), (0, 1))
    for _ in range(12):
        top, left = draw.integers(said.shape[0] - 8), draw.integers(said.shape[1] - 8)
        said[top:top + draw.integers(4, 40), left:left + draw.integers(4, 40)] = draw.choice(choices)
    return said


@pytest.fixture(scope='module')
def street_folder(tmp_path_factory):
    """Six rendered streets in Cityscapes' layout; one has labels that are not scored, as at the border of real ones."""
    root = write_cityscapes(tmp_path_factory.mktemp('streets'), held_out_seeds(6))
    path = sorted((root / 'gtFine').rglob('*_labelIds.png'))[0]
    ids = np.array(Image.open(path))
    ids[:20], ids[20:30, :50] = 3, 5
    Image.fromarray(ids).save(path)
    return root


@pytest.mark.parametrize('choices', [(*range(34),), CITYSCAPES_LABEL_IDS, (24, 25, 26, 0)], ids=['any id', 'scored ids', 'few ids'])
def test_cityscapes_is_what_the_official_tool_says(street_folder, tmp_path, choices):
    """Class and category scores on written predictions, by cityscapesScripts' own functions."""
    official = importlib.import_module('cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling')
    dataset, draw, classes = CityscapesFolder(street_folder), np.random.default_rng(0), cityscapes()
    back = np.full(256, classes.void, np.uint8)
    back[[*CITYSCAPES_LABEL_IDS]] = range(19)
    truths = [np.array(Image.open(path)) for path in dataset.masks]
    said = iter([back[mistaken(ids, draw, choices)] for ids in truths])
    card = evaluate(lambda images: [next(said) for _ in images], dataset, classes, 'cityscapes', batch_size=4, progress=False, save_to=tmp_path / 'results')
    settings = official.CArgs()
    vars(settings).update(vars(official.args), evalInstLevelScore=False, JSONOutput=False, quiet=True, predictionPath=str(tmp_path / 'results'), predictionWalk=None)
    files = [official.getPrediction(settings, str(path)) for path in dataset.masks]  # where it looks for them itself
    theirs = official.evaluateImgLists(files, [str(path) for path in dataset.masks], settings)
    assert card.miou == pytest.approx(theirs['averageScoreClasses'], abs=1e-9)
    assert card.figures['category_miou'] == pytest.approx(theirs['averageScoreCategories'], abs=1e-9)
    for name, value in card.iou.items(): assert value == pytest.approx(theirs['classScores'][name], abs=1e-9, nan_ok=True), name
    for name in CITYSCAPES_GROUPS: assert card.figures[f'iou_{name}'] == pytest.approx(theirs['categoryScores'][name], abs=1e-9, nan_ok=True), name
    assert 0 < card.miou < 1 and 0 < card.figures['category_miou'] < 1


def voc_by_hand(pairs, classes, void=255):
    """Class by class and pixel by pixel over all images."""
    scores = []
    for c in range(classes):
        both = sum(int(((p == c) & (t == c)).sum()) for p, t in pairs)
        either = sum(int((((p == c) | (t == c)) & (t != void)).sum()) for p, t in pairs)
        scores.append(both / either if either else np.nan)
    return scores


def hand_made(void, size=(40, 50)):
    """Truths and predictions with void, classes that are missing on either side, and a prediction of nothing."""
    truths, said = [np.zeros(size, np.int64) for _ in range(5)], [np.zeros(size, np.int64) for _ in range(5)]
    truths[0][5:25, 10:40], said[0][8:28, 10:38] = 1, 1
    truths[0][25:27] = void
    truths[1][2:6, 2:9], truths[1][10:39, 10:49] = 2, 3  # a small and a large object
    said[1][2:6, 2:9], said[1][12:39, 5:49] = 2, 4  # a class that is nowhere in any truth
    truths[2][:] = void  # nothing to score
    said[2][:20] = 3
    truths[3][10:30, 10:30] = 1  # empty prediction
    truths[4][:, :30], said[4][:, 20:] = 5, 5
    truths[4][:3] = void
    return said, truths


def as_dataset(said, truths): return [SimpleNamespace(image=p, labels=t.astype(np.uint16), name=f'{n}') for n, (p, t) in enumerate(zip(said, truths))]


def test_voc_by_hand():
    said, truths = hand_made(255)
    classes = ClassSet('six', tuple('abcdef'))  # f is nowhere
    card = evaluate(lambda images: images, as_dataset(said, truths), classes, batch_size=2, progress=False)
    expected = voc_by_hand(list(zip(said, truths)), 7)
    assert [*card.iou.values()] == pytest.approx(expected, nan_ok=True) and np.isnan(expected[6]) and expected[4] == 0
    assert card.miou == pytest.approx(np.nanmean(expected), rel=1e-12)


def imagenet_s_by_hand(said, truths, classes, void):
    """ImageNet-S's figures by loops over images, sizes, kinds and classes (what LUSSeg/ImageNet-S computes)."""
    def edges(labels):
        width, near = max(1, round(.03 * np.hypot(*labels.shape))), np.zeros(labels.shape, bool)
        padded = np.pad(labels, width, constant_values=-1)
        for (y, x), label in np.ndenumerate(labels): near[y, x] = (padded[y:y + 2 * width + 1, x:x + 2 * width + 1] != label).any()
        return near
    sums = {(kind, size): np.zeros((3, classes)) for kind in ('region', 'boundary') for size in ('all', 's', 'ms', 'ml', 'l')}
    accurate, f = [], []
    for p, t in zip(said, truths):
        known = t != void
        drawn = [int(((p == c) & known).sum()) for c in range(1, classes)]
        best = 1 + int(np.argmax(drawn))
        accurate.append(max(drawn) > 0 and bool((t == best).any()))
        hit, fore, out = ((p > 0) & (t > 0) & known).sum(), ((t > 0) & known).sum(), ((p > 0) & known).sum()
        precision, recall = hit / (out + 1e-20), hit / (fore + 1e-20)
        f.append(1.3 * precision * recall / (.3 * precision + recall + 1e-20))
        percent = {c: 100 * ((t == c) & known).sum() / known.sum() for c in range(1, classes) if ((t == c) & known).any()}
        members = {'all': range(classes), 's': [], 'ms': [], 'ml': [], 'l': []}
        for c, share in percent.items(): members['s' if share <= 5 else 'ms' if share <= 25 else 'ml' if share <= 50 else 'l'].append(c)
        near_p, near_t = edges(p), edges(t)
        for size, ids in members.items():
            if not len(ids): continue
            kept = known & np.isin(t, [0, *ids])
            for kind, sure_p, sure_t in (('region', np.ones_like(known), np.ones_like(known)), ('boundary', near_p, near_t)):
                for c in range(classes):
                    sums[kind, size][:, c] += ((p == c) & (t == c) & sure_p & sure_t & kept).sum(), ((t == c) & sure_t & kept).sum(), ((p == c) & sure_p & kept).sum()
    def mean(kind, size):
        hit, there, out = sums[kind, size]
        iou = hit / (there + out - hit + 1e-10)
        return iou.mean() if size == 'all' else iou[there > 0].mean() if (there > 0).any() else np.nan
    return {'miou': mean('region', 'all'), 'boundary_miou': mean('boundary', 'all'), 'image_accuracy': np.mean(accurate), 'f_measure': np.mean(f),
            **{f'miou_{size}': mean('region', size) for size in ('s', 'ms', 'ml', 'l')}, **{f'boundary_miou_{size}': mean('boundary', size) for size in ('s', 'ms', 'ml', 'l')}}


@pytest.mark.parametrize(('classes', 'void'), [(6, 255), (6, 1000), (300, 1000)])
def test_imagenet_s_by_hand(classes, void):
    said, truths = hand_made(void)
    class_set = ClassSet('many', tuple(f'thing {i}' for i in range(classes)), void=void)
    with np.errstate(invalid='ignore', divide='ignore'): expected = imagenet_s_by_hand(said, truths, classes + 1, void)
    card = evaluate(lambda images: images, as_dataset(said, truths), class_set, 'imagenet-s', progress=False)
    assert {'miou': card.miou, **card.figures} == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert len({round(expected[f'miou_{size}'], 6) for size in ('s', 'ms', 'ml', 'l')}) == 4 and expected['image_accuracy'] == .4  # the cases differ
    assert card.metrics()['miou_s'] == card.figures['miou_s'] and 'boundary miou ms' in card._repr_markdown_()


@pytest.mark.parametrize('seed', range(4))
def test_imagenet_s_by_hand_at_random(seed):
    draw = np.random.default_rng(seed)
    blocks = lambda: np.kron(draw.choice(5, size=(4, 6), p=(.5, .3, .1, .07, .03)), np.ones((9, 7), np.int64))
    truths, said = [blocks() for _ in range(3)], [blocks() for _ in range(3)]
    for truth in truths: truth[draw.random(truth.shape) < .02] = 1000
    class_set = ClassSet('four', tuple('abcd'), void=1000)
    with np.errstate(invalid='ignore', divide='ignore'): expected = imagenet_s_by_hand(said, truths, 5, 1000)
    card = evaluate(lambda images: images, as_dataset(said, truths), class_set, 'imagenet-s', progress=False)
    assert {'miou': card.miou, **card.figures} == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_sizes_at_their_bounds():
    """Five percent are small, a pixel more is not; a quarter and a half likewise."""
    found = {}
    for pixels, size in ((500, 's'), (501, 'ms'), (2500, 'ms'), (2501, 'ml'), (5000, 'ml'), (5001, 'l')):
        tally, truth = ImageNetSTally(LETTERS), np.zeros(10_000, np.int64)
        truth[:pixels] = 1
        tally.add(truth.reshape(100, 100), truth.reshape(100, 100))
        found[pixels] = [name for name in ('s', 'ms', 'ml', 'l') if not np.isnan(tally.figures()[f'miou_{name}'])] == [size]
    assert all(found.values()), found


def test_protocols_refuse_or_count_void():
    labels, left = np.ones((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    left[:1] = 255
    dataset = as_dataset([left], [labels])
    for protocol, miou in (('cityscapes', .75), ('pseudo-mask', 1)): assert evaluate(lambda images: images, dataset, LETTERS, protocol, progress=False).miou == miou
    for protocol in ('voc', 'imagenet-s'):
        with pytest.raises(ValueError, match='0: the prediction holds id 255'): evaluate(lambda images: images, dataset, LETTERS, protocol, progress=False)
    with pytest.raises(ValueError, match='no pixel of the dataset has a true label.*write_predictions'): evaluate(lambda images: [labels], as_dataset([labels], [np.full((4, 4), 255)]), LETTERS, progress=False)


# ---------- intervals

def test_the_counts_are_those_of_each_image():
    """Also where an image has nothing to score, or nothing was said."""
    said, truths = hand_made(255)
    card = evaluate(lambda images: images, as_dataset(said, truths), ClassSet('six', tuple('abcdef')), progress=False)
    assert card.counts.is_sparse and card.counts.shape == (5, 7, 3)
    for counts, p, t in zip(card.counts.to_dense().numpy(), said, truths):
        known = t != 255
        assert counts.tolist() == [[((p == c) & (t == c) & known).sum(), (t == c).sum(), ((p == c) & known).sum()] for c in range(7)]


@pytest.mark.parametrize('protocol', ['voc', 'cityscapes', 'imagenet-s', 'pseudo-mask'])
def test_the_bootstrap_draws_images(protocol):
    """Each draw is the score of the images drawn, one table at a time."""
    draw = np.random.default_rng(0)
    tables = [torch.from_numpy(draw.integers(30, size=(4, 4)) * (draw.random((4, 1)) < .6)) for _ in range(7)]
    tables[3] *= 0
    counts = add_up(tables, LETTERS, protocol).counts
    draws, again = bootstrap_miou(counts, protocol, 250, seed=5), np.random.default_rng(5)
    for score in draws:
        drawn = sum(tables[number] for number in again.integers(7, size=7))
        assert float(score) == pytest.approx(float(iou_per_class(drawn, protocol).nanmean()), abs=1e-12)
    assert not torch.equal(draws, bootstrap_miou(counts, protocol, 250, seed=6)) and torch.equal(draws[:120], bootstrap_miou(counts, protocol, 120, seed=5))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Coverage over many samples of images: about 90 %."""
    draw, hits = np.random.default_rng(0), []
    for sample in range(100):
        found = draw.binomial(100, draw.beta(4, 2, size=60))  # of 100 pixels of an image
        tables = [torch.tensor([[int(hit), 100 - int(hit)], [0, 100]]) for hit in found]
        low, high = add_up(tables, ClassSet('one', ('a',))).interval(.9, 300, sample)
        hits.append(low < (2 / 3 + 1 / (2 - 2 / 3)) / 2 < high)  # the beta's mean is 2 / 3
    assert .82 <= np.mean(hits) <= .97


def test_intervals_of_a_scorecard():
    said, truths = hand_made(255)
    card = evaluate(lambda images: images, as_dataset(said, truths), ClassSet('six', tuple('abcdef')), progress=False)
    low, high = card.metrics()['miou_interval']
    inner = card.interval(.5)
    assert 0 <= low < high <= 1 and (low, high) == card.interval() and low <= inner[0] < inner[1] <= high
    assert json.loads(json.dumps(card.metrics(), allow_nan=False)) == card.metrics() and f'{low:.3f} to {high:.3f}' in card._repr_markdown_()
    alone = Scorecard(card.confusion, card.class_set)
    assert 'miou_interval' not in alone.metrics()
    with pytest.raises(ValueError, match='at least two images'): alone.interval()


# ---------- predictions

def test_predictions_for_a_server(street_folder, tmp_path):
    dataset = CityscapesFolder(street_folder)
    files = write_predictions(lambda images: [torch.full(image.size[::-1], 13) for image in images], dataset, tmp_path / 'out', progress=False)
    assert [file.name for file in files] == [f'{name.split("/")[1]}_pred_labelIds.png' for name in dataset.names]
    assert {*np.unique(np.array(Image.open(files[0])))} == {26} and len([*(tmp_path / 'out').iterdir()]) == 6
    with pytest.raises(ValueError, match=r'toyburg/.*: the prediction is \[2, 2\] and the image'): write_predictions(lambda images: [np.zeros((2, 2), int)] * len(images), dataset, tmp_path, progress=False)


def test_a_scorecard_is_checked():
    with pytest.raises(ValueError, match='for 4 classes has as many rows'): Scorecard(torch.zeros(3, 3, dtype=torch.int64), LETTERS)
    with pytest.raises(ValueError, match='known are voc, cityscapes, imagenet-s, pseudo-mask'): Scorecard(torch.zeros(4, 4, dtype=torch.int64), LETTERS, 'coco')
    with pytest.raises(ValueError, match='4 pixels have it'): Scorecard(torch.ones(4, 5, dtype=torch.int64), LETTERS, 'voc')


@pytest.mark.parametrize('class_set', [LETTERS, voc(), cityscapes(), ClassSet('many', tuple(f'thing {i}' for i in range(300)), void=1000)], ids=lambda c: c.name)
def test_scorecards_of_any_size_can_be_shown(class_set):
    rng = np.random.default_rng(0)
    card = Scorecard(torch.from_numpy(rng.integers(1000, size=(class_set.num_classes,) * 2)), class_set)
    figure = card.show()
    figure.canvas.draw()
    assert len(figure.axes) == 2
    assert card._repr_markdown_().count('\n') < 50


# ---------- evaluate

def dataset_of(count=7, size=(8, 9)):
    rng = np.random.default_rng(0)
    return [SimpleNamespace(image=labels, labels=labels, name=f'image {n}') for n, labels in enumerate(rng.integers(4, size=(count, *size)).astype(np.uint8))]


@pytest.mark.parametrize('batch_size', [1, 3, 7, 16])
def test_every_image_is_scored_once(batch_size):
    card = evaluate(lambda images: images, dataset_of(), LETTERS, batch_size=batch_size, progress=False)
    assert card.miou == 1 and card.confusion.sum() == 7 * 8 * 9


def test_a_prediction_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r'image 0: the prediction is \[4, 9\] and the truth \[8, 9\]'): evaluate(lambda images: [i[:4] for i in images], dataset_of(), LETTERS, progress=False)
    with pytest.raises(ValueError, match='gave 1 label maps for 7 images'): evaluate(lambda images: images[:1], dataset_of(), LETTERS, progress=False)
    with pytest.raises(ValueError, match='the dataset is empty'): evaluate(lambda images: images, [], LETTERS, progress=False)
    with pytest.raises(ValueError, match='unknown protocol'): evaluate(lambda images: images, dataset_of(), LETTERS, 'coco', progress=False)


# ---------- fidelity and pseudo-masks

def labels_with(**pixels):
    """Make labels of 100 pixels with so many of each class."""
    labels = np.zeros(100, np.uint8)
    labels[:sum(pixels.values())] = np.repeat([toy_objects().id_of(name) for name in pixels], list(pixels.values()))
    return labels.reshape(10, 10)


def test_fidelity_by_hand():
    texts = ('a cat', 'a cat and a ball', 'a cat and a ball', 'a dog')
    seen = [labels_with(cat=30), labels_with(cat=30, ball=1), labels_with(cat=30), labels_with(dog=20, cat=5)]
    fidelity = prompt_fidelity(seen, [find_mentions(text, toy_objects()) for text in texts], toy_objects())
    assert fidelity.faithful == (True, True, False, False)
    assert fidelity.share == .5
    assert fidelity.shown == {'cat': 1., 'ball': .5, 'dog': 1.}
    assert fidelity.intruded['cat'] == 1 and fidelity.intruded['dog'] == 0
    strict = prompt_fidelity(seen, [find_mentions(text, toy_objects()) for text in texts], toy_objects(), at_least=.02)
    assert strict.faithful == (True, False, False, False)


def test_fidelity_without_a_background_counts_every_class():
    streets = ClassSet('two', ('road', 'sky'), background=None)
    labels = np.zeros((4, 4), np.uint8)
    assert prompt_fidelity([labels], [Prompt('road', (Mention(0, 0, 4),))], streets).faithful == (True,)
    labels[0] = 1
    assert prompt_fidelity([labels], [Prompt('road', (Mention(0, 0, 4),))], streets).faithful == (False,)


def test_fidelity_needs_pairs():
    with pytest.raises(ValueError, match='1 label maps for 2 prompts'): prompt_fidelity([labels_with(cat=1)], [Prompt('a')] * 2, toy_objects())
    with pytest.raises(ValueError, match='at least one'): prompt_fidelity([], [], toy_objects())


def test_pseudo_masks_are_scored_without_their_void():
    rng = np.random.default_rng(4)
    truth, mask = rng.integers(4, size=(3, 12, 12)).astype(np.uint8), rng.integers(4, size=(3, 12, 12)).astype(np.uint8)
    mask[:, :3] = 255
    card = score_pseudo_masks(mask, truth, LETTERS)
    assert card.miou == pytest.approx(Scorecard(confusion_matrix(mask[:, 3:], truth[:, 3:], 4), LETTERS).miou)
    assert card.pixel_accuracy == pytest.approx((mask[:, 3:] == truth[:, 3:]).mean())
    assert card.void_share == .25
    with pytest.raises(ValueError): score_pseudo_masks(mask[:2], truth, LETTERS)
    with pytest.raises(ValueError, match='no images to score'): score_pseudo_masks([], [], LETTERS)


# ---------- pointing

def naive_auc(heat, mask):
    """Compare every pixel of the object with every pixel outside it."""
    inside, outside = heat[mask], heat[~mask]
    return float(((inside[:, None] > outside).double() + .5 * (inside[:, None] == outside).double()).mean())


@pytest.mark.parametrize('levels', [2, 5, 1000])
def test_auc_is_the_share_of_pairs(levels):
    generator = torch.Generator().manual_seed(levels)
    for _ in range(5):
        heat = torch.randint(levels, (9, 11), generator=generator) / levels
        mask = torch.rand(9, 11, generator=generator) < .3
        assert pointing_auc(heat, mask) == pytest.approx(naive_auc(heat, mask), abs=1e-12)
        assert pointing_auc(heat, mask) + pointing_auc(-heat, mask) == pytest.approx(1)


def test_auc_at_its_ends():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 2:5] = True
    assert pointing_auc(mask.float(), mask) == 1
    assert pointing_auc(torch.ones(8, 8), mask) == .5
    assert np.isnan(pointing_auc(torch.ones(8, 8), torch.zeros(8, 8, dtype=torch.bool)))
    assert pointing_auc(mask.half(), mask.numpy()) == 1
    coarse = torch.zeros(4, 4)
    coarse[1:3, 1:3] = 1
    assert pointing_auc(coarse, mask) > .95
    with pytest.raises(ValueError, match='boolean'): pointing_auc(coarse, mask.float())
    with pytest.raises(ValueError, match='not finite'): pointing_auc(coarse * float('nan'), mask)


def street_of_words():
    """Make a scene by hand: a red sailboat left, a cat right, on grass."""
    text, stuff, objects = 'a red sailboat and a cat on grass', toy_stuff(), toy_objects()
    labels, ground = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    labels[4:12, :5], labels[4:12, 11:] = objects.id_of('boat'), objects.id_of('cat')
    ground[12:] = stuff.id_of('grass')
    return SimpleNamespace(image=np.zeros((16, 16, 3), np.uint8), labels=labels, stuff=ground, prompt=find_mentions(text, objects), stuff_prompt=find_mentions(text, stuff))


def test_words_of_a_scene():
    prompt, meant = words_of_scene(street_of_words(), toy_objects())
    assert list(zip(prompt.words, (kind for kind, _ in meant))) == [('red', 'colour'), ('sailboat', 'kind'), ('cat', 'class'), ('grass', 'background')]
    assert [int(here.sum()) for _, here in meant] == [40, 40, 40, 64]


def test_the_pointing_table_asks_every_word(monkeypatch):
    """Attention that is the truth itself points perfectly, at the layer that has it."""
    scene = street_of_words()
    maps = torch.stack([torch.from_numpy(here).float() for _, here in words_of_scene(scene, toy_objects())[1]])

    class Seen:
        resolutions, layers = ((16, 16),), ('good', 'blind')
        def mention_maps(self, image, resolution=None, layer=None): return maps * (layer != 'blind')
        def special_maps(self, image, resolution=None, layer=None): return {'end': torch.from_numpy(scene.labels == 0).float()}

    calls = []
    def look(pipe, images, prompts, timestep, **options):
        calls.append((len(images), timestep, options['seed']))
        return Seen()

    monkeypatch.setattr(evaluation, 'look', look)
    table = pointing_table(None, [scene] * 3, toy_objects(), timesteps=(100, 500), batch_size=2, seed=7, progress=False)
    assert calls == [(2, 100, 7), (1, 100, 9), (2, 500, 7), (1, 500, 9)]
    found = {(row.word, row.layer): row for row in table if row.timestep == 500}
    assert len(table) == 2 * 5 * 3
    for word in ('class', 'kind', 'colour', 'background'):
        assert found[word, None] == Pointing(word, 500, 16, None, 1., 3)
        assert found[word, 'blind'].auc == .5
    assert found['end', 'good'].auc == 0  # it points away
    show_pointing(table).canvas.draw()


def test_pointing_on_a_pipeline():
    """Random weights know nothing, but every layer answers for every word."""
    from tiny import tiny_pipeline
    labels = np.zeros((64, 64), np.uint8)
    labels[20:50, 20:50] = 1
    text, animals = 'a red cat on the grass', ClassSet('animals', ('cat', 'dog'))
    scene = SimpleNamespace(image=np.zeros((64, 64, 3), np.uint8), labels=labels, stuff=(labels == 0).astype(np.uint8), prompt=find_mentions(text, animals),
                            stuff_prompt=find_mentions(text, ClassSet('grounds', ('grass',))))
    table = pointing_table(tiny_pipeline(), [scene, scene], animals, timesteps=(500,), progress=False)
    layers = {row.layer for row in table} - {None}
    assert {row.word for row in table} == {'class', 'colour', 'background', 'end'}
    assert len(table) == 4 * (len(layers) + len({row.resolution for row in table}))
    assert all(0 <= row.auc <= 1 and row.words == 2 for row in table)
