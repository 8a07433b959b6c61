"""Masks: every step against a plain reference, and the recipes' promises."""
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from synseg_kit.attention import capture, look
from synseg_kit.classes import ClassSet
from synseg_kit.masks import (PseudoMask, Refinement, attn2mask, attn2mask_batch, connected_components, decide, normalise, otsu, propagate, pseudo_masks, rank_reliability,
                              refine_scores, score_stack, threshold, threshold_batch, tiny_components)
from tiny import generators, tiny_pipeline, tiny_prompt


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


def blobs(count, size=16, seed=0):
    "Smooth maps with one or two hills each."
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(1, count, 4, 4, generator=g), (size, size), mode='bicubic')[0]


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


@pytest.mark.parametrize('beta', [-.4, 0.0, .2, .5])
def test_one_class_is_a_threshold(beta, random):
    heat = torch.rand(1, 1, 32, 32, generator=random)
    assert torch.equal(score_stack(heat, beta).argmax(1).bool(), heat[:, 0] > (1 - beta) / 2)


def test_scores_of_several_classes(random):
    heat = torch.rand(2, 3, 4, 4, generator=random)
    scores = score_stack(heat, .1)
    assert torch.equal(scores[:, 1:], heat) and torch.allclose(scores[:, 0], 1 - heat.max(1).values - .1)
    assert torch.equal(score_stack(heat, .1, background=False), heat)


@pytest.mark.parametrize('height, width', [(4, 4), (3, 5)])
def test_propagation_is_a_matrix_power(height, width, random):
    heat = torch.rand(2, 3, height, width, generator=random)
    affinity = torch.rand(2, height * width, height * width, generator=random).softmax(-1)
    expected = (torch.linalg.matrix_power(affinity, 4) @ heat.flatten(2).mT).mT.view_as(heat)
    assert torch.allclose(propagate(heat, affinity, 4), expected, atol=1e-6) and torch.equal(propagate(heat, affinity, 0), heat)


def test_propagation_on_another_grid(random):
    heat = torch.rand(1, 2, 8, 4, generator=random)
    assert propagate(heat, torch.eye(32 * 16)[None], 2).shape == (1, 2, 32, 16)
    with pytest.raises(ValueError, match='does not fit'): propagate(heat, torch.eye(31)[None])


# ---- following the image


def slow_refine(scores, pixels, settings):
    "The formula of PAMR, one pixel at a time."
    height, width = pixels.shape[1:]
    offsets = [(dy * d, dx * d) for d in settings.dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    for _ in range(settings.iterations):
        flowed = np.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in offsets]
                colours = np.array([pixels[:, b, a] for b, a in near])
                alike = -(np.abs(colours - pixels[:, y, x]) / (settings.contrast * colours.std(0, ddof=1) + 1e-4)).mean(1)
                weights = np.exp(alike - alike.max())
                flowed[:, y, x] = sum(w * scores[:, b, a] for w, (b, a) in zip(weights / weights.sum(), near))
        scores = flowed
    return scores


def test_refinement_equals_the_formula(random):
    scores, pixels = torch.rand(2, 3, 7, 9, generator=random), torch.rand(2, 3, 7, 9, generator=random)
    settings = Refinement(iterations=2, dilations=(1, 3), contrast=.5)
    fast = refine_scores(scores, pixels, settings)
    for i in range(2): assert np.allclose(fast[i], slow_refine(scores[i].double().numpy(), pixels[i].double().numpy(), settings), atol=1e-4)


def test_refinement_is_a_mean(random):
    scores, pixels = torch.rand(2, 3, 32, 32, generator=random), torch.rand(2, 3, 32, 32, generator=random)
    refined = refine_scores(scores, pixels)
    assert (refined <= scores.amax((-2, -1), keepdim=True) + 1e-5).all() and (refined >= scores.amin((-2, -1), keepdim=True) - 1e-5).all()
    assert torch.allclose(refine_scores(torch.ones_like(scores), pixels), torch.ones_like(scores), atol=1e-5)
    assert torch.allclose(refine_scores(scores[1:], pixels[1:]), refined[1:], atol=1e-6)
    assert torch.allclose(refine_scores(scores.flip(-1), pixels.flip(-1)), refined.flip(-1), atol=1e-5)
    plain = torch.full_like(pixels, .5)  # an image of one colour: no edge to follow, nothing divided by zero
    assert refine_scores(scores, plain).isfinite().all()


def test_refinement_finds_the_edge(random):
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='ij')
    disc = (y - 30) ** 2 + (x - 34) ** 2 < 15 ** 2
    pixels = torch.where(disc, torch.tensor([.8, .3, .2]).view(3, 1, 1), torch.tensor([.3, .6, .3]).view(3, 1, 1)) + .03 * torch.randn(3, 64, 64, generator=random)
    heat = torch.nn.functional.adaptive_avg_pool2d(disc.float()[None, None], 8)[0]
    heat = torch.nn.functional.avg_pool2d(heat, 3, 1, 1)

    def iou(mask): return ((mask.labels == 1) & disc.numpy()).sum() / ((mask.labels == 1) | disc.numpy()).sum()
    plain, refined = attn2mask([1], heat, (64, 64), beta=0.0), attn2mask([1], heat, (64, 64), pixels.clamp(0, 1), beta=0.0, refine=Refinement())
    assert iou(plain) < .85 and iou(refined) > .93


