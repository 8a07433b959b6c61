"""Recipes: each step and each published recipe against its formula, on traces whose right answer is known, and all of them on the toy generator."""
import json
from collections import Counter

import numpy as np
import pytest
import torch
from references import slow_otsu
from synseg_kit.attention import Slot, Trace, capture, look
from synseg_kit.classes import ClassSet, toy_objects
from synseg_kit.families import Track
from synseg_kit.masks import PseudoMask, component_areas, normalise, otsu
from synseg_kit.prompts import Mention, Prompt
from synseg_kit.recipes import (PIXELS_AT_ONCE, RECIPES, Draft, Recipe, Step, adapt, agree, band, border, choose, compete, constant, crf, cut, doubt, enlarge, finish, flow, grow_background,
                                grow_object, merge_captures, nearest_grid, note, pseudo_masks, rank, read, read_layers, recipe, rest, specks, start, step, steps_to_read, stretch, surround)
from synseg_kit.toyworld import load_toy_pipeline, render
from torch.nn import functional as F

NAMES = ('cat', 'dog', 'ball', 'tree', 'car', 'boat')
SET, FILLED = ClassSet('six', NAMES), ClassSet('filled', ('sky', *NAMES), background=None)
QUICK = {'diffumask': dict(level_step=.08)}  # three thresholds will do
ALL = [made.but(**QUICK.get(name, {})) for name, made in RECIPES.items()]
every_recipe = pytest.mark.parametrize('made', ALL, ids=lambda made: made.name)


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


# ---- traces by hand


def trace_of(ids, heat, affinity=None, steps=1, keep=('resolution',)):
    "A trace that holds given maps: {Slot or grid: [b, c, h, w]} and {grid: [b, n, n]}; ids per image."
    prompts, tracks = [], []
    for image in ids:
        words, mentions = [NAMES[c % len(NAMES)] for c in image], []
        for word, class_id in zip(words, image):
            start = sum(len(w) + 1 for w in words[:len(mentions)])
            mentions.append(Mention(class_id, start, start + len(word)))
        prompts.append(Prompt(' '.join(words), tuple(mentions)))
        tracks.append(Track(tuple(words), tuple((i,) for i in range(len(image))), tuple((i,) for i in range(len(image)))))
    trace = Trace(prompts, tracks, keep)
    trace.images_per_prompt, trace.num_steps, trace.steps = 1, steps, list(range(steps))
    for slot, maps in heat.items():
        slot = slot if isinstance(slot, Slot) else Slot(slot)
        trace._sums[slot], trace._counts[slot] = maps.flatten(2).mT.clone(), 1
        trace.latent = max(trace.latent, slot.grid)
        if slot.layer: trace.sites[slot.layer] = steps
    for grid, matrix in (affinity or {}).items(): trace._self_sums[grid], trace._counts[grid] = matrix.clone(), 1
    return trace


def blobs(images, count, grid, seed=0):
    "Smooth maps with one hill each, of different heights, on the same places at every grid."
    random = torch.Generator().manual_seed(seed)
    centres, heights = torch.rand(images, count, 2, generator=random) * .7 + .15, torch.rand(images, count, 1, 1, generator=random) * .05 + .01
    y, x = torch.meshgrid(*((torch.arange(n) + .5) / n for n in grid), indexing='ij')
    far = (y - centres[..., :1, None]) ** 2 + (x - centres[..., 1:, None]) ** 2
    return heights * (torch.exp(-far / .03) + .1 * torch.rand(images, count, *grid, generator=random))


def near(images, grid, seed=0):
    "Self-attention of places that are near each other, a little noisy."
    y, x = (t.flatten().float() for t in torch.meshgrid(*map(torch.arange, grid), indexing='ij'))
    noise = torch.rand(images, len(y), len(y), generator=torch.Generator().manual_seed(seed))
    return (noise - ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 3).softmax(-1)


LAYERS = ('down_blocks.0', 'up_blocks.0', 'up_blocks.1')


