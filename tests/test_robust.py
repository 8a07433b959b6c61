"""Objectives against their formulas, written out pixel by pixel."""
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from synseg_kit.robust import (ADELE, BECO, IGNORE, OBJECTIVES, SPOILS, URN, CoTeaching, CoTraining, GeneralisedCrossEntropy, IgnoreBand, Lesson, Plain, SelfTraining, SymmetricCrossEntropy, Weighted, class_mix, correct_labels, fit_learning_curve,
                               named_classes, objective, pick_classes, reliable_pixels, slowed, spoil, steps_inside)

CLASSES = 5


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


def fixed(logits): return lambda images: logits


def lesson_of(random, n=4, side=12, **more):
    labels = torch.randint(0, CLASSES, (n, side // 4, side // 4), generator=random).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :1] = IGNORE
    return Lesson(torch.rand(n, 3, side, side, generator=random), labels, torch.rand(n, side, side, generator=random), CLASSES, **more)


def logits_of(random, lesson): return 3 * torch.randn(len(lesson.labels), CLASSES, *lesson.labels.shape[1:], generator=random)


def probability_of(logits, labels): return logits.softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]


# ---- one network

def test_plain_is_torchs_mean(random):
    lesson = lesson_of(random)
    logits = logits_of(random, lesson)
    torch.testing.assert_close(Plain()([fixed(logits)], lesson), F.cross_entropy(logits, lesson.labels))


@pytest.mark.parametrize('made, weight', [(IgnoreBand(.6), lambda r: float(r >= .6)), (Weighted(), lambda r: r), (URN(.3, .1), lambda r: 1. if r > .3 else .1)])
def test_weighted_means(random, made, weight):
    lesson = lesson_of(random, n=2)
    logits = logits_of(random, lesson)
    top = bottom = 0.
    for value, label, trust in zip(F.cross_entropy(logits, lesson.labels, reduction='none').flatten(), lesson.labels.flatten(), lesson.reliability.flatten()):
        if label == IGNORE: continue
        top, bottom = top + weight(trust.item()) * value.item(), bottom + weight(trust.item())
    assert made([fixed(logits)], lesson).item() == pytest.approx(top / bottom, rel=1e-4)


@pytest.mark.parametrize('made, penalty', [
    (GeneralisedCrossEntropy(.7), lambda p: (1 - p ** .7) / .7), (GeneralisedCrossEntropy(1.), lambda p: 1 - p),
    (SymmetricCrossEntropy(), lambda p: -.1 * math.log(p) + (1 - p) * -math.log(1e-4)), (SymmetricCrossEntropy(6., .1), lambda p: -6 * math.log(p) - .1 * (1 - p) * math.log(1e-4))])
def test_penalties(random, made, penalty):
    lesson = lesson_of(random, n=2)
    logits = logits_of(random, lesson)
    counted = probability_of(logits, lesson.labels)[lesson.labels != IGNORE].tolist()
    assert made([fixed(logits)], lesson).item() == pytest.approx(np.mean([*map(penalty, counted)]), rel=1e-4)


def test_truncation_drops_what_does_not_fit(random):
    early, late = lesson_of(torch.Generator().manual_seed(1), gone=.1), lesson_of(torch.Generator().manual_seed(1), gone=.5)
    logits = logits_of(random, early)
    p = probability_of(logits, late.labels)
    fits = (p > .5) & (late.labels != IGNORE)
    made = GeneralisedCrossEntropy(truncate=.5)
    assert made([fixed(logits)], late).item() == pytest.approx(((1 - p[fits] ** .7) / .7).mean().item(), rel=1e-4)
    torch.testing.assert_close(made([fixed(logits)], early), GeneralisedCrossEntropy()([fixed(logits)], early))


@pytest.mark.parametrize('name', OBJECTIVES)
def test_nothing_to_learn_from_is_zero_and_void_has_no_gradient(random, name):
    made, lesson = objective(name), lesson_of(random)
    logits = [logits_of(random, lesson).requires_grad_() for _ in range(made.networks)]
    empty = Lesson(lesson.images, torch.full_like(lesson.labels, IGNORE), lesson.reliability, CLASSES, 1., [fixed(one.detach()) for one in logits])
    value = made([fixed(one) for one in logits], empty)
    assert value == 0
    value.backward()
    assert all(one.grad is None or (one.grad == 0).all() for one in logits)
    for one in logits: one.grad = None
    if name == 'co_training': made = CoTraining(mix=0.)
    made([fixed(one) for one in logits], lesson).backward()
    for one in logits: assert (one.grad[:, :, :1] == 0).all() and one.grad[:, :, 1:].abs().sum() > 0


# ---- which pixels to rely on

def slow_reliable(labels, trust, share):
    found = np.zeros(labels.shape, bool)
    for image in range(len(labels)):
        for c in set(labels[image].flatten().tolist()) - {IGNORE}:
            values = sorted(trust[image][labels[image] == c].tolist(), reverse=True)
            least = values[max(1, math.ceil(len(values) * share)) - 1]
            found[image] |= (labels[image] == c) & (trust[image] >= least)
    return found


@pytest.mark.parametrize('share', [.01, .3, .5, 1.])
def test_reliable_pixels(random, share):
    lesson = lesson_of(random)
    coarse = (lesson.reliability * 5).round() / 5  # with ties
    for trust in (lesson.reliability, coarse):
        assert np.array_equal(reliable_pixels(lesson.labels, trust, share).numpy(), slow_reliable(lesson.labels.numpy(), trust.numpy(), share))


def test_permuting_classes_changes_nothing(random):
    lesson, order = lesson_of(random), torch.randperm(CLASSES, generator=random)
    renamed = torch.where(lesson.labels == IGNORE, IGNORE, order[lesson.labels.clamp(min=0)])
    assert torch.equal(reliable_pixels(renamed, lesson.reliability), reliable_pixels(lesson.labels, lesson.reliability))


# ---- class-mix

def test_half_of_the_classes_are_picked():
    labels = torch.tensor([[[0, 1, 1, 2], [3, 3, IGNORE, 0]], [[0, 0, 0, 0], [4, 4, 4, 4]], [[0] * 4, [0] * 4]])
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        picked = pick_classes(labels, CLASSES)
        classes = [frozenset(one[where].tolist()) for one, where in zip(labels, picked)]
        seen.add(classes[0])
        assert len(classes[0]) == 2 and classes[1] == {4} and classes[2] == set()  # two of three, rounded up; never the background
        assert not picked[(labels == 0) | (labels == IGNORE)].any()
        for one, where, found in zip(labels, picked, classes): assert where.sum() == sum((one == c).sum() for c in found)  # whole classes
    assert seen == {frozenset(p) for p in ((1, 2), (1, 3), (2, 3))}
    torch.manual_seed(0)
    assert pick_classes(labels, CLASSES, None)[2].all()  # a class set that fills the image
    usable = torch.zeros_like(labels, dtype=torch.bool)
    usable[1, 1, 0] = True
    assert pick_classes(labels, CLASSES, usable=usable).sum() == 1


def test_pasting(random):
    lesson = lesson_of(random, n=4)
    reliable, pasted = torch.rand(4, 12, 12, generator=random) > .5, torch.zeros(4, 12, 12, dtype=torch.bool)
    pasted[2, 3:7, 4:9] = True
    mixed = class_mix(lesson.images, lesson.labels, reliable, pasted)
    inside = np.s_[3:7, 4:9]
    assert torch.equal(mixed.labels[0][inside], lesson.labels[2][inside]) and torch.equal(mixed.reliable[0][inside], reliable[2][inside])
    assert torch.equal(mixed.images[0][:, 3:7, 4:9], lesson.images[2][:, 3:7, 4:9])
    outside = torch.ones(12, 12, dtype=torch.bool)
    outside[inside] = False
    assert torch.equal(mixed.labels[0][outside], lesson.labels[0][outside]) and torch.equal(mixed.images[0][:, outside], lesson.images[0][:, outside])
    for i in (1, 2, 3): assert torch.equal(mixed.labels[i], lesson.labels[i]) and mixed.border[i].sum() == 0
    assert mixed.border[0].sum() == 6 * 7 - 2 * 3  # a ring of two pixels: dilated less eroded


# ---- two networks

def published(**changes): return CoTraining(**{**BECO, **changes})


def slow_co_training(logits, labels, reliable, border, weight):
    "The formula, pixel by pixel."
    told, known, total = [one.argmax(1) for one in logits], labels != IGNORE, 0.
    for own, other in ((0, 1), (1, 0)):
        for n, y, x in known.nonzero().tolist():
            log = logits[own][n, :, y, x].log_softmax(0)
            total -= (log[labels[n, y, x]] * (1 + weight * border[n, y, x]) if reliable[n, y, x] else log[told[other][n, y, x]]).item()
    return total / known.sum().item()


def test_co_training_is_its_formula(random):
    lesson = lesson_of(random)
    logits = [logits_of(random, lesson) for _ in range(2)]
    expected = slow_co_training(logits, lesson.labels, reliable_pixels(lesson.labels, lesson.reliability), torch.zeros(lesson.labels.shape), 0.)
    assert published(mix=0.)([*map(fixed, logits)], lesson).item() == pytest.approx(expected, rel=1e-4)


def test_co_training_mixes_by_masks_first(random):
    lesson = lesson_of(random, gone=.05)
    logits = [logits_of(random, lesson) for _ in range(2)]
    torch.manual_seed(3)
    torch.rand(())
    pasted = pick_classes(lesson.labels, CLASSES)
    mixed = class_mix(lesson.images, lesson.labels, reliable_pixels(lesson.labels, lesson.reliability), pasted)
    torch.manual_seed(3)
    expected = slow_co_training(logits, mixed.labels, mixed.reliable, mixed.border, .2)
    assert published(mix=1.)([*map(fixed, logits)], lesson).item() == pytest.approx(expected, rel=1e-4)


def test_co_training_mixes_by_what_both_are_sure_of_later(random):
    lesson = lesson_of(random)
    judged = [4 * logits_of(random, lesson) for _ in range(2)]
    later = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, .5, [*map(fixed, judged)])
    sureness, agreed = ((judged[0] + judged[1]) / 2).softmax(1).max(1)
    agreed[lesson.labels == IGNORE] = IGNORE
    assert .2 < (sureness > .95).float().mean() < .95
    torch.manual_seed(3)
    torch.rand(())
    mixed = class_mix(lesson.images, agreed, sureness > .95, pick_classes(agreed, CLASSES, usable=sureness > .95))
    logits = [logits_of(random, lesson) for _ in range(2)]
    torch.manual_seed(3)
    assert published(mix=1.)([*map(fixed, logits)], later).item() == pytest.approx(slow_co_training(logits, mixed.labels, mixed.reliable, mixed.border, .2), rel=1e-4)


