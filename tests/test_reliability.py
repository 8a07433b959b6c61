"""Reliability: every measure against a count by brute force, every map against its formula."""
import itertools
import json
import os

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from synseg_kit.attention import capture
from synseg_kit.classes import ClassSet
from synseg_kit.masks import PseudoMask, decide, normalise, score_stack
from synseg_kit.reliability import (FROM_SCORES, LEVELS, URN_EXPONENTS, Calibration, Tally, agreement, auroc_per_class, calibrate, calibration_error, combine, error_picture, error_rate,
                                    half_error_ratio, isotonic, load_calibration, margin_rank, margin_reliability, mean_auroc, response_scaling, risk_at, risk_coverage_area,
                                    score_deviation, show_calibration, show_reliability_row, show_risk_coverage, stability, trace_stability)
from tiny import generators, tiny_pipeline, tiny_prompt

LETTERS = ClassSet('letters', ('a', 'b', 'c'))


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


def judged(seed=0, shape=(3, 12, 14), classes=4, values=9):
    "Random reliability on a coarse scale, so that there are ties, with labels and truth that agree the more the more reliable; some void in both."
    rng = np.random.default_rng(seed)
    reliability = (rng.integers(values, size=shape) / (values - 1)).astype(np.float32)
    labels = rng.integers(classes, size=shape)
    truth = np.where(rng.random(shape) < .3 + .6 * reliability, labels, rng.integers(classes, size=shape))
    truth[rng.random(shape) < .1] = 255
    labels[rng.random(shape) < .1] = 255
    return reliability, labels.astype(np.uint8), truth.astype(np.uint8)


def counted(*judged, classes=4, levels=4096): return Tally(classes, levels=levels).update(*judged)


# ---- maps from scores


@pytest.mark.parametrize('name', FROM_SCORES)
def test_maps_from_scores_are_batched_and_stay_in_range(name, random):
    scores = torch.rand(3, 4, 10, 12, generator=random)
    reliability = FROM_SCORES[name](scores)
    assert reliability.shape == (3, 10, 12) and reliability.dtype == scores.dtype and reliability.min() >= 0 and reliability.max() <= 1
    for i in range(3): assert torch.equal(FROM_SCORES[name](scores[i:i + 1])[0], reliability[i])
    permuted = FROM_SCORES[name](scores[:, [2, 0, 3, 1]])  # which class is called what does not matter
    assert torch.allclose(permuted, reliability, atol=1e-6)
    assert torch.equal(FROM_SCORES[name](scores.flip(-1)), reliability.flip(-1))


def test_margin_and_its_rank(random):
    scores = torch.rand(2, 3, 8, 8, generator=random)
    winners, margin = decide(scores)
    assert torch.equal(margin_reliability(scores), margin)
    assert torch.allclose(margin_rank(7 * scores), margin_rank(scores))  # a rank: the scale does not matter
    assert torch.equal(margin_reliability(torch.tensor([1., -.2]).view(1, 2, 1, 1)), torch.ones(1, 1, 1))  # 1 at most


def slow_scaling(scores, exponents, settle=lambda scores: scores):
    "URN's formula for one image [s, h, w], class by class."
    kept = np.unique(scores.argmax(0))
    doubt = np.zeros(scores.shape[1:])
    for c in kept:
        hits = []
        for a in exponents:
            raised = scores.copy()
            raised[c] **= a
            hits.append(kept[settle(raised[kept]).argmax(0)] == c)
        doubt = np.maximum(doubt, np.var(hits, axis=0))
    return 1 - (doubt - doubt.min()) / (doubt.max() - doubt.min() + 1e-6)


