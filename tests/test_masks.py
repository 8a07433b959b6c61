"""Masks: the value and the parts that recipes are made of, each against a plain reference."""
import numpy as np
import pytest
import torch
from references import slow_otsu
from synseg_kit.masks import PseudoMask, component_areas, connected_components, decide, is_flat, normalise, otsu, rank_reliability, score_stack


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


# ---- the value


@pytest.mark.parametrize('labels, reliability, message', [
    (np.zeros((2, 2), np.int64), np.ones((2, 2), np.float32), 'uint8 or uint16'), (np.zeros(4, np.uint8), np.ones(4, np.float32), 'uint8 or uint16'),
    (np.zeros((2, 2), np.uint8), np.ones((2, 3), np.float32), 'one shape'), (np.zeros((2, 2), np.uint8), np.ones((2, 2)), 'float32'),
    (np.zeros((2, 2), np.uint8), np.full((2, 2), 1.5, np.float32), '0 to 1'), (np.zeros((2, 2), np.uint8), np.full((2, 2), np.nan, np.float32), 'nan')])
def test_pseudo_masks_are_validated(labels, reliability, message):
    with pytest.raises(ValueError, match=message): PseudoMask(labels, reliability)


def test_pseudo_masks_are_frozen_and_tell_what_they_hold():
    mask = PseudoMask(np.uint16([[0, 300]]), np.float32([[0, 1]]))
    with pytest.raises(AttributeError): mask.labels = None
    assert repr(mask) == 'PseudoMask 1x2, ids 0 300, mean reliability 0.50'


# ---- scores


def test_normalise(random):
    heat = torch.rand(3, 2, 5, 7, generator=random) * torch.tensor([1e-4, 1., 1e4]).view(3, 1, 1, 1)
    heat[1, 1] = .25
    stretched = normalise(heat)
    assert stretched[1, 1].max() == 0 and (stretched.amin((-2, -1)) == 0).all()
    others = torch.ones(3, 2, dtype=torch.bool)
    others[1, 1] = False
    assert (stretched.amax((-2, -1))[others] == 1).all()
    assert torch.allclose(stretched[0], normalise(3 * heat[0] + 1e-3), atol=1e-3) and torch.equal(normalise(heat[0]), stretched[0])


def test_flat_is_flat_up_to_rounding():
    heat = torch.full((3, 4, 4), .7)
    heat[1, 0, 0], heat[2, 0, 0] = .7 * (1 + 1e-7), .7 * (1 + 1e-5)
    assert is_flat(heat).tolist() == [True, True, False] and is_flat(torch.zeros(2, 4, 4)).all()


@pytest.mark.parametrize('beta', [-.4, 0.0, .2, .5])
def test_one_class_is_a_threshold(beta, random):
    heat = torch.rand(1, 1, 32, 32, generator=random)
    assert torch.equal(score_stack(heat, beta).argmax(1).bool(), heat[:, 0] > (1 - beta) / 2)


def test_scores_of_several_classes(random):
    heat = torch.rand(2, 3, 4, 4, generator=random)
    scores = score_stack(heat, .1)
    assert torch.equal(scores[:, 1:], heat) and torch.allclose(scores[:, 0], 1 - heat.max(1).values - .1)
    assert torch.equal(score_stack(heat, .1, background=False), heat)


# ---- decisions


def test_decide_and_rank(random):
    scores = torch.rand(2, 4, 16, 16, generator=random)
    winners, margin = decide(scores)
    ordered = scores.sort(1, descending=True).values
    assert torch.equal(winners, scores.argmax(1)) and torch.allclose(margin, ordered[:, 0] - ordered[:, 1])
    reliability = rank_reliability(winners, margin)
    for i in range(2):
        for c in range(4):
            mine = winners[i] == c
            expected = (margin[i][mine][:, None] >= margin[i][mine][None]).float().mean(1)
            assert torch.allclose(reliability[i][mine], expected, atol=1e-6)
            assert abs((reliability[i][mine] > .5).float().mean() - .5) < 1 / mine.sum() + 1e-6  # BECO's surer half
    assert reliability.min() > 0 and reliability.max() == 1
    assert torch.equal(rank_reliability(winners, 5 * margin), reliability)  # a rank: the scale of scores does not matter


def test_equal_margins_rank_alike_and_classes_apart():
    winners, margin = torch.tensor([[[0, 0, 2], [2, 2, 0]]]), torch.tensor([[[.5, .5, .1], [.1, .9, .2]]])
    assert torch.allclose(rank_reliability(winners, margin), torch.tensor([[[1, 1, 2 / 3], [2 / 3, 1, 1 / 3]]]))


def test_decide_with_one_score(): assert decide(torch.full((1, 1, 2, 2), .3))[0].max() == 0


def slow_components(labels):
    "Flood fill."
    roots = -np.ones(labels.shape, int)
    for start in np.ndindex(labels.shape):
        if roots[start] >= 0: continue
        stack, root = [start], start[0] * labels.shape[1] + start[1]
        while stack:
            y, x = stack.pop()
            if roots[y, x] >= 0: continue
            roots[y, x] = root
            stack += [(b, a) for b, a in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if 0 <= b < labels.shape[0] and 0 <= a < labels.shape[1] and labels[b, a] == labels[y, x]]
    return roots


def test_components_equal_a_flood_fill(random):
    labels = torch.randint(0, 3, (4, 24, 17), generator=random)
    spiral = torch.zeros(1, 24, 17, dtype=torch.long)
    spiral[:, 1::2] = 1
    spiral[0, 1::4, 0] = spiral[0, 3::4, -1] = 0
    spiral[0, 0::4, :1] = spiral[0, 2::4, -1:] = 1  # one snake through the whole image
    for batch in (labels, spiral, labels > 0):
        roots = connected_components(batch.long())
        for image, found in zip(batch, roots): assert np.array_equal(found.numpy(), slow_components(image.numpy()))
    for image, found in zip(labels, component_areas(labels)):
        roots = slow_components(image.numpy())
        assert np.array_equal(found.numpy(), np.bincount(roots.ravel(), minlength=roots.size)[roots])


def test_otsu_equals_the_search(random):
    maps = torch.rand(3, 2, 20, 20, generator=random) ** torch.tensor([.5, 1, 4]).view(3, 1, 1, 1)
    found = otsu(maps)
    assert found.shape == (3, 2)
    for level, values in zip(found.flatten(), maps.flatten(0, 1)): assert abs(level.item() - slow_otsu(values.numpy())) <= 1 / 256 + 1e-6