def full_trace(ids, shape=(16, 16), seed=0, steps=4, scale=None):
    "A trace that serves every recipe: three layers at two grids, four steps, self-attention; its maps times a factor per class."
    grids, images, count = {LAYERS[0]: shape, LAYERS[1]: tuple(n // 2 for n in shape), LAYERS[2]: shape}, len(ids), len(ids[0])
    scale = torch.ones(count) if scale is None else scale
    heat = {Slot(grid, layer, i): blobs(images, count, grid, seed) * (1 + .1 * i) * scale.view(1, -1, 1, 1) for layer, grid in grids.items() for i in range(steps)}
    return trace_of(ids, heat, {grid: near(images, grid, seed) for grid in set(grids.values())}, steps, ('step', 'layer'))


def pictures(source, size=(48, 48), seed=0):
    "Images: of random blocks, so many; or such that every class of a trace has an object of its own colour where its heat is."
    random = torch.Generator().manual_seed(seed)
    if isinstance(source, int): return F.interpolate(torch.rand(source, 3, 4, 4, generator=random), size, mode='nearest')
    heat = [normalise(F.interpolate(source.class_maps(i)[1][None], size, mode='bilinear'))[0] for i in range(source.num_images)]
    winners = torch.stack([torch.where(h.amax(0) > .4, h.argmax(0) + 1, 0) for h in heat])
    return torch.rand(8, 3, generator=random)[winners].movedim(-1, 1)


def draft_of(scores, size=None, ids=None, **more):
    "A draft with given scores."
    images, count = scores.shape[:2]
    ids = ids or [tuple(range(1, count + 1))] * images
    trace = trace_of(ids, {tuple(scores.shape[-2:]): scores}, more.pop('affinity', None))
    return Draft(trace, tuple(range(images)), tuple(map(tuple, ids)), pictures(images, size or scores.shape[-2:]), scores=scores, **more)


def same(one, other): return all(np.array_equal(a.labels, b.labels) and np.allclose(a.reliability, b.reliability, atol=2e-3) for a, b in zip(one, other, strict=True))


def alike(one, other, share=.995):
    "Nearly all pixels equal: floating point may turn a tie."
    return all((a.labels == b.labels).mean() >= share for a, b in zip(one, other, strict=True))


# ---- promises of every recipe


@every_recipe
def test_shapes_ids_and_types(made):
    trace = full_trace([(1, 4), (2, 5)], (16, 24))
    masks = made(trace, pictures(trace, (48, 72)), SET)
    for mask, ids in zip(masks, [(1, 4), (2, 5)], strict=True):
        assert isinstance(mask, PseudoMask) and mask.labels.shape == (48, 72) and mask.labels.dtype == np.uint8
        assert set(np.unique(mask.labels)) <= {0, 255, *ids} and (mask.reliability[mask.labels == 255] == 0).all() and mask.reliability.max() > .5
    assert any(np.isin(mask.labels, (1, 2, 4, 5)).any() for mask in masks)


@every_recipe
def test_permuting_classes_permutes_labels(made):
    heat = full_trace([(1, 2, 3)])
    swapped = trace_of([(1, 2, 3)], {slot: sums.mT.unflatten(2, slot.grid)[:, [2, 0, 1]] for slot, sums in heat._sums.items()}, heat._self_sums, 4, ('step', 'layer'))
    before, after = (made(trace, pictures(heat), SET)[0] for trace in (heat, swapped))
    table = np.arange(256)
    table[[3, 1, 2]] = [1, 2, 3]  # the first place now holds what class 3 had
    assert (table[before.labels] == after.labels).mean() > .995 and np.abs(before.reliability - after.reliability).mean() < .01


@every_recipe
def test_flat_maps_give_background_that_nobody_trusts(made):
    flat = full_trace([(2,)])
    for sums in flat._sums.values(): sums.fill_(.03)
    mask = made(flat, pictures(1), SET)[0]
    assert set(np.unique(mask.labels)) <= {0, 255} and (mask.labels == 0).any() and (mask.reliability == 0).all()


@every_recipe
def test_a_flat_map_beside_another_claims_nothing(made):
    trace = full_trace([(2, 5)])
    for sums in trace._sums.values(): sums[:, :, 0] = .03
    mask = made(trace, pictures(trace), SET)[0]
    assert 5 in mask.labels and 2 not in mask.labels and (mask.reliability[mask.labels == 0] == 0).all() and (mask.reliability[mask.labels == 5] > 0).any()


@every_recipe
def test_the_scale_of_a_map_does_not_matter(made):
    trace, scaled = full_trace([(1, 3), (2, 6)]), full_trace([(1, 3), (2, 6)], scale=torch.tensor([4., .25]))
    assert alike(made(trace, pictures(trace), SET), made(scaled, pictures(trace), SET))


@every_recipe
def test_a_batch_equals_single_images(made):
    ids, images = [(1, 3), (2,), (4, 6), (5,)], pictures(4)
    traces = [full_trace([one], seed=i) for i, one in enumerate(ids)]
    together = trace_of(ids, {slot: torch.cat([F.pad(t._sums[slot], (0, 2 - t._sums[slot].shape[2])) for t in traces]).mT.unflatten(2, slot.grid) for slot in traces[0]._sums},
                        {grid: torch.cat([t._self_sums[grid] for t in traces]) for grid in traces[0]._self_sums}, 4, ('step', 'layer'))
    masks = made(together, images, SET)
    assert same(masks, [made(trace, images[i:i + 1], SET)[0] for i, trace in enumerate(traces)])


@every_recipe
def test_a_set_without_background_is_filled(made):
    trace = full_trace([(0, 1, 5)])
    mask = made(trace, pictures(trace), FILLED)[0]
    assert {0, 1, 5} <= set(np.unique(mask.labels)) <= {0, 1, 5, 255} and (mask.labels == 255).mean() < .2
    only = made(full_trace([(4,)]), pictures(1), FILLED)[0]
    assert set(np.unique(only.labels)) <= {4, 255} and (only.labels == 4).mean() > .8


@every_recipe
def test_many_ids_need_16_bits(made):
    wide = ClassSet('wide', tuple(f'class {i}' for i in range(1, 901)), void=1000)
    trace = full_trace([(300, 900)])
    mask = made(trace, pictures(trace), wide)[0]
    assert mask.labels.dtype == np.uint16 and set(np.unique(mask.labels)) <= {0, 300, 900, 1000} and 900 in mask.labels


@every_recipe
def test_every_recipe_finds_a_known_object(made):
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing='ij')
    truth = (y - 30) ** 2 + (x - 60) ** 2 < 16 ** 2
    images = torch.where(truth, torch.tensor([.8, .3, .2]).view(3, 1, 1), torch.tensor([.3, .6, .3]).view(3, 1, 1))[None]
    grids = {'down_blocks.0': (16, 24), 'up_blocks.0': (8, 12), 'up_blocks.1': (16, 24)}
    inside = {grid: F.adaptive_avg_pool2d(truth.float()[None, None], grid) for grid in set(grids.values())}
    belongs = {grid: (share.flatten() > .5).float() for grid, share in inside.items()}
    affinity = {grid: (b[:, None] == b).float()[None] + .01 for grid, b in belongs.items()}
    affinity = {grid: a / a.sum(-1, keepdim=True) for grid, a in affinity.items()}
    trace = trace_of([(4,)], {Slot(grid, layer, i): .02 + .05 * inside[grid] for layer, grid in grids.items() for i in range(2)}, affinity, 2, ('step', 'layer'))
    small = dict(bilateral_sigma=20., gaussian_sigma=1.) if 'bilateral_sigma' in made.parameters else {}
    mask = made.but(**small)(trace, images, SET)[0]
    found, known = mask.labels == 4, mask.labels != 255
    assert (found & truth.numpy()).sum() / ((found | truth.numpy()) & known).sum() > .9


@pytest.mark.gpu
@every_recipe
def test_a_gpu_gives_the_same(made):
    trace = full_trace([(1, 3), (2, 5)])
    here = made(trace, pictures(trace), SET)
    for tensors in (trace._sums, trace._self_sums): tensors.update({key: tensor.cuda() for key, tensor in tensors.items()})
    assert next(start(trace, pictures(2), SET)).images.is_cuda and alike(here, made(trace, pictures(trace).cpu(), SET), .98)


# ---- which heat


def test_nearest_grid():
    grids = [(64, 96), (16, 24), (8, 12)]
    assert [nearest_grid(grids, size) for size in (128, 64, 40, 33, 32, 31, 16, 10, 1)] == [(64, 96)] * 5 + [(16, 24)] * 2 + [(8, 12)] * 2
    assert nearest_grid(grids, (16, 24)) == (16, 24) and nearest_grid([(8, 8)], (64, 64)) == (8, 8)


@pytest.mark.parametrize('steps, count, expected', [(.5, 100, [50]), (.5, 3, [1]), (0., 4, [0]), (1., 4, [3]), ((.5, 1.), 4, [2, 3]), ((.3, .6), 2, [0]), ([.0, 1], 3, None), (None, 5, None), (slice(-1, None), 4, [3]),
                                                    (range(1, 3), 4, [1, 2]), ([2], 4, [2])])
def test_steps_by_where_they_are(steps, count, expected):
    trace = trace_of([(1,)], {Slot((4, 4), None, i): blobs(1, 1, (4, 4)) for i in range(count)}, steps=count, keep=('step',))
    assert steps_to_read(trace, steps) == expected


def test_a_trace_of_just_these_steps_needs_no_steps_apart():
    trace = trace_of([(1,)], {(4, 4): blobs(1, 1, (4, 4))}, steps=9)
    with pytest.raises(ValueError, match="step 4 of 9, and the trace is the mean of steps 0 to 8; open the capture with keep='step'"): steps_to_read(trace, .5)
    trace.steps = [4]
    assert steps_to_read(trace, .5) is None and steps_to_read(trace, [4]) is None
    trace.keep = ('step',)
    with pytest.raises(ValueError, match='step 8 was not captured'): steps_to_read(trace, 1.)


def test_reading_one_step(random):
    heat = {Slot((8, 8), None, i): torch.rand(2, 2, 8, 8, generator=random) for i in range(5)}
    begun = next(start(trace_of([(1, 2), (2, 3)], heat, steps=5, keep=('step',)), pictures(2), SET))
    assert torch.allclose(read(begun, steps=.5).scores, heat[Slot((8, 8), None, 2)], atol=1e-6)
    assert torch.allclose(read(begun, steps=(.6, 1.)).scores, (heat[Slot((8, 8), None, 3)] + heat[Slot((8, 8), None, 4)]) / 2, atol=1e-6)
    assert torch.allclose(read(begun).scores, sum(heat.values()) / 5, atol=1e-6)


def test_reading_mixes_resolutions(random):
    fine, coarse = torch.rand(1, 2, 16, 24, generator=random), torch.rand(1, 2, 8, 12, generator=random)
    trace = trace_of([(1, 2)], {(16, 24): fine, (8, 12): coarse})
    trace._counts[Slot((8, 12))], trace._sums[Slot((8, 12))] = 3, trace._sums[Slot((8, 12))] * 3  # three layers
    begun = next(start(trace, pictures(1, (32, 48)), SET))
    large = F.interpolate(coarse, (16, 24), mode='bilinear')
    assert torch.allclose(read(begun).scores, (fine + 3 * large) / 4, atol=1e-6)
    assert torch.allclose(read(begun, resolutions=16).scores, fine, atol=1e-6) and torch.allclose(read(begun, resolutions=(64,)).scores, fine, atol=1e-6)
    assert torch.allclose(read(begun, resolutions={16: 3., 8: 1.}).scores, (3 * fine + large) / 4, atol=1e-6)
    assert torch.allclose(read(begun, resolutions=(64, 32, 16)).scores, fine, atol=1e-6)  # all of them the same grid, which counts once
    both = [F.interpolate(maps, (32, 48), mode='bicubic') for maps in (fine, coarse)]
    expected = sum(maps / maps.amax((-2, -1), keepdim=True) for maps in both) / 2
    assert torch.allclose(read(begun, resolutions=(16, 8), mix='bicubic', at='image', scale='max').scores, expected, atol=1e-5)
    assert torch.allclose(read(begun, resolutions=(16, 8), scale='min-max').scores, (normalise(fine) + normalise(large)) / 2, atol=1e-6)


def test_reading_chosen_layers():
    trace = full_trace([(1, 2)])
    begun = next(start(trace, pictures(1), SET))
    up = [trace.class_maps(0, (8, 8), layer=LAYERS[1])[1], trace.class_maps(0, (16, 16), layer=LAYERS[2])[1]]
    expected = (F.interpolate(up[0][None], (16, 16), mode='bilinear') + up[1]) / 2
    assert torch.allclose(read(begun, layers=('up_blocks',)).scores, expected, atol=1e-6)
    assert torch.allclose(read(begun, layers=('transformer_blocks',)).scores, read(begun).scores, atol=1e-6)  # a model without such layers
    with pytest.raises(ValueError, match="keep='layer'"): read(next(start(trace_of([(1,)], {(8, 8): blobs(1, 1, (8, 8))}), pictures(1), SET)), layers=('up_blocks',))


def test_flatness_needs_every_resolution():
    maps = {(8, 8): torch.full((1, 2, 8, 8), .1), (4, 4): torch.full((1, 2, 4, 4), .1)}
    maps[4, 4][0, 1, 0, 0] = .2
    found = read(next(start(trace_of([(1, 2)], maps), pictures(1), SET)))
    assert found.mute.tolist() == [[True, False]] and found.scores[0, 0].max() == 0 and found.scores[0, 1].max() > .1


# ---- single steps


def test_flow_is_a_matrix_power(random):
    scores, matrix = torch.rand(2, 3, 4, 6, generator=random), torch.rand(2, 24, 24, generator=random).softmax(-1)
    found = flow(draft_of(scores, affinity={(4, 6): 5 * matrix}), resolution=64, power=3)  # rows need not sum to 1
    assert torch.allclose(found.scores.flatten(2), (torch.linalg.matrix_power(matrix, 3) @ scores.flatten(2).mT).mT, atol=1e-5)
    with pytest.raises(ValueError, match=r'self_attention=\(32, 16\)'): flow(draft_of(scores))


def test_flow_serves_without_a_matrix(random):
    draft = draft_of(torch.rand(1, 2, 4, 4, generator=random))
    draft.trace._replay[(4, 4), 'layer'] = (torch.randn(1, 2, 16, 8, generator=random), torch.randn(1, 2, 16, 8, generator=random), None)
    assert torch.allclose(flow(draft, power=2).scores[0], draft.trace.propagate(0, draft.scores[0], (4, 4), 2))
    with pytest.raises(ValueError, match='self-attention'): grow_object(draft)


def test_competition(random):
    scores = torch.rand(2, 3, 5, 5, generator=random)
    held = compete(draft_of(scores), sharpness=2.).scores
    assert torch.equal(held.argmax(1), scores.argmax(1)) and torch.allclose(held.amax(1), scores.amax(1)) and (held <= scores + 1e-6).all()
    assert torch.allclose(compete(draft_of(scores), sharpness=0.).scores, scores) and torch.allclose(compete(draft_of(scores[:, :1])).scores, scores[:, :1])
    assert compete(draft_of(torch.zeros(1, 2, 3, 3))).scores.isfinite().all()


def test_scores_of_the_background(random):
    draft = draft_of(torch.rand(1, 2, 6, 6, generator=random))
    best = draft.scores.amax(1, keepdim=True)
    assert torch.allclose(rest(draft, beta=.3).background, .7 - best) and (constant(draft, level=.4).background == .4).all()
    claimed = draft.scores > .5
    parted = choose(cut(draft, threshold=.5)).labels
    assert torch.equal(parted == 0, ~claimed.any(1)) and torch.equal(parted, torch.where(claimed.any(1), draft.scores.argmax(1) + 1, 0))
    filled = draft.but(has_background=False)
    for made in (rest, constant, cut, band): assert made(filled) is filled
    assert torch.equal(choose(filled).labels, draft.scores.argmax(1) + 1)


def test_growing_equals_a_loop_over_seeds(random):
    scores, matrix = torch.rand(1, 2, 4, 4, generator=random), torch.rand(1, 16, 16, generator=random).pow(4)
    matrix = matrix / matrix.sum(-1, keepdim=True)
    draft = draft_of(scores, affinity={(4, 4): matrix})
    grown = grow_object(draft).scores
    for c in range(2):
        squares = scores[0, c] ** 2
        seeds = (squares > otsu(squares)).flatten()
        alike = sum(F.cosine_similarity(matrix[0], matrix[0, i][None]) for i in range(16) if seeds[i])
        assert seeds.any() and torch.allclose(grown[0, c].flatten(), ((alike - alike.min()) / (alike.max() - alike.min())), atol=1e-4)
    left = grow_background(draft, resolutions=(32, 64)).scores  # one grid, so it is done once
    for c in range(2):
        squares = scores[0, c] ** 2
        alike = sum(F.cosine_similarity(matrix[0], matrix[0, i][None]) for i, s in enumerate((squares <= otsu(squares)).flatten()) if s)
        kept = (1 - (alike - alike.min()) / (alike.max() - alike.min())) * scores[0, c].flatten()
        assert torch.allclose(left[0, c].flatten(), (kept - kept.min()) / (kept.max() - kept.min()), atol=1e-4)


def test_the_background_grows_where_places_attend_alike():
    object_ = torch.zeros(8, 8)
    object_[2:6, 2:5] = 1
    matrix = (object_.flatten()[:, None] == object_.flatten()).float()
    hint = object_.clone()
    hint[4:6] = 0  # heat on a part of the object only
    draft = draft_of(hint[None, None], affinity={(8, 8): (matrix / matrix.sum(-1, keepdim=True))[None]})
    alone = surround(draft).background[0, 0]
    assert torch.equal(alone < .5, object_ > .5)
    mixed = surround(rest(draft, beta=0.), weight=.25).background[0, 0]
    assert torch.allclose(mixed, .75 * (1 - hint) + .25 * alone, atol=1e-5)


def test_enlarging_is_bilinear_and_once():
    draft = rest(draft_of(blobs(1, 2, (8, 8)), size=(32, 32)))
    large = enlarge(draft)
    assert large.background.shape == (1, 1, 32, 32) and torch.allclose(large.stack, F.interpolate(draft.stack, (32, 32), mode='bilinear'))
    assert torch.equal(enlarge(large).stack, large.stack)


def test_a_crf_of_labels_is_blind_to_scores():
    draft = rest(draft_of(blobs(1, 2, (32, 32)) * 20, size=(32, 32)))
    sharper = draft.with_stack(draft.stack + .3 * F.one_hot(draft.stack.argmax(1), 3).movedim(-1, 1))
    assert torch.equal(crf(draft, certainty=.7).stack, crf(sharper, certainty=.7).stack) and not torch.equal(crf(draft).stack, crf(sharper).stack)
    unmoved = dict(gaussian_weight=0., bilateral_weight=0.)
    told = crf(draft, certainty=.5, among=21, **unmoved).stack
    assert torch.allclose(told.amax(1), torch.tensor(.5 / (.5 + 2 * .025)), atol=1e-4) and torch.equal(told.argmax(1), draft.stack.argmax(1))
    assert torch.allclose(crf(draft, temperature=.2, **unmoved).stack, (draft.stack / .2).softmax(1), atol=1e-4)
    assert torch.allclose(crf(draft, bilateral_sigma=.25, gaussian_sigma=1.).stack, crf(draft, bilateral_sigma=8., gaussian_sigma=1.).stack)
    alone = draft_of(blobs(1, 1, (8, 8)), has_background=False)
    assert torch.equal(crf(alone).scores, alone.scores)


def test_void(random):
    draft = choose(rest(draft_of(torch.rand(1, 2, 20, 20, generator=random))))
    best = draft.scores.amax(1)
    banded = band(draft, low=.3, high=.7)
    assert torch.equal(banded.void, (best >= .3) & (best < .7))
    both = doubt(banded, ignore_margin=.2)
    assert torch.equal(both.void, banded.void | (draft.margin < .2)) and not doubt(draft).void.any()


def slow_areas(labels, by):
    "Flood fill."
    found, seen = np.zeros(labels.shape, int), np.zeros(labels.shape, bool)
    for first in np.ndindex(labels.shape):
        if seen[first]: continue
        stack, members = [first], []
        while stack:
            y, x = stack.pop()
            if seen[y, x]: continue
            seen[y, x] = True
            members.append((y, x))
            stack += [(b, a) for b, a in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if 0 <= b < labels.shape[0] and 0 <= a < labels.shape[1] and labels[b, a] == labels[y, x]]
        ys, xs = zip(*members)
        for place in members: found[place] = len(members) if by == 'area' else (max(ys) - min(ys) + 1) * (max(xs) - min(xs) + 1)
    return found


@pytest.mark.parametrize('by', ['area', 'box'])
def test_component_areas_equal_a_flood_fill(by, random):
    labels = torch.randint(0, 3, (3, 13, 17), generator=random)
    for one, areas in zip(labels, component_areas(labels, by)): assert np.array_equal(areas.numpy(), slow_areas(one.numpy(), by))


def test_specks():
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[0, 2:8, 2:8], labels[0, 12:14, 12:14], labels[0, 4, 4] = 1, 2, 0  # an object with a hole, and a speck
    draft = draft_of(torch.zeros(1, 2, 20, 20)).but(labels=labels, margin=torch.ones(1, 20, 20))
    out = specks(draft, min_area=5)
    assert torch.equal(out.void, (labels == 2) | ((labels == 0) & (component_areas(labels) == 1))) and torch.equal(out.labels, labels)
    assert torch.equal(specks(draft, min_area=5 / 400).void, out.void) and specks(draft) is draft
    gone = specks(draft, min_area=5, into='background')
    assert gone.void is None and torch.equal(gone.labels, labels * (labels == 1))
    assert specks(draft.but(has_background=False, labels=labels + 1), min_area=5, into='background').void.sum() == 5


def test_agreement(random):
    scores = torch.rand(1, 3, 9, 9, generator=random)
    noted = note(note(draft_of(scores)).but(scores=scores.flip(1)))
    done = agree(choose(noted.but(scores=scores)))
    middle = scores.argmax(1) == scores.flip(1).argmax(1)
    assert torch.allclose(done.reliability, torch.where(middle, 1., 2 / 3)) and (agree(choose(draft_of(scores))).reliability == 1).all()
    ranked = rank(choose(noted.but(scores=scores)))
    assert torch.allclose(agree(ranked).reliability, ranked.reliability * done.reliability)


def test_borders_cast_doubt():
    labels = torch.zeros(1, 40, 60, dtype=torch.long)
    labels[:, :, 30:] = 2
    draft = draft_of(torch.rand(1, 2, 40, 60)).but(labels=labels)
    found, distance = border(draft, reach=3).reliability, torch.arange(1, 31).float()
    expected = 1 - torch.exp(-distance.clamp(max=10) / 3)  # three times the reach is far
    assert torch.allclose(found[0, 7, 30:], expected) and torch.allclose(found[0, 7, :30], expected.flip(0)) and (found == found[:, :1]).all()  # the image's own edge is no border
    assert torch.equal(border(draft, reach=3 / 40).reliability, found) and torch.equal(border(draft_of(torch.rand(1, 2, 60, 40)).but(labels=labels.mT), reach=3).reliability, found.mT)
    assert torch.allclose(border(draft.but(reliability=torch.full((1, 40, 60), .5)), reach=3).reliability, found / 2)
    assert len(set(border(draft.but(labels=labels * 0)).reliability.flatten().tolist())) == 1
    with pytest.raises(ValueError, match='reach .*positive'): step(border, reach=0.)


def test_competition_before_stretching_silences_what_is_missing():
    strong, weak = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 8, 8)
    strong[..., 2:6, 2:6] += 2
    weak[..., 2:6, 2:6], weak[..., :2, :2] = .5, .3  # strongest on the other's object
    draft = draft_of(torch.cat([strong, weak], 1))
    after = lambda *steps: choose(rest(_through(draft, steps))).labels
    inside = np.s_[:, 2 * 6:6 * 6, 2 * 6:6 * 6]
    assert (after(compete, stretch)[inside] == 1).all() and compete(draft).scores[0, 1, 3, 3] < draft.scores[0, 1, 3, 3] / 3