@pytest.mark.parametrize('classes', [2, 5])
def test_response_scaling_is_the_formula(classes, random):
    scores = torch.rand(3, classes, 9, 7, generator=random)
    scores[1, -1] *= .2  # a class that hardly ever wins
    fast = response_scaling(scores)
    for image, found in zip(scores, fast): assert np.allclose(found, slow_scaling(image.double().numpy(), URN_EXPONENTS), atol=1e-5)
    assert np.allclose(response_scaling(scores, settle=lambda s: s), fast, atol=1e-6)
    assert len(np.unique(np.round(fast[0].numpy(), 4))) <= 4  # six decisions have four variances


def test_response_scaling_settles_before_it_decides(random):
    scores = torch.rand(2, 3, 8, 8, generator=random)

    def blur(scores): return torch.nn.functional.avg_pool2d(scores, 3, 1, 1)
    found = response_scaling(scores, (.5, 2.), blur)
    for i, image in enumerate(scores):
        assert np.allclose(found[i], slow_scaling(image.numpy().astype(float), (.5, 2.), lambda s: blur(torch.from_numpy(s)[None])[0].numpy()), atol=1e-5)


def test_response_scaling_has_no_doubt_where_one_class_has_it_all():
    alone = torch.stack([torch.full((4, 4), .9), torch.full((4, 4), .1)])[None]
    assert response_scaling(alone).min() == 1 and response_scaling(alone[:, :1]).min() == 1
    with pytest.raises(ValueError, match='at most 1, got 1.8'): response_scaling(2 * alone)
    with pytest.raises(ValueError, match='positive'): response_scaling(alone, (0., 1.))
    assert response_scaling(alone - .2).isfinite().all()  # a background's score may be below 0


# ---- variance


def test_stability_is_a_bound(random):
    steps = torch.rand(1, 3, 12, 12, generator=random) + .4 * torch.randn(500, 3, 12, 12, generator=random)
    mean, deviation = steps.mean(0, keepdim=True), steps.std(0, correction=0, keepdim=True)
    bound = stability(mean, deviation)[0]
    first, second = (steps.gather(1, mean.topk(2, 1).indices[:, [i]].expand(500, -1, -1, -1))[:, 0] for i in (0, 1))
    assert ((first > second).float().mean(0) >= bound - 1e-6).all() and bound.max() > .1


def test_stability_falls_with_variance_and_keeps_its_range(random):
    scores, deviation = torch.rand(2, 3, 6, 6, generator=random), torch.rand(2, 3, 6, 6, generator=random)
    maps = [stability(scores, factor * deviation) for factor in (0., .1, 1., 100.)]
    assert (maps[0] == 1).all() and all((a >= b).all() for a, b in itertools.pairwise(maps)) and maps[-1].min() >= 0
    assert torch.allclose(stability(5 * scores, 5 * deviation), maps[2], atol=1e-5)
    assert (stability(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)) == 0).all()  # a draw
    margin, spread = torch.tensor([.3, .1]).view(1, 2, 1, 1), torch.tensor([.05, .05]).view(1, 2, 1, 1)
    assert abs(stability(margin, spread).item() - .8) < 1e-6  # .2^2 / (.2^2 + .1^2)
    assert stability(scores[:, :1], deviation[:, :1]).shape == (2, 6, 6)
    with pytest.raises((ValueError, TypeError)): stability(scores, deviation[:1])


def test_deviation_on_the_scale_of_the_scores():
    heat = torch.tensor([[[0., 2.], [4., 1.]], [[3., 3.], [3., 3.]]])[None]  # spans 4, and flat
    found = score_deviation(heat, torch.full_like(heat, 4.), (2, 2))
    assert found.shape == (1, 3, 2, 2) and (found[0, 1] == .5).all() and (found[0, 2] == 1).all()
    assert (found[0, 0, 0, 1], found[0, 0, 1, 0]) == (.5, .5)  # the background takes that of the strongest class
    assert torch.equal(score_deviation(heat, torch.full_like(heat, 4.), (2, 2), background=False), found[:, 1:])