@pytest.mark.parametrize('wrong', [dict(iterations=0), dict(dilations=()), dict(dilations=(0, 1)), dict(contrast=0.0)])
def test_refinement_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): Refinement(**wrong)


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
    tiny = tiny_components(labels, 5)
    for image, found in zip(labels, tiny):
        roots = slow_components(image.numpy())
        assert np.array_equal(found.numpy(), np.bincount(roots.ravel(), minlength=roots.size)[roots] < 5)


# ---- recipes


def test_attn2mask_alone_equals_in_a_batch():
    heat = torch.stack([blobs(2, seed=i) for i in range(3)])
    pixels = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    affinity = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(2)).softmax(-1)
    options = dict(beta=.1, ignore_margin=.05, refine=Refinement(iterations=3), propagations=1, min_area=9)
    together = attn2mask_batch([(1, 2), (2, 5), (3, 4)], heat, (64, 48), pixels, affinity, **options)
    for i, ids in enumerate([(1, 2), (2, 5), (3, 4)]):
        alone = attn2mask(ids, heat[i], (64, 48), pixels[i], affinity[i], **options)
        assert np.array_equal(alone.labels, together[i].labels) and np.allclose(alone.reliability, together[i].reliability, atol=1e-3)
        assert alone.labels.shape == (64, 48) and set(np.unique(alone.labels)) <= {0, 255, *ids}


def test_the_ignore_band_grows_and_is_never_trusted():
    heat, voids = blobs(3), []
    for margin in (0.0, .1, .3):
        mask = attn2mask((1, 2, 3), heat, (64, 64), ignore_margin=margin)
        void = mask.labels == 255
        voids.append(void)
        assert (mask.reliability[void] == 0).all() and (mask.reliability[~void] > 0).all()
    assert not voids[0].any() and (voids[0] <= voids[1]).all() and (voids[1] <= voids[2]).all() and voids[2].sum() > voids[1].sum() > 0


def test_specks_become_void():
    heat = torch.zeros(1, 16, 16)
    heat[0, 2:8, 2:8], heat[0, 12, 12] = 1, .9
    before, after = (attn2mask([7], heat, (16, 16), min_area=area) for area in (0, 4))
    assert before.labels[12, 12] == 7 and after.labels[12, 12] == 255 and after.reliability[12, 12] == 0 and after.labels[4, 4] == 7


def test_many_classes_need_16_bits():
    mask = attn2mask((300, 919), blobs(2), (32, 32), ignore_margin=.1, void=1000)
    assert mask.labels.dtype == np.uint16 and set(np.unique(mask.labels)) == {0, 300, 919, 1000}
    assert attn2mask((3, 254), blobs(2), (32, 32)).labels.dtype == np.uint8


def test_a_set_without_background():
    heat = blobs(2)
    mask = attn2mask((0, 4), heat, (32, 32), background=None)
    assert set(np.unique(mask.labels)) == {0, 4}
    single = attn2mask((0,), heat[:1], (32, 32), background=None)
    assert (single.labels == 0).all()
    cut = threshold((0, 4), heat, (32, 32), background=None)
    assert set(np.unique(cut.labels)) == {0, 4, 255}


def test_flat_maps_claim_nothing():
    flat = torch.full((1, 16, 16), .3)
    mask = attn2mask([5], flat, (32, 32))
    assert (mask.labels == 0).all() and (mask.reliability == 0).all()
    beside = attn2mask([5, 6], torch.cat([flat, blobs(1)]), (32, 32))
    assert set(np.unique(beside.labels)) == {0, 6} and (beside.reliability[beside.labels == 0] == 0).all() and (beside.reliability[beside.labels == 6] > 0).all()
    without = attn2mask([5, 6], torch.cat([flat, blobs(1)]), (32, 32), background=None)
    assert (without.reliability == 0).all()
    assert (threshold([5], flat, (32, 32)).labels == 0).all()


def slow_otsu(values, bins=256):
    "The cut with the greatest variance between its groups, tried one by one."
    index = np.minimum((values * bins).astype(int), bins - 1)

    def between(cut):
        low, high = index[index < cut], index[index >= cut]
        return 0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2
    return max(range(1, bins + 1), key=between) / bins


def test_otsu_equals_the_search(random):
    maps = torch.rand(3, 2, 20, 20, generator=random) ** torch.tensor([.5, 1, 4]).view(3, 1, 1, 1)
    found = otsu(maps)
    assert found.shape == (3, 2)
    for level, values in zip(found.flatten(), maps.flatten(0, 1)): assert abs(level.item() - slow_otsu(values.numpy())) <= 1 / 256 + 1e-6