def test_networks_learn_alone_first(random):
    lesson = lesson_of(random, gone=.2)
    logits = [logits_of(random, lesson) for _ in range(2)]
    expected = sum(F.cross_entropy(one, lesson.labels).item() for one in logits)
    assert CoTraining(mix=0., alone=.3)([*map(fixed, logits)], lesson).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(CoTraining(mix=0., alone=.1)([*map(fixed, logits)], lesson), CoTraining(mix=0., alone=0.)([*map(fixed, logits)], lesson))


def test_the_average_is_asked_and_believed_where_it_is_sure(random):
    lesson = lesson_of(random)
    logits, judged = [logits_of(random, lesson) for _ in range(2)], [logits_of(random, lesson) for _ in range(2)]
    later = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, .5, [*map(fixed, judged)])
    reliable, expected = reliable_pixels(lesson.labels, lesson.reliability), 0.
    for own, other in zip(logits, reversed(judged)):
        sureness, said = other.softmax(1).max(1)
        target = torch.where(reliable | (sureness <= .7), lesson.labels, said).masked_fill(lesson.labels == IGNORE, IGNORE)
        assert .05 < (target != lesson.labels).float().mean() < .6
        expected += F.cross_entropy(own, target)
    torch.testing.assert_close(CoTraining(trust=.7, trust_background=.7, named=False)([*map(fixed, logits)], later), expected)
    torch.testing.assert_close(CoTraining(trust=0., trust_background=0., named=False, average=False)([*map(fixed, logits)], later), published(mix=0.)([*map(fixed, logits)], later))