def _through(draft, steps):
    for one in steps: draft = one(draft)
    return draft


def test_finishing():
    labels = torch.tensor([[[0, 1], [2, 2]]])
    draft = draft_of(torch.rand(1, 2, 2, 2), ids=[(3, 5)]).but(labels=labels)
    assert finish(draft, SET)[0].labels.tolist() == [[0, 3], [5, 5]] and (finish(draft, SET)[0].reliability == 1).all()
    lost = draft.but(mute=torch.tensor([[True, False]]), void=labels == 1)
    assert finish(lost, SET)[0].labels.tolist() == [[0, 255], [5, 5]] and finish(lost, SET)[0].reliability.tolist() == [[0, 0], [1, 1]]
    assert finish(lost.but(has_background=False, labels=labels.clamp(min=1)), FILLED)[0].reliability.max() == 0


@pytest.mark.parametrize('given, taken, message', [(dict(scores=None), rest, 'such as read'), ({}, rank, 'such as choose'), ({}, specks, 'labels'), ({}, doubt, 'margin')])
def test_a_missing_step_is_named(given, taken, message):
    draft = draft_of(torch.rand(1, 2, 4, 4)).but(**given)
    with pytest.raises(ValueError, match=message): (taken if taken is not specks else step(specks, min_area=2))(draft)