def test_stability_of_a_trace():
    pipe, prompts = tiny_pipeline(), [tiny_prompt('a cat and a mushroom'), tiny_prompt('the red ball')]
    with capture(pipe, prompts, variance=True) as trace: pipe([p.text for p in prompts], generator=generators(2), num_inference_steps=3, height=32, width=48, output_type='latent')
    for over in ('step', 'head'):
        maps = trace_stability(trace, (32, 48), over)
        assert [m.shape for m in maps] == [(32, 48)] * 2 and all(0 <= m.min() < m.max() <= 1 for m in maps)
    (_, heat), (_, variance) = trace.class_maps(1), trace.class_variance(1, 'head')
    scores = torch.nn.functional.interpolate(score_stack(normalise(heat[None])), (32, 48), mode='bilinear')
    assert torch.equal(stability(scores, score_deviation(heat[None], variance[None], (32, 48)))[0], maps[1])
    with pytest.raises(ValueError, match="'step' or 'head'"): trace_stability(trace, (32, 48), over='layer')


# ---- agreement and combination


def test_agreement_counts_votes():
    rng = np.random.default_rng(0)
    masks = [rng.integers(3, size=(2, 5, 6)).astype(np.uint8) for _ in range(4)]
    for mask in masks: mask[rng.random(mask.shape) < .2] = 255
    majority, third = agreement(masks), agreement([torch.from_numpy(m) for m in masks], chosen=2)
    for at in np.ndindex(masks[0].shape):
        votes = [int(m[at]) for m in masks]
        most = max([votes.count(v) for v in votes if v != 255], default=1)
        assert np.isclose(majority[at], (most - 1) / 3)
        assert np.isclose(third[at], 0 if votes[2] == 255 else (votes.count(votes[2]) - 1) / 3)


def test_agreement_takes_pseudo_masks_of_many_classes():
    one, other = (PseudoMask(np.uint16([[300, 0], [1000, id_]]), np.ones((2, 2), np.float32)) for id_ in (7, 8))
    assert agreement([one, other], void=1000).tolist() == [[1, 1], [0, 0]]
    assert agreement([one, one, other], void=1000).tolist() == [[1, 1], [0, .5]]
    with pytest.raises(ValueError, match='one shape'): agreement([one, np.zeros((3, 2), np.uint16)])
    with pytest.raises(ValueError, match='no mask 2'): agreement([one, other], chosen=2)
    with pytest.raises(ValueError, match='integers'): agreement([np.zeros((2, 2)), np.zeros((2, 2))])


def test_combination(random):
    maps = [torch.rand(2, 4, 4, generator=random) for _ in range(3)]
    assert torch.allclose(combine(maps), (maps[0] * maps[1] * maps[2]) ** (1 / 3), atol=1e-6)
    assert torch.allclose(combine(maps, 'product'), maps[0] * maps[1] * maps[2], atol=1e-6)
    assert torch.allclose(combine(maps, weights=(2, 1, 0)), (maps[0] ** 2 * maps[1]) ** (1 / 3), atol=1e-6)
    assert torch.allclose(combine([maps[0]] * 5), maps[0], atol=1e-6)
    assert combine([maps[0], torch.zeros_like(maps[0])]).max() == 0
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert combine([zero, one], weights=(0, 1)).min() == 1
    for wrong, message in ((dict(maps=[]), 'no maps'), (dict(maps=maps, how='sum'), "'mean' or 'product'"), (dict(maps=maps, weights=[1]), '3 numbers'), (dict(maps=maps, weights=[0] * 3), 'not all'),
                           (dict(maps=[maps[0], maps[1][:1]]), 'one shape')):
        with pytest.raises(ValueError, match=message): combine(**wrong)


# ---- counting