def test_a_network_may_add_objects_that_the_mask_names(random):
    """Pixel by pixel: it is asked among the classes of the mask, and its word for the background does not count."""
    lesson = lesson_of(random)
    judged = [3 * logits_of(random, lesson) for _ in range(2)]
    later = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, .5, [*map(fixed, judged)])
    logits, reliable, expected, changed = [logits_of(random, lesson) for _ in range(2)], reliable_pixels(lesson.labels, lesson.reliability), 0., 0
    for own, other in zip(logits, reversed(judged)):
        target = lesson.labels.clone()
        for n, y, x in ((lesson.labels != IGNORE) & ~reliable).nonzero().tolist():
            named = sorted({0, *lesson.labels[n].unique().tolist()} - {IGNORE})
            shares = other[n, named, y, x].softmax(0)
            best = named[int(shares.argmax())]
            if best != 0 and shares.max() > .8: target[n, y, x] = best
        changed += (target != lesson.labels).sum()
        expected += F.cross_entropy(own, target)
    assert changed > 10
    torch.testing.assert_close(CoTraining()([*map(fixed, logits)], later), expected)


@pytest.mark.parametrize(('background', 'named'), [(0, [[0, 2, 3], [0, 4], [0, 1, 2, 3, 4]]), (None, [[2, 3], [4], [0, 1, 2, 3, 4]])])
def test_which_classes_a_mask_names(background, named):
    labels = torch.tensor([[[2, 3], [3, IGNORE]], [[4, 4], [4, 4]], [[IGNORE, IGNORE], [IGNORE, IGNORE]]])
    if background == 0: named = [*named[:2], [0]]
    assert [row.nonzero()[:, 0].tolist() for row in named_classes(labels, 5, background)] == named