# ---- the published recipes against their formulas


def ready(name, **changes):
    trace, images = full_trace([(1, 3), (2, 5)]), pictures(2)
    return trace, images, recipe(name, **changes)(trace, images, SET)


def test_otsu_equals_the_search():
    trace, _, masks = ready('otsu')
    for i, mask in enumerate(masks):
        ids, fine = trace.class_maps(i, (16, 16))
        mixed = (2 * fine + F.interpolate(trace.class_maps(i, (8, 8))[1][None], (16, 16), mode='bilinear')[0]) / 3  # two layers to one
        maps = normalise(F.interpolate(mixed[None], (48, 48), mode='bilinear')[0]).numpy()
        claimed = np.stack([one > slow_otsu(one) for one in maps])
        expected = np.where(claimed.any(0), np.array(ids)[np.where(claimed, maps, 0).argmax(0)], 0)
        assert (mask.labels == expected).mean() > .99  # a bin of 256 either way


def test_attn2mask_equals_its_formula():
    trace, _, masks = ready('attn2mask', crf=False)
    for i, mask in enumerate(masks):
        ids, fine = trace.class_maps(i, (16, 16), step=[2])
        mixed = normalise((2 * fine + F.interpolate(trace.class_maps(i, (8, 8), step=[2])[1][None], (16, 16), mode='bilinear')[0]) / 3)
        stack = torch.cat([1 - mixed.amax(0, keepdim=True) - .2, mixed])
        expected = F.interpolate(stack[None], (48, 48), mode='bilinear')[0].argmax(0)
        assert np.array_equal(mask.labels, np.array([0, *ids])[expected.numpy()])
    single = draft_of(torch.linspace(0, 1, 101).view(1, 1, 1, 101))
    assert choose(rest(stretch(single))).labels.flatten().tolist() == [int(v > .4 + 1e-6) for v in single.scores.flatten().tolist()]  # one class is a threshold


