"What a generator and a segmenter say together."
import numpy as np
import pytest
import torch

from synseg_kit.agreement import COUNTED, agree, class_shares, match_shares
from synseg_kit.classes import ClassSet

PETS = ClassSet('pets', ('cat', 'dog', 'grass'), None)


def chances(count=4, side=32, seed=0, classes=3):
    return [*(2 * torch.randn(count, classes, side, side, generator=torch.Generator().manual_seed(seed))).softmax(1)]


def test_shares_are_those_of_the_most_probable_class():
    maps = torch.zeros(3, 10, 10)
    maps[0, :2], maps[1, 2:5], maps[2, 5:] = 1, 1, 1
    assert torch.allclose(class_shares([maps]), torch.tensor([.2, .3, .5]))
    assert torch.allclose(class_shares([maps, torch.ones(3, 10, 10) * torch.tensor([0, 1, 0])[:, None, None]]), torch.tensor([.1, .65, .25]))


def test_large_images_are_counted_in_part_and_rightly():
    maps = torch.zeros(2, 300, 500)
    maps[0, :, :100], maps[1, :, 100:] = 1, 1
    assert maps[0].numel() > 2 * COUNTED
    assert torch.allclose(class_shares([maps]), torch.tensor([.2, .8]), atol=.01)


@pytest.mark.parametrize('wanted', [(1 / 3, 1 / 3, 1 / 3), (.05, .9, .05), (.6, .3, .1)])
def test_a_set_gets_the_shares_it_should_have(wanted):
    matched = match_shares(chances(), torch.tensor(wanted))
    assert torch.allclose(torch.stack(matched).mean((0, 2, 3)), torch.tensor(wanted), atol=2e-3)
    assert torch.allclose(torch.stack(matched).sum(1), torch.ones(4, 32, 32), atol=1e-5)


def test_each_class_is_weighed_by_one_number_for_all_images():
    before, after = torch.stack(chances()), torch.stack(match_shares(chances(), torch.tensor([.2, .5, .3])))
    odds = (after[:, 0] / after[:, 1]) / (before[:, 0] / before[:, 1])
    assert torch.allclose(odds, odds.mean(), rtol=1e-3)


def test_what_cannot_be_stays_impossible_and_what_nobody_knows_is_not_weighed():
    some = chances()
    some[0][2] = 0
    matched = match_shares(some, torch.tensor([.2, .2, .6]))
    assert not matched[0][2].any() and all(one.isfinite().all() for one in matched)
    nowhere = [one * torch.tensor([1., 1., 0.])[:, None, None] for one in chances()]
    assert all(one.isfinite().all() and not one[2].any() for one in match_shares(nowhere, torch.tensor([.2, .2, .6])))
    assert torch.allclose(torch.stack(match_shares(chances(), torch.zeros(3))), torch.stack(chances()), atol=1e-6)


def test_what_a_segmenter_expects_of_all_images_alike_changes_nothing():
    images, told = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(seed=2)
    bias = torch.tensor([20., 1., .1])[:, None, None]
    fair, biased = agree(chances(), told, images, PETS, None), agree([one * bias for one in chances()], told, images, PETS, None)
    assert np.mean([(a.labels == b.labels).mean() for a, b in zip(fair, biased)]) > .999


@pytest.mark.parametrize('borders', [True, False])
def test_no_class_is_given_where_it_cannot_be(borders):
    images, told = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(2, seed=2)
    told[0][1], told[1][[0, 1]] = 0, 0
    masks = agree(chances(2), told, images, PETS, **({} if borders else {'crf': None}))
    assert set(np.unique(masks[0].labels)) == {0, 2} and set(np.unique(masks[1].labels)) == {2}
    assert masks[0].labels.dtype == PETS.dtype
    for mask in masks: assert mask.reliability.shape == (32, 32) and 0 <= mask.reliability.min() and mask.reliability.max() <= 1


def test_it_does_not_matter_how_many_images_are_refined_at_once(monkeypatch):
    images, told = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(5, seed=2)
    together = agree(chances(5), told, images, PETS)
    monkeypatch.setattr('synseg_kit.agreement.AT_ONCE', 2)
    for a, b in zip(together, agree(chances(5), told, images, PETS), strict=True): assert np.array_equal(a.labels, b.labels)


def test_bad_input_is_told_what_is_needed():
    images = torch.rand(4, 3, 32, 32)
    with pytest.raises(ValueError, match='each image needs both'): agree(chances(3), chances(), images, PETS)
    with pytest.raises(ValueError, match=r'needed is \[3, 32, 32\]'): agree(chances(side=16), chances(side=16), images, PETS)
    with pytest.raises(ValueError, match='at least one image'): class_shares([])
    with pytest.raises(ValueError, match='image 1: the generator holds no class'): agree(chances(2), [chances()[0], torch.zeros(3, 32, 32)], images[:2], PETS)
    with pytest.raises(ValueError, match='at least one image'): match_shares([], torch.ones(3) / 3)