def test_nobody_is_asked_before_its_time(random):
    lesson, asked = lesson_of(random, gone=.3), []
    early = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, .3, [lambda images: asked.append(images)] * 2)
    logits = [logits_of(random, lesson) for _ in range(2)]
    torch.testing.assert_close(CoTraining()([*map(fixed, logits)], early), sum(F.cross_entropy(one, lesson.labels) for one in logits))
    assert not asked


def test_each_network_is_shown_the_mixed_images(random):
    lesson, seen = lesson_of(random), []
    logits = logits_of(random, lesson)
    torch.manual_seed(3)
    CoTraining(mix=1.)([lambda images: seen.append(images) or logits] * 2, lesson)
    assert torch.equal(*seen) and not torch.equal(seen[0], lesson.images)


def test_no_network_learns_from_itself(random):
    "The gradient of one network through what it tells the other is cut."
    lesson = lesson_of(random)
    first, second = (logits_of(random, lesson).requires_grad_() for _ in range(2))
    published(mix=0., share=1e-9)([fixed(first), fixed(second)], lesson).backward()
    known, size = lesson.labels != IGNORE, (lesson.labels != IGNORE).sum()
    reliable = reliable_pixels(lesson.labels, lesson.reliability, 1e-9)
    target = torch.where(reliable, lesson.labels, second.detach().argmax(1))
    wanted = (first.detach().softmax(1) - F.one_hot(target.clamp(min=0), CLASSES).movedim(-1, 1)) * known[:, None] / size
    torch.testing.assert_close(first.grad, wanted)