def test_daam_equals_its_formula():
    trace, _, masks = ready('daam')
    for i, mask in enumerate(masks):
        ids, fine = trace.class_maps(i, (16, 16))
        mixed = (2 * fine + F.interpolate(trace.class_maps(i, (8, 8))[1][None], (16, 16), mode='bicubic')[0]) / 3
        maps = normalise(F.interpolate(mixed[None], (48, 48), mode='bicubic')[0])
        expected = torch.where((maps > .4).any(0), torch.tensor(ids)[maps.argmax(0)], 0)
        assert (mask.labels == expected.numpy()).mean() > .999


def test_dataset_diffusion_equals_its_formula():
    trace, _, masks = ready('dataset_diffusion')
    for i, mask in enumerate(masks):
        ids, maps = trace.class_maps(i, (16, 16))
        flowed = (torch.linalg.matrix_power(trace.self_attention(i, (16, 16)), 4) @ maps.flatten(1).mT).mT.unflatten(1, (16, 16))
        best, winner = F.interpolate(normalise(flowed)[None], (48, 48), mode='bicubic')[0].max(0)
        expected = torch.where(best >= .6, torch.tensor(ids)[winner], torch.where(best >= .5, 255, 0))
        assert (mask.labels == expected.numpy()).mean() > .999 and 255 in mask.labels