def test_threshold_is_plain():
    heat = torch.stack([blobs(2, seed=i) for i in range(2)])
    together = threshold_batch([(1, 2), (3, 4)], heat, (48, 48))
    for i, ids in enumerate([(1, 2), (3, 4)]):
        alone = threshold(ids, heat[i], (48, 48))
        assert np.array_equal(alone.labels, together[i].labels) and (alone.reliability == 1).all() and set(np.unique(alone.labels)) == {0, *ids}
    single = threshold([9], heat[0, :1], (16, 16), level=.5)
    assert np.array_equal(single.labels == 9, (normalise(heat[0, :1])[0] > .5).numpy())


@pytest.mark.parametrize('arguments, message', [
    (dict(class_ids=[1]), '1 class ids for 2 maps'), (dict(class_ids=[1, 1]), 'differ'), (dict(class_ids=[0, 1]), 'background'), (dict(class_ids=[1, 255]), 'void'),
    (dict(beta=1.0), 'beta'), (dict(ignore_margin=1.0), 'ignore_margin'), (dict(refine=Refinement()), 'give image='), (dict(propagations=1), 'self-attention')])
def test_attn2mask_refuses(arguments, message):
    with pytest.raises(ValueError, match=message): attn2mask(**dict(class_ids=[1, 2], heat=blobs(2), size=(32, 32)) | arguments)


@pytest.mark.parametrize('level', [0.0, 1.0, 'best'])
def test_threshold_refuses(level):
    with pytest.raises(ValueError, match='level'): threshold([1], blobs(1), (32, 32), level=level)


# ---- from a trace


@pytest.fixture(scope='module')
def traced():
    pipe, prompts = tiny_pipeline(), [tiny_prompt(text) for text in ('a cat and a mushroom', 'the red ball', 'a dog on a ball', 'the cat and the dog and a ball')]
    with capture(pipe, prompts, self_attention=(8,)) as trace:
        images = pipe([p.text for p in prompts], generator=generators(4), num_inference_steps=2, height=32, width=48, output_type='pil').images
    return trace, images


CLASSES = ClassSet(name='tiny', names=('cat', 'dog', 'ball', 'mushroom', 'sailboat'))


@pytest.mark.parametrize('recipe, parameters', [('attn2mask', {}), ('attn2mask', dict(refine=None, beta=.1, ignore_margin=.1)), ('attn2mask', dict(propagations=2, min_area=20)), ('threshold', {})])
def test_pseudo_masks_keep_the_images_order(traced, recipe, parameters):
    trace, images = traced
    masks = pseudo_masks(trace, images, CLASSES, recipe, **parameters)
    again = pseudo_masks(trace, images, CLASSES, recipe, **parameters)
    for i, (mask, same) in enumerate(zip(masks, again, strict=True)):
        assert mask.labels.shape == (32, 48) and set(np.unique(mask.labels)) <= {0, 255, *trace.class_maps(i)[0]}
        assert np.array_equal(mask.labels, same.labels) and np.array_equal(mask.reliability, same.reliability)
    ids, heat = trace.class_maps(1)
    if recipe == 'threshold': assert np.array_equal(masks[1].labels, threshold(ids, heat, (32, 48)).labels)
    elif parameters.get('refine', 1) is None: assert np.array_equal(masks[1].labels, attn2mask(ids, heat, (32, 48), **parameters).labels)


def test_parameters_survive_json(traced):
    trace, images = traced
    parameters = dict(beta=.1, refine=asdict(Refinement(iterations=2, dilations=(1, 2))), weights={8: .5, 4: .5}, reduce='max')
    written = json.loads(json.dumps(parameters))
    assert Refinement(**written['refine']) == Refinement(iterations=2, dilations=(1, 2))
    one, two = pseudo_masks(trace, images, CLASSES, **written), pseudo_masks(trace, images, CLASSES, **parameters | dict(refine=Refinement(2, (1, 2))))
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(one, two))


def test_many_images_in_small_groups(traced, monkeypatch):
    trace, images = traced
    expected = pseudo_masks(trace, images, CLASSES)
    monkeypatch.setattr('synseg_kit.masks.PIXELS_AT_ONCE', 1)
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(expected, pseudo_masks(trace, images, CLASSES)))


def test_pseudo_masks_refuse(traced):
    trace, images = traced
    for options, message in ((dict(recipe='magic'), 'attn2mask, threshold'), (dict(bta=.1), "no parameter 'bta'; it has beta"), (dict(recipe='threshold', beta=.1), "no parameter 'beta'"),
                             (dict(background=3), "no parameter 'background'"), (dict(refine={'iterations': 0}), 'iterations')):
        with pytest.raises(ValueError, match=message): pseudo_masks(trace, images, CLASSES, **options)
    with pytest.raises(ValueError, match='3 images for a trace of 4'): pseudo_masks(trace, images[:3], CLASSES)
    small = ClassSet(name='small', names=('cat', 'dog'))
    with pytest.raises(ValueError, match='class id 4'): pseudo_masks(trace, images, small)
    pipe = tiny_pipeline()
    nothing = look(pipe, torch.rand(2, 3, 64, 64), [tiny_prompt('the cat'), tiny_prompt('the red')], 500)
    with pytest.raises(ValueError, match='image 1 mentions no class'): pseudo_masks(nothing, torch.rand(2, 3, 64, 64), CLASSES)