def test_co_teaching_exchanges_the_easy_pixels(random):
    lesson = lesson_of(random, gone=1.)
    logits = [logits_of(random, lesson) for _ in range(2)]
    values = [F.cross_entropy(one, lesson.labels, reduction='none') for one in logits]
    easy = [torch.from_numpy(slow_reliable(lesson.labels.numpy(), -value.numpy(), .7)) for value in values]
    expected = values[0][easy[1]].mean() + values[1][easy[0]].mean()
    assert CoTeaching(noise=.3)([*map(fixed, logits)], lesson).item() == pytest.approx(expected.item(), rel=1e-4)
    begun = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, 0.)
    assert CoTeaching(noise=.3)([*map(fixed, logits)], begun).item() == pytest.approx(sum(F.cross_entropy(one, lesson.labels).item() for one in logits), rel=1e-4)


def test_self_training_relabels_what_is_unreliable(random):
    lesson = lesson_of(random)
    judged, logits = 4 * logits_of(random, lesson), logits_of(random, lesson)
    later = Lesson(lesson.images, lesson.labels, lesson.reliability, CLASSES, .5, [fixed(judged)])
    reliable, (sureness, told) = reliable_pixels(lesson.labels, lesson.reliability), judged.softmax(1).max(1)
    renewed = torch.where(reliable, lesson.labels, told)
    renewed[(lesson.labels == IGNORE) | ~reliable & (sureness <= .95)] = IGNORE
    torch.testing.assert_close(SelfTraining()([fixed(logits)], later), F.cross_entropy(logits, renewed))
    torch.testing.assert_close(SelfTraining()([fixed(logits)], lesson), F.cross_entropy(logits, lesson.labels))  # before the average is asked


@pytest.mark.parametrize('name, changes, message', [('beco', {}, 'co_training'), ('plain', dict(share=.5), 'it has none'), ('co_training', dict(shere=.5), 'it has share, alone'), ('co_teaching', dict(noise=2.), 'from 0 to 1'), ('gce', dict(q=0.), 'above 0'),
                                                    ('sce', dict(alpha=-1.), 'from 0')])
def test_refusals(name, changes, message):
    with pytest.raises(ValueError, match=message): objective(name, **changes)


# ---- labels that are corrected

def test_a_curve_is_found_again():
    times = np.arange(1, 16)
    for a, b, c in ((.8, .7, 1.3), (.5, .3, 4.), (.95, 1., .6)):
        curve = a * (1 - np.exp(-times ** b / c))
        found = fit_learning_curve(curve)
        assert np.abs(found[0] * (1 - np.exp(-times ** found[1] / found[2])) - curve).max() < 2e-3
    noisy = curve + np.where(times < 4, .2, 0)  # the first passes count little
    found = fit_learning_curve(noisy)
    assert np.abs(found[0] * (1 - np.exp(-times ** found[1] / found[2])) - curve)[8:].max() < .02


def test_a_class_is_learned_when_its_slope_has_fallen():
    assert [round(slowed(.7, 1.3, t), 3) for t in range(2, 7)] == [.498, .705, .813, .876, .915]
    times = np.arange(1, 7)
    curves = np.stack([.8 * (1 - np.exp(-times ** .7 / 1.3)), times / 20, np.full(6, np.nan), np.zeros(6)], 1)
    assert ADELE().learned(curves) == [0] and ADELE().learned(curves[:5]) == [] and ADELE(ratio=.5).learned(curves[:2]) == []


def test_labels_are_corrected_within_limits(random):
    labels = torch.full((10, 10), 1, dtype=torch.uint8)
    labels[:, 6:], labels[0] = 0, 255
    told = torch.zeros(4, 10, 10)
    told[0], told[1, 5:], told[0, 5:], told[3, 8] = .1, .9, .1, .95
    told[1, 1:5] = .85
    corrected = correct_labels(labels, told, [1])
    assert (corrected[0] == 255).all() and (corrected[[1, 2, 3, 4, 5, 6, 7, 9]] == 1).all()
    assert torch.equal(corrected[8], labels[8])  # class 3 is not in the image
    assert torch.equal(correct_labels(labels, told, [1], confidence=.95), labels)
    assert torch.equal(correct_labels(labels, told, [2]), labels)  # not learned yet
    gone = torch.zeros(4, 10, 10)
    gone[0] = 1
    assert torch.equal(correct_labels(labels[1:], gone[:, 1:], [1]), labels[1:])  # the object would vanish
    assert (correct_labels(labels[1:], gone[:, 1:] * .5, [1]) == labels[1:]).all()