def test_the_ignore_band_is_exact_at_its_edges():
    values = torch.tensor([.0, .4999, .5, .55, .5999, .6, .6001, 1.])
    draft = draft_of(values.view(1, 1, 1, 8))
    steps = RECIPES['dataset_diffusion'].steps
    for one in steps[steps.index(next(s for s in steps if s.name == 'constant')):]: draft = one(draft)
    assert finish(draft, SET)[0].labels.tolist() == [[0, 0, 255, 255, 255, 1, 1, 1]]


def test_seediff_equals_its_formula():
    trace = full_trace([(1, 3)])
    found = stretch(read_layers(next(start(trace, pictures(1), SET)))).scores[0]
    layers = [normalise(trace.class_maps(0, (16, 16), layer=LAYERS[i])[1]) for i in (0, 2)]
    assert torch.allclose(found, normalise(layers[0] + layers[1]), atol=1e-6)
    spike = torch.zeros(1, 1, 200, 200)
    spike[0, 0, 3, 4] = 1  # its variance is 2.5e-5: as good as flat
    other = blobs(1, 1, (200, 200))
    trace = trace_of([(1,)], {Slot((200, 200), 'a'): spike, Slot((200, 200), 'b'): other}, keep=('layer',))
    found = read_layers(next(start(trace, pictures(1), SET)), resolution=200).scores
    assert torch.allclose(found, (.01 * spike + normalise(other)) / 2, atol=1e-6)