def test_streaming_equals_at_once():
    reliability, labels, truth = judged()
    at_once, streamed = counted(reliability, labels, truth), Tally(4)
    for one in zip(reliability, labels, truth): streamed.update(*one)
    merged = counted(reliability[0], labels[0], truth[0]).merge(counted(reliability[1:], labels[1:], truth[1:]))
    tensors = Tally(4).update(*map(torch.from_numpy, (reliability, labels, truth)))
    for other in (streamed, merged, tensors): assert torch.equal(other.counts, at_once.counts) and other.ignored == at_once.ignored
    assert at_once.metrics() == streamed.metrics() and json.loads(json.dumps(at_once.metrics())) == at_once.metrics()


def test_void_is_left_out():
    reliability, labels, truth = judged()
    tally, there = counted(reliability, labels, truth), truth != 255
    assert tally.counts.sum() == (there & (labels != 255)).sum() and tally.ignored == (there & (labels == 255)).sum()
    assert np.isclose(error_rate(tally.counts), (labels != truth)[there & (labels != 255)].mean())
    changed = np.where(there, reliability, 1 - reliability)  # what is said of void pixels does not matter
    assert torch.equal(counted(changed, labels, truth).counts, tally.counts)
    nothing = counted(reliability, np.full_like(labels, 255), truth)
    assert nothing.counts.sum() == 0 and nothing.metrics()['auroc'] is None and nothing.metrics()['error_rate'] is None and nothing.metrics()['ignored'] == 1
    assert nothing.metrics()['area'] is None and nothing.metrics()['half_error_ratio'] is None and nothing.metrics()['calibration_error'] is None


def test_void_may_be_another_id():
    tally = Tally(300, void=1000, levels=8).update(np.float32([[1, 1, 0]]), np.uint16([[255, 299, 1000]]), np.uint16([[255, 1000, 299]]))
    assert tally.counts.sum() == tally.counts[255, 7, 1] == 1 and tally.ignored == 1


def test_tally_refuses():
    reliability, labels, truth = judged()
    tally = Tally(4)
    for wrong, message in (((reliability[:, :3], labels, truth), 'one shape'), ((reliability, labels, truth[0]), 'one shape'), ((reliability + 1, labels, truth), 'from 0 to 1'),
                           ((reliability * np.nan, labels, truth), 'nan'), ((reliability, labels + np.uint8(3), truth), 'holds? id'), ((labels, labels, truth), 'floating point'),
                           ((reliability, reliability, truth), 'integers')):
        with pytest.raises(ValueError, match=message): tally.update(*wrong)
    assert tally.counts.sum() == 0
    with pytest.raises(ValueError, match='levels is 4096 here and 8 there'): tally.merge(Tally(4, levels=8))
    with pytest.raises(ValueError, match='two levels'): Tally(4, levels=1)


# ---- measures


def slow_auroc(reliability, right):
    "Compare every right pixel with every wrong one."
    r, w = reliability[right].astype(float), reliability[~right].astype(float)
    return np.nan if not len(r) or not len(w) else ((r[:, None] > w).mean() + .5 * (r[:, None] == w).mean())


@pytest.mark.parametrize('seed', range(3))
def test_auroc_is_a_count_of_pairs(seed):
    reliability, labels, truth = judged(seed)
    tally, seen = counted(reliability, labels, truth), (truth != 255) & (labels != 255)
    expected = [slow_auroc(reliability[seen & (labels == c)], (labels == truth)[seen & (labels == c)]) for c in range(4)]
    assert np.allclose(auroc_per_class(tally.counts), expected) and np.isclose(mean_auroc(tally.counts), np.mean(expected)) and min(expected) > .55


def test_auroc_skips_absent_classes():
    reliability, labels, truth = judged()
    few, many = counted(reliability, labels, truth), counted(reliability, labels, truth, classes=9)
    assert auroc_per_class(many.counts)[4:].isnan().all() and np.isclose(mean_auroc(many.counts), mean_auroc(few.counts))
    labels[labels == 2] = 1
    perfect = np.where(labels == 1, labels, truth)  # class 1 has no wrong pixel
    skipped = counted(reliability, labels, perfect).counts
    assert auroc_per_class(skipped)[[1, 2]].isnan().all() and np.isclose(mean_auroc(skipped), float(auroc_per_class(skipped)[[0, 3]].mean()))