def test_adele_asks_for_one_answer_at_all_sizes(random):
    lesson, seen = lesson_of(random), []
    logits = [logits_of(random, lesson) for _ in range(3)]
    replies = iter(logits)

    def network(images):
        seen.append(tuple(images.shape[-2:]))
        return next(replies)
    value = ADELE()([network], lesson)
    assert seen == [(12, 12), (32, 32), (32, 32)]
    shares = torch.stack([one.softmax(1) for one in logits])
    mean, known = shares.mean(0).clamp(1e-3, 1 - 1e-3), lesson.labels != IGNORE
    apart = sum(torch.xlogy(p, p / mean).sum(1) for p in shares)
    assert (mean.amax((1, 2, 3)) > .8).all()
    expected = sum(F.cross_entropy(one, lesson.labels) for one in logits) / 3 + apart[known].mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


# ---- spoiled masks

def test_steps_inside_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    where = rng.random((12, 15)) < .9
    outside = np.argwhere(~where)
    expected = [[0 if not where[y, x] else np.abs(outside - (y, x)).max(1).min() for x in range(15)] for y in range(12)]
    assert np.array_equal(steps_inside(where), expected)
    assert np.array_equal(steps_inside(np.ones((3, 4), bool)), np.ones((3, 4)))  # nothing outside


@pytest.mark.parametrize('how', SPOILS)
def test_a_spoiled_mask_is_wrong_where_it_should_be(how):
    labels = np.zeros((40, 40), np.uint8)
    labels[5:15, 5:15], labels[25:33, 20:35], labels[:2] = 1, 3, 255
    spoiled = spoil(labels, how, .3, 5, seed=1)
    assert spoiled.dtype == labels.dtype and np.array_equal(spoiled == 255, labels == 255)
    assert np.array_equal(spoil(labels, how, 0., 5, seed=1), labels) and np.array_equal(spoil(labels, how, .3, 5, seed=1), spoiled)
    sizes = {c: ((labels == c).sum(), (spoiled == c).sum()) for c in (1, 3)}
    if how == 'eroded': assert all(after == round(.7 * before) and (labels[spoiled == c] == c).all() for c, (before, after) in sizes.items())
    if how == 'dilated': assert all(after == round(1.3 * before) and (spoiled[labels == c] == c).all() for c, (before, after) in sizes.items())
    if how == 'shifted':
        for c, (before, after) in sizes.items():
            assert after == before
            moved = np.argwhere(spoiled == c).mean(0) - np.argwhere(labels == c).mean(0)
            assert np.hypot(*moved) == pytest.approx(.3 * before ** .5, abs=.8)
    if how in ('dropped', 'swapped'):
        seen = [spoil(labels, how, .3, 5, seed=k) for k in range(200)]
        assert .2 < np.mean([(one[labels == 1] != 1).all() for one in seen]) < .4
        assert all((one[labels == 1] == one[5, 5]).all() and (one[labels == 0] == 0).all() for one in seen)
        assert {int(one[5, 5]) for one in seen} == ({0, 1} if how == 'dropped' else {1, 2, 3, 4})


def test_dilating_into_a_full_picture_changes_nothing():
    full = np.ones((8, 8), np.uint8)
    assert np.array_equal(spoil(full, 'dilated', .5, 3), full)


@pytest.mark.parametrize('how, rate, message', [('melted', .1, 'eroded'), ('eroded', 1.5, 'from 0 to 1')])
def test_spoiling_is_checked(how, rate, message):
    with pytest.raises(ValueError, match=message): spoil(np.zeros((4, 4), np.uint8), how, rate, 3)