def test_diffumask_takes_the_threshold_that_agrees_best():
    trace, images = full_trace([(1, 3), (2, 5)]), pictures(2)
    before = read(next(start(trace, images, SET)), resolutions=(16, 32, 64), mix='bicubic', at='image', scale='max')
    after = adapt(before, level_step=.06)
    reference = choose(cut(stretch(enlarge(flow(before, resolution=32, power=4))))).labels
    tried = [crf(constant(before, level=level), certainty=.5, among=21) for level in (.35, .41, .47, .53)]
    for i in range(2):
        def overlap(labels, i=i): return ((labels[i] == reference[i]) & (labels[i] > 0)).sum() / ((labels[i] > 0).sum() + (reference[i] > 0).sum())
        scores = [overlap(choose(one).labels).item() for one in tried]
        assert torch.allclose(after.stack[i], tried[scores.index(max(scores))].stack[i], atol=1e-5)


# ---- recipes as values


def test_changing_by_name():
    made = recipe('attn2mask', beta=.1, crf=False, resolutions=[16, 8])
    assert made.parameters['beta'] == .1 and made.parameters['crf'] is False and made.parameters['resolutions'] == (16, 8) and RECIPES['attn2mask'].parameters['beta'] == .2
    assert made == RECIPES['attn2mask'].but(beta=.1).without('crf').but(resolutions=(16, 8)) and made != RECIPES['attn2mask']
    assert '[crf(' in repr(made) and 'rest(beta=0.1)' in repr(made)


def test_parameters_survive_json():
    changes = dict(steps=(.3, .8), resolutions={16: .5, 8: .5}, beta=-.1, crf=False, dilations=(1, 2), layers=('up_blocks',), min_area=.01)
    assert recipe('synseg', **json.loads(json.dumps(changes))) == recipe('synseg', **changes)
    for made in RECIPES.values(): json.dumps(made.parameters)


def test_shared_names_are_told_apart():
    made = recipe('synseg', pamr__iterations=3, crf__iterations=4)
    assert (made.parameters['pamr__iterations'], made.parameters['crf__iterations']) == (3, 4) and 'iterations' not in made.parameters
    with pytest.raises(ValueError, match='pamr__iterations'): recipe('synseg', iterations=3)


@pytest.mark.parametrize('name, changes, message', [
    ('synseg', dict(bta=.1), "no parameter 'bta'; it has read, steps"), ('attn2mask', dict(power=2), "no parameter 'power'; it has .*beta"), ('attn2mask', dict(beta=1.), 'between -1 and 1'),
    ('attn2mask', dict(beta='a'), 'between -1 and 1'), ('attn2mask', dict(crf=3), 'True takes it'), ('daam', dict(threshold='best'), "'otsu' or"), ('daam', dict(mix='nearest'), 'bicubic'),
    ('dataset_diffusion', dict(level='otsu'), 'between 0 and 1'), ('dataset_diffusion', dict(power=1.5), 'whole number'), ('dataset_diffusion', dict(high=2.), 'from 0 to 1'),
    ('synseg', dict(layers='up_blocks'), 'several'), ('synseg', dict(dilations=(0, 1)), 'at least one pixel'), ('synseg', dict(resolutions={16: 0}), 'positive weights'),
    ('synseg', dict(crf__iterations=0), 'whole number from 1'), ('diffumask', dict(levels=(.5, .4)), 'rising')])
def test_recipes_refuse(name, changes, message):
    with pytest.raises(ValueError, match=message): recipe(name, **changes)


def test_more_refusals():
    with pytest.raises(ValueError, match="did you mean 'dataset_diffusion'"): recipe('dataset_difusion')
    with pytest.raises(ValueError, match='take it with crf=True'): recipe('attn2mask', crf=False).but(certainty=.5)
    with pytest.raises(ValueError, match="two steps of twice are called 'stretch'"): Recipe('twice', (read, stretch, rest, stretch, choose))
    with pytest.raises(ValueError, match='both a step and a parameter'): Recipe('clash', (read, step(stretch, 'beta'), rest))
    with pytest.raises(ValueError, match='needs a name'): Recipe('nameless', (lambda draft: draft,))
    with pytest.raises(ValueError, match="no parameter 'power'; it has beta"): step(rest, power=2)
    assert Recipe('once', (read, stretch, rest, step(stretch, 'again'), choose)).steps[3].name == 'again' and Step(rest).name == 'rest'