def test_a_rising_stretch_changes_nothing():
    reliability, labels, truth = judged()
    plain = counted(reliability, labels, truth)
    for stretch in (lambda r: r ** 3, lambda r: .25 + .5 * r, lambda r: np.sqrt(r)):
        stretched = counted(stretch(reliability).astype(np.float32), labels, truth)
        assert mean_auroc(stretched.counts) == mean_auroc(plain.counts) and half_error_ratio(stretched.counts) == half_error_ratio(plain.counts)
        assert np.isclose(risk_coverage_area(stretched.counts), risk_coverage_area(plain.counts))
    turned = counted(1 - reliability, labels, truth)
    assert np.isclose(mean_auroc(turned.counts), 1 - mean_auroc(plain.counts))


def test_fine_levels_equal_ranks():
    rng = np.random.default_rng(0)
    reliability = (rng.permutation(4096) / 4095).astype(np.float32).reshape(64, 64)  # every level once
    right = rng.random((64, 64)) < reliability
    counts = Tally(1).update(reliability, np.zeros((64, 64), np.uint8), (~right).astype(np.uint8)).counts
    assert np.isclose(mean_auroc(counts), slow_auroc(reliability.ravel(), right.ravel()))


def slow_risk(reliability, wrong, coverage, tries=400):
    "The error rate of the most reliable pixels, ties in random order."
    rng, kept = np.random.default_rng(0), round(coverage * len(wrong))
    return np.mean([wrong[np.lexsort((rng.random(len(wrong)), -reliability))[:kept]].mean() for _ in range(tries)])


def test_risk_is_the_error_of_what_is_kept():
    reliability, labels, truth = judged()
    counts, seen = counted(reliability, labels, truth).counts, (truth != 255) & (labels != 255)
    wrong = labels != truth
    for coverage in (.1, .5, 1.): assert np.isclose(risk_at(counts, coverage)[0], slow_risk(reliability[seen], wrong[seen], coverage), atol=.01)
    share = [(labels == c)[seen].mean() for c in range(4)]
    mine = [seen & (labels == c) for c in range(4)]
    assert np.isclose(risk_at(counts, .5, by_class=True)[0], np.dot(share, [slow_risk(reliability[m], wrong[m], .5) for m in mine]), atol=.01)
    assert np.isclose(half_error_ratio(counts), risk_at(counts, .5, True)[0] / wrong[seen].mean()) and half_error_ratio(counts) < .9
    for wrong_coverage in (0, 1.1):
        with pytest.raises(ValueError, match='coverage'): risk_at(counts, wrong_coverage)


@pytest.mark.parametrize('by_class', [False, True])
def test_area_is_the_mean_risk(by_class):
    counts = counted(*judged()).counts
    fine = (np.arange(200_000) + .5) / 200_000
    assert np.isclose(risk_coverage_area(counts, by_class), risk_at(counts, fine, by_class).mean(), atol=1e-5)


def test_perfect_and_useless_maps():
    labels = np.zeros((20, 20), np.uint8)
    truth = labels.copy()
    truth[:8] = 1
    share = 8 / 20
    perfect, useless = (Tally(2).update(r, labels, truth).counts for r in ((truth == 0).astype(np.float32), np.full((20, 20), .3, np.float32)))
    assert mean_auroc(perfect) == 1 and mean_auroc(useless) == .5
    assert half_error_ratio(perfect) == 0 and np.isclose(half_error_ratio(useless), 1) and np.isclose(risk_coverage_area(useless), share)
    assert np.isclose(risk_coverage_area(perfect), share + (1 - share) * np.log(1 - share))  # the integral of (n - (1 - e)) / n from 1 - e on
    assert calibration_error(perfect) == 0 and np.isclose(calibration_error(useless), .3, atol=1e-3)  # says .3, is .6
    right = Tally(2).update(np.full((2, 2), .5), np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)).counts
    assert np.isnan(half_error_ratio(right)) and np.isnan(mean_auroc(right)) and risk_coverage_area(right) == 0