def test_steps_of_ones_own_and_stages():
    def halve(draft, *, by=2.): return draft.but(scores=draft.scores / by)
    made, trace = Recipe('mine', (read, stretch, halve, rest, step(rank, on=False), choose)), full_trace([(1, 3)])
    stages = dict(made.stages(next(start(trace, pictures(1), SET))))
    assert list(stages) == ['read', 'stretch', 'halve', 'rest', 'choose'] and torch.equal(stages['halve'].scores, stages['stretch'].scores / 2)
    assert made.but(by=1., beta=0.).parameters['by'] == 1. and (made(trace, pictures(1), SET)[0].reliability == 1).all()


def test_errors_say_where():
    with pytest.raises(ValueError) as caught: RECIPES['synseg'](trace_of([(1,)], {(8, 8): blobs(1, 1, (8, 8))}), pictures(1), SET)
    assert caught.value.__notes__ == ['in the step read of the recipe synseg']


@pytest.mark.parametrize('step_name', [one.name for one in RECIPES['synseg'].steps if one.name not in ('read', 'choose')])
def test_every_step_of_synseg_can_be_left_out(step_name):
    mask = RECIPES['synseg'].without(step_name)(full_trace([(1, 3)]), pictures(1), SET)[0]
    assert mask.labels.shape == (48, 48) and set(np.unique(mask.labels)) <= {0, 1, 3, 255}


def test_captures_merge():
    assert merge_captures() == {} and merge_captures(RECIPES['otsu'], RECIPES['daam']) == {}
    assert merge_captures(RECIPES['attn2mask'], RECIPES['seediff']) == {'keep': ('step', 'layer'), 'self_attention': (16, 32, 64)}
    assert merge_captures({'keep': 'step', 'self_attention': (8,)}, RECIPES['synseg']) == {'keep': ('step', 'layer'), 'self_attention': (8, 32, 16)}  # who wants it without a word about steps wants all
    assert merge_captures(RECIPES['synseg']) == {'keep': ('layer',), 'self_attention': (32, 16), 'self_every': 4}
    assert merge_captures(RECIPES['synseg'], {'self_attention': (8,), 'self_every': 2}, {'keep': 'step'})['self_every'] == 2
    assert 'self_every' not in merge_captures(RECIPES['synseg'], RECIPES['seediff'])
    assert RECIPES['synseg'].without('surround').but(layers=None).capture == {}
    assert recipe('dataset_diffusion', resolution=64).capture == {'self_attention': (64, 16)} and recipe('dataset_diffusion', resolution=16).capture == {'self_attention': (16,)}


def test_beginning():
    trace = full_trace([(1, 3), (2, 5)])
    with pytest.raises(ValueError, match='3 images for a trace of 2'): next(start(trace, pictures(3), SET))
    with pytest.raises(ValueError, match='class id 5, the set small has ids 1 to 3'): next(start(trace, pictures(2), ClassSet('small', ('a', 'b', 'c'))))
    with pytest.raises(ValueError, match='class id 0'): next(start(full_trace([(0, 1)]), pictures(1), SET))
    nothing = Trace([Prompt('nothing')], [Track((), (), ())])
    nothing.images_per_prompt = 1
    with pytest.raises(ValueError, match='image 0 mentions no class'): next(start(nothing, pictures(1), SET))


def test_many_images_in_small_groups(monkeypatch):
    trace, images = full_trace([(1, 3), (2, 5), (4, 6)]), pictures(3)
    made = RECIPES['attn2mask']
    expected = made(trace, images, SET)
    monkeypatch.setitem(PIXELS_AT_ONCE, 'cpu', 1)
    assert len(list(start(trace, images, SET))) == 3 and same(expected, made(trace, images, SET))


# ---- on a real generator


@pytest.fixture(scope='module')
def toy():
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = [render(seed, count=count).prompt for seed, count in ((10_000_011, 2), (10_000_015, 1))]


@every_recipe
def test_recipes_ask_for_the_capture_they_need(made, toy):
    with capture(toy, PROMPTS, **made.capture) as trace:
        images = toy([p.text for p in PROMPTS], num_inference_steps=2, generator=[torch.Generator().manual_seed(i) for i in range(2)], output_type='pil').images
    masks = made(trace, images, toy_objects())
    for mask, prompt in zip(masks, PROMPTS, strict=True):
        assert mask.labels.shape == (128, 128) and mask.labels.dtype == np.uint8 and set(np.unique(mask.labels)) <= {0, 255, *prompt.class_ids}
        assert mask.reliability.dtype == np.float32 and 0 <= mask.reliability.min() <= mask.reliability.max() <= 1
    assert same(masks, pseudo_masks(trace, images, toy_objects(), made)) and (made != RECIPES[made.name] or same(masks, pseudo_masks(trace, images, toy_objects(), made.name)))


def test_what_was_not_captured_is_refused(toy):
    scene = render(10_000_011, count=2)
    bare = look(toy, [scene.image], [scene.prompt], 300)
    assert len(RECIPES['attn2mask'](bare, [scene.image], toy_objects())) == 1  # a look is one step
    for name, message in (('dataset_diffusion', r'self_attention=\(32, 16\)'), ('diffumask', r'recipe\.capture'), ('seediff', "keep='layer'"), ('synseg', "keep='layer'")):
        with pytest.raises(ValueError, match=message): RECIPES[name](bare, [scene.image], toy_objects())
    whole = look(toy, [scene.image], [scene.prompt], 300, **merge_captures(*RECIPES.values()))
    counts = Counter(len(np.unique(made(whole, [scene.image], toy_objects())[0].labels)) >= 2 for made in ALL)
    assert counts == {True: len(ALL)}