def test_calibration_error_is_the_mean_gap():
    reliability, labels, truth = judged()
    seen = (truth != 255) & (labels != 255)
    r, right = reliability[seen], (labels == truth)[seen]
    group = np.minimum((r * 15).astype(int), 14)
    expected = sum(abs(right[group == g].mean() - r[group == g].mean()) * (group == g).mean() for g in np.unique(group))
    assert np.isclose(calibration_error(counted(reliability, labels, truth).counts), expected, atol=1e-3)


# ---- calibration


def slow_isotonic(values, weights):
    "The best of all rising step functions: try every way to cut the sequence into blocks."
    best = (np.inf, None)
    for cuts in itertools.product((0, 1), repeat=len(values) - 1):
        blocks = np.concatenate([[0], np.cumsum(cuts)])
        means = np.array([np.average(values[blocks == b], weights=weights[blocks == b]) for b in range(blocks[-1] + 1)])
        if (np.diff(means) >= 0).all(): best = min(best, (float((weights * (means[blocks] - values) ** 2).sum()), tuple(means[blocks])))
    return np.array(best[1])


@pytest.mark.parametrize('seed', range(8))
def test_pooling_finds_the_best_rising_fit(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.random(8), rng.integers(1, 6, 8).astype(float)
    fitted = isotonic(values, weights)
    assert np.allclose(fitted, slow_isotonic(values, weights)) and (np.diff(fitted) >= 0).all()
    assert np.isclose((weights * fitted).sum(), (weights * values).sum()) and np.allclose(isotonic(fitted, weights), fitted)
    assert np.allclose(isotonic(np.sort(values), weights), np.sort(values)) and np.allclose(isotonic(-np.sort(values), np.ones(8)), -values.mean())


def test_isotonic_corner_cases():
    assert isotonic(np.zeros(0), np.zeros(0)).shape == (0,) and isotonic(np.array([.3]), np.array([2.])).tolist() == [.3]
    with pytest.raises(ValueError, match='positive'): isotonic(np.ones(2), np.array([1., 0.]))


def honest(pixels=255, classes=1):
    "Images in which a reliability of r is right in exactly a share r of the pixels, at all 256 levels: [256, pixels]."
    levels = np.repeat(np.arange(256)[:, None], pixels, 1)
    right = np.arange(pixels)[None] < levels * pixels // 255
    labels = np.zeros(levels.shape, np.uint8)
    return (levels / 255).astype(np.float32), labels, np.where(right, labels, 1).astype(np.uint8)


def test_what_is_calibrated_stays():
    reliability, labels, truth = honest()
    calibration = calibrate([reliability] * 2, [labels] * 2, [truth] * 2)
    assert np.allclose(calibration.table, np.arange(256) / 255) and calibration.error_before < 1e-6 and calibration.error_after < 1e-6
    between = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(calibration.apply(between), between, atol=1e-6)


def test_what_is_not_becomes_calibrated():
    reliability, labels, truth = honest()
    boastful = np.sqrt(reliability)
    calibration = calibrate([boastful] * 4, [labels] * 4, [truth] * 4)
    assert calibration.error_before > .1 and calibration.error_after < .01 and calibration.masks == 4
    assert np.abs(calibration.apply(torch.from_numpy(boastful)).numpy() - reliability).max() < .05
    assert repr(calibration).startswith('Calibration from 4 masks: calibration error 0.16')


def test_calibration_keeps_the_order_and_the_kind(random):
    reliability, labels, truth = judged(values=200)
    calibration = calibrate(list(reliability), list(labels), list(truth))
    r = torch.rand(2, 3, 5, generator=random)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        p = calibration.apply(r.to(dtype))
        assert p.dtype == dtype and p.shape == r.shape and (p.flatten()[r.to(dtype).flatten().sort(stable=True).indices].diff() >= 0).all()
    again = calibrate([torch.from_numpy(x) for x in reliability], list(labels), list(truth))
    assert np.array_equal(again.table, calibration.table)
    whole = calibrate([reliability], [labels], [truth])  # one batch is one mask: nothing is left to check it by
    assert np.allclose(whole.table, calibration.table) and whole.error_after is None
    void = labels == 255
    assert (calibration.apply(torch.from_numpy(reliability), torch.from_numpy(labels))[torch.from_numpy(void)] == 0).all()


def test_classes_get_tables_of_their_own():
    reliability, labels, truth = honest()
    second = np.where(truth == 0, 2, 3).astype(np.uint8)
    maps, said, there = [reliability, reliability, np.ones((2, 2), np.float32)], [labels, labels + np.uint8(2), np.full((2, 2), 4, np.uint8)], [truth, np.full_like(labels, 2), np.full((2, 2), 4, np.uint8)]
    there[1][:, :100] = second[:, :100]
    calibration = calibrate(maps, said, there, per_class=True)
    assert set(calibration.classes) == {0, 2} and np.allclose(calibration.classes[0], np.arange(256) / 255) and calibration.classes[2].mean() > .7
    r = torch.full((1, 3), .5)
    p = calibration.apply(r, torch.tensor([[0, 2, 4]]))
    assert abs(p[0, 0] - .5) < .01 and p[0, 1] > .7 and abs(p[0, 2] - calibration.table[127:129].mean()) < .01  # class 4 goes by all
    with pytest.raises(ValueError, match='give the labels'): calibration.apply(r)
    assert not calibrate(maps, said, there).classes and not calibrate(maps, said, there, per_class=True, least=10 ** 6).classes


def test_levels_without_pixels_lie_between():
    reliability = np.float32([[.2] * 10, [.8] * 10])
    truth = np.uint8([[0] * 4 + [1] * 6, [0] * 9 + [1]])
    table = calibrate([reliability], [np.zeros((2, 10), np.uint8)], [truth]).table
    assert np.allclose(table[[0, 51, 204, 255]], [.4, .4, .9, .9]) and (np.diff(table[51:205]) > 0).all()


def test_calibration_travels_as_json(tmp_path):
    reliability, labels, truth = judged(shape=(4, 40, 40), values=50)
    calibration = calibrate(list(reliability), list(labels), list(truth), per_class=True)
    file = calibration.save(tmp_path / 'calibration.json')
    read = load_calibration(file)
    assert np.array_equal(read.table, calibration.table) and set(read.classes) == set(calibration.classes) == {0, 1, 2, 3} and repr(read) == repr(calibration)
    assert all(np.array_equal(read.classes[c], calibration.classes[c]) for c in read.classes) and read.save(tmp_path / 'again.json').read_bytes() == file.read_bytes()
    file.write_text(json.dumps({'format': 2}))
    with pytest.raises(ValueError, match='format 2'): load_calibration(file)


def test_a_calibration_is_replaced_in_one_move(tmp_path, monkeypatch):
    reliability, labels, truth = judged(shape=(4, 40, 40), values=50)
    calibration = calibrate(list(reliability), list(labels), list(truth))
    file, other = calibration.save(str(tmp_path / 'calibration.json')), Calibration(np.linspace(0, 1, LEVELS))
    before = file.read_bytes()

    def stop(*_): raise OSError
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', stop)
        with pytest.raises(OSError): other.save(file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ['calibration.json']
    assert np.array_equal(load_calibration(other.save(file)).table, other.table)


def test_calibrated_masks():
    reliability, labels, truth = judged()
    mask = calibrate(list(reliability), list(labels), list(truth))(PseudoMask(labels[0], reliability[0]))
    assert np.array_equal(mask.labels, labels[0]) and mask.reliability.dtype == np.float32 and (mask.reliability[labels[0] == 255] == 0).all()


def test_calibrate_refuses():
    reliability, labels, truth = (list(x) for x in judged())
    for wrong, message in ((([], [], []), 'at least one image'), ((reliability, labels[:2], truth), '3 reliability maps, 2 masks'), ((reliability, labels, [t[:4] for t in truth]), 'image 0: .* one shape'),
                           (([r * 2 for r in reliability], labels, truth), 'image 0: .* 0 to 1'), ((reliability, truth, truth), 'pixels are right'),
                           ((reliability, labels, [np.full_like(t, 255) for t in truth]), 'everything is void'), ((reliability, labels, [np.full_like(t, 7) for t in truth]), 'pixels are wrong')):
        with pytest.raises(ValueError, match=message): calibrate(*wrong)
    falling = np.linspace(1, 0, LEVELS)
    with pytest.raises(ValueError, match='rising'): Calibration(falling)
    with pytest.raises(ValueError, match='class 3'): Calibration(falling[::-1].copy(), {3: falling})
    with pytest.raises(ValueError, match='from 0 to 1'): Calibration(falling[::-1].copy()).apply(torch.full((1, 1), 1.5))


# ---- pictures


def test_pictures():
    image, (reliability, labels, truth) = np.full((12, 14, 3), 200, np.uint8), (x[0] for x in judged())
    figure = show_reliability_row(image, labels, {'one': reliability, 'two': torch.from_numpy(reliability)}, LETTERS, truth=truth)
    assert isinstance(figure, Figure) and [ax.get_title(loc='left') for ax in figure.axes] == ['image', 'mask', 'wrong', 'one', 'two']
    assert len(show_reliability_row(image, labels, {'one': reliability}, LETTERS).axes) == 3
    picture = error_picture(labels, truth, image)
    orange = (picture == [0xD5, 0x5E, 0]).all(-1)
    assert np.array_equal(orange, (labels != truth) & (labels != 255) & (truth != 255))
    with pytest.raises(ValueError, match='one shape'): error_picture(labels, truth[:4], image)
    tallies = {'one': counted(*judged()), 'two': counted(*judged(1))}
    for by_class in (False, True):
        ax, = show_risk_coverage(tallies, by_class=by_class).axes
        drawn = {line.get_label(): line for line in ax.lines}
        assert len(drawn) == 4 and np.allclose(drawn['chance'].get_ydata(), error_rate(tallies['two'].counts))
        assert all((drawn[name].get_ydata() >= drawn['best possible'].get_ydata() - 1e-9).all() for name in drawn if name.startswith('two'))
    with pytest.raises(ValueError, match='no tallies'): show_risk_coverage({})
    calibration = calibrate(*(list(x) for x in judged()))
    assert len(show_calibration({'one': calibration}).axes[0].lines) == 2
    assert 'auroc' in tallies['one']._repr_markdown_()


# ---- on a GPU


@pytest.mark.gpu
def test_everything_stays_on_the_device(random):
    scores = torch.rand(2, 4, 32, 32, generator=random)
    for make in FROM_SCORES.values():
        there = make(scores.cuda())
        assert there.is_cuda and torch.allclose(there.cpu(), make(scores), atol=1e-5)
    reliability, labels, truth = (torch.from_numpy(x) for x in judged())
    tally = Tally(4).update(reliability.cuda(), labels.cuda(), truth)
    assert tally.counts.is_cuda and tally.metrics() == counted(reliability, labels, truth).metrics()
    calibration = calibrate(list(reliability.cuda()), list(labels), list(truth))
    assert calibration.apply(reliability.cuda(), labels.cuda()).is_cuda and agreement([labels.cuda()] * 2).is_cuda
