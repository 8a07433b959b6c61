"""Refinement: every filter against a slow, literal reference, and what must hold whatever comes in."""
import math

import numpy as np
import pytest
import torch
from synseg_kit import refinement
from synseg_kit.refinement import CRFSettings, brute_force_crf, dense_crf, guided_filter, pamr, propagate
from torch.nn import functional as F


def photograph(height, width, seed=0, regions=5, grain=8.):
    "Regions of one colour each, with light that changes slowly, blurred borders and grain: uint8 [3, h, w], and the region of each pixel."
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    centres = torch.rand(2, regions, 1, 1, generator=random) * torch.tensor([height, width]).view(2, 1, 1, 1)
    wobble = 3 * F.interpolate(torch.randn(1, 1, 6, 6, generator=random), (height, width), mode='bicubic')[0]
    region = ((y - centres[0]) ** 2 + (x - centres[1]) ** 2 + 20 * wobble).argmin(0)
    colours = 60 + 140 * torch.rand(regions, 3, generator=random)
    light = 25 * F.interpolate(torch.randn(1, 3, 4, 4, generator=random), (height, width), mode='bicubic')[0]
    image = F.avg_pool2d(F.pad(colours[region].permute(2, 0, 1)[None], (1,) * 4, mode='replicate'), 3, 1)[0] + light
    return (image + grain * torch.randn(image.shape, generator=random)).clamp(0, 255).round().byte(), region


def told(region, seed=0, noise=1., side=6):
    "The regions as a coarse, blurred, noisy map tells them: probabilities [class, h, w]."
    random = torch.Generator().manual_seed(seed + 1000)
    one_hot = F.one_hot(region).permute(2, 0, 1).float()
    coarse = F.adaptive_avg_pool2d(one_hot, side).clamp(min=.02).log()
    coarse = F.interpolate((coarse + noise * torch.randn(coarse.shape, generator=random))[None], region.shape, mode='bilinear')[0]
    return (coarse + .3 * torch.randn(coarse.shape, generator=random)).softmax(0)


def scene(height, width, seeds=(0,), **options):
    "Probabilities [b, class, h, w] and images [b, 3, h, w]."
    made = [photograph(height, width, seed, **options) for seed in seeds]
    return torch.stack([told(region, seed) for seed, (_, region) in zip(seeds, made)]), torch.stack([image for image, _ in made])


# ---- the dense CRF


def literal_crf(probabilities, image, settings):
    "Mean field, pixel by pixel, as it is written."
    classes, height, width = probabilities.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    colour, told_there = image.double().permute(1, 2, 0).numpy(), probabilities.double().permute(1, 2, 0).numpy()

    def kernels(a, b):
        apart = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        colours = ((colour[a] - colour[b]) ** 2).sum() / settings.colour_sigma ** 2
        return np.array([math.exp(-apart / settings.gaussian_sigma ** 2 / 2), math.exp(-(apart / settings.bilateral_sigma ** 2 + colours) / 2)])
    sums = {a: sum(kernels(a, b) for b in places) for a in places}  # with the pixel itself
    weights, beliefs = np.array([settings.gaussian_weight, settings.bilateral_weight]), {a: told_there[a] for a in places}
    for _ in range(settings.iterations):
        pulls = {a: sum((weights * kernels(a, b) / np.sqrt(sums[a] * sums[b])).sum() * beliefs[b] for b in places) for a in places}
        beliefs = {a: told_there[a] * np.exp(pulls[a]) for a in places}
        beliefs = {a: belief / belief.sum() for a, belief in beliefs.items()}
    return torch.tensor(np.array([beliefs[a] for a in places])).T.view(classes, height, width)


def test_brute_force_is_mean_field_as_written():
    probabilities, images = scene(5, 7)
    settings = CRFSettings(iterations=3, gaussian_sigma=1.5, bilateral_sigma=4., colour_sigma=20., gaussian_weight=2., bilateral_weight=5.)
    expected = literal_crf(probabilities[0], images[0], settings)
    assert torch.allclose(brute_force_crf(probabilities, images, settings)[0].double(), expected, atol=1e-6)
    assert (dense_crf(probabilities, images, settings)[0].double() - expected).abs().mean() < 2e-3


@pytest.mark.parametrize('height, width, options, settings', [
    (24, 24, {}, CRFSettings()),
    (40, 32, {}, CRFSettings()),
    (33, 27, dict(grain=20.), CRFSettings()),
    (56, 71, {}, CRFSettings(bilateral_sigma=12.)),
    (56, 71, dict(grain=14.), CRFSettings(bilateral_sigma=20., num_colours=256)),
    (70, 45, dict(regions=8), CRFSettings(bilateral_sigma=20., colour_sigma=8.)),
    (48, 60, dict(grain=3.), CRFSettings(gaussian_sigma=1., bilateral_sigma=67., colour_sigma=3., bilateral_weight=4.)),  # DeepLab's
])
def test_filters_agree_with_brute_force(height, width, options, settings):
    differences, alike, relabelled = [], 0, 0
    for seed in range(3):
        probabilities, images = scene(height, width, (seed,), **options)
        exact, fast = brute_force_crf(probabilities, images, settings), dense_crf(probabilities, images, settings)
        changed = exact.argmax(1) != probabilities.argmax(1)
        differences.append((exact - fast).abs().mean().item())
        alike, relabelled = alike + (exact.argmax(1) == fast.argmax(1))[changed].sum().item(), relabelled + changed.sum().item()
    assert max(differences) < .006
    assert relabelled > .03 * 3 * height * width and alike > .95 * relabelled


@pytest.mark.parametrize('sigma', [1.5, 3., 20., 80.])
def test_an_image_of_one_colour_leaves_position_only(sigma):
    probabilities, images = scene(31, 47)
    images = torch.full_like(images, 77)
    settings = CRFSettings(bilateral_sigma=sigma)
    expected = brute_force_crf(probabilities, images, settings)
    difference = (dense_crf(probabilities, images, settings) - expected).abs()
    assert difference.mean() < 1e-3 and difference.max() < .05


def test_position_alone_is_exact():
    probabilities, images = scene(21, 34)
    settings = CRFSettings(bilateral_weight=0.)
    assert torch.allclose(dense_crf(probabilities, images, settings), brute_force_crf(probabilities, images, settings), atol=2e-3)
    nothing = CRFSettings(bilateral_weight=0., gaussian_weight=0.)
    assert torch.allclose(dense_crf(probabilities, images, nothing), probabilities, atol=1e-5)


def test_the_bilateral_filter_is_symmetric_and_near_the_kernel():
    probabilities, images = scene(30, 41)
    fast = refinement._BilateralFilter(images[:1].float() / 255, CRFSettings(bilateral_sigma=15.))(torch.eye(30 * 41))
    assert torch.allclose(fast, fast.T, atol=1e-5)
    y, x = torch.meshgrid(torch.arange(30.), torch.arange(41.), indexing='ij')
    features = torch.cat([torch.stack([y, x]).flatten(1) / 15, images[0].flatten(1) / 13]).T.double()
    exact, maps = refinement._normalised_kernel(features).float(), probabilities[0].flatten(1).T
    assert (fast - exact).norm() < .08 * exact.norm()
    assert ((fast - exact) @ maps).abs().mean() < .02 * (exact @ maps).abs().mean()


def test_pictures_know_nothing_of_each_other(monkeypatch):
    """Refined together they are, bit for bit, what they are alone; also where one has five colours and another hundreds."""
    probabilities, images = scene(40, 52, (0, 1, 2))
    images[1] = 128
    images[1, :, :12, :9], images[1, 0, 30:] = 20, 250
    settings = CRFSettings(bilateral_sigma=15., num_colours=64)
    together = dense_crf(probabilities, images, settings)
    monkeypatch.setattr(refinement, 'AT_ONCE', 1)
    assert torch.equal(together, dense_crf(probabilities, images, settings))
    assert all(torch.equal(together[i:i + 1], dense_crf(probabilities[i:i + 1], images[i:i + 1], settings)) for i in range(3))


def test_a_lone_colour_keeps_its_own_pull():
    images = torch.full((1, 3, 16, 16), 60, dtype=torch.uint8)
    images[0, :, 8, 8] = 250
    told_there = torch.tensor([.7, .3]).view(1, 2, 1, 1).repeat(1, 1, 16, 16)
    told_there[0, :, 8, 8] = torch.tensor([.2, .8])
    settings = CRFSettings(gaussian_weight=0., num_colours=1)  # too small a palette for two colours
    assert dense_crf(told_there, images, settings)[0, 1, 8, 8] > .99 and brute_force_crf(told_there, images, settings)[0, 1, 8, 8] > .99


@pytest.mark.parametrize('refine', [dense_crf, brute_force_crf])
def test_crf_gives_distributions_and_keeps_classes_apart(refine):
    probabilities, images = scene(29, 38, (1, 2))
    refined = refine(probabilities, images)
    assert refined.shape == probabilities.shape and refined.dtype == torch.float32
    assert torch.allclose(refined.sum(1), torch.ones(2, 29, 38), atol=1e-5) and refined.min() >= 0
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(refine(probabilities[:, order], images), refined[:, order], atol=1e-4)
    for i in range(2): assert torch.allclose(refine(probabilities[i:i + 1], images[i:i + 1])[0], refined[i], atol=1e-5)


@pytest.mark.parametrize('height, width', [(1, 1), (1, 40), (37, 1), (2, 3), (17, 90)])
def test_crf_takes_any_size(height, width):
    random = torch.Generator().manual_seed(0)
    images, probabilities = torch.randint(0, 256, (2, 3, height, width), generator=random).byte() // 32 * 32, torch.rand(2, 3, height, width, generator=random).softmax(1)
    difference = dense_crf(probabilities, images) - brute_force_crf(probabilities, images)
    assert difference.abs().mean() < .01


def test_images_of_noise_stay_distributions():
    random = torch.Generator().manual_seed(0)
    images, probabilities = torch.randint(0, 256, (1, 3, 64, 64), generator=random).byte(), torch.rand(1, 4, 64, 64, generator=random).softmax(1)
    refined = dense_crf(probabilities, images, CRFSettings(num_colours=32, colour_sigma=4.))
    assert refined.isfinite().all() and torch.allclose(refined.sum(1), torch.ones(1, 64, 64), atol=1e-5)


def test_crf_holds_few_numbers_at_once(monkeypatch):
    probabilities, images = scene(40, 40)
    expected = dense_crf(probabilities, images)
    monkeypatch.setattr(refinement, 'MOST_VALUES', 1)  # class by class
    assert torch.allclose(dense_crf(probabilities, images), expected, atol=1e-5)
    monkeypatch.setattr(refinement, 'MOST_CELLS', 100)
    with pytest.raises(ValueError, match='fewer num_colours'): dense_crf(probabilities, images)


def test_a_certain_class_of_one_is_left_alone():
    images = scene(9, 9)[1]
    assert torch.equal(dense_crf(torch.ones(1, 1, 9, 9), images), torch.ones(1, 1, 9, 9))


@pytest.mark.parametrize('wrong', [dict(iterations=0), dict(gaussian_sigma=0.), dict(bilateral_sigma=-1.), dict(colour_sigma=math.inf), dict(colour_sigma=math.nan),
                                   dict(gaussian_weight=-1.), dict(bilateral_weight=math.nan), dict(num_colours=0)])
def test_crf_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): CRFSettings(**wrong)


@pytest.mark.parametrize('refine', [dense_crf, brute_force_crf])
def test_crf_refuses_what_is_no_distribution(refine):
    images = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match='sum to 1'): refine(torch.full((1, 2, 4, 5), .9), images)
    with pytest.raises(ValueError, match='from 0 to 1, got -0.5'): refine(torch.tensor([-.5, 1.5]).view(1, 2, 1, 1).expand(1, 2, 4, 5), images)
    with pytest.raises(ValueError, match='not finite'): refine(torch.full((1, 2, 4, 5), math.nan), images)


def test_several_guesses_are_refined_apart():
    (_, images), guesses = scene(24, 31, (1, 2)), torch.rand(2, 3, 4, 24, 31, generator=torch.Generator().manual_seed(1)).softmax(2)
    together = dense_crf(guesses, images)
    assert together.shape == guesses.shape
    for i in range(3): assert torch.allclose(together[:, i], dense_crf(guesses[:, i].contiguous(), images), atol=1e-5)
    with pytest.raises(ValueError, match='sum to 1'): dense_crf(torch.cat([guesses, 2 * guesses[:, :1]], 1), images)


# ---- PAMR


def literal_pamr(maps, pixels, iterations, dilations):
    "The published module, one pixel at a time."
    _, height, width = maps.shape
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]

    def at(array, y, x): return array[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
    for _ in range(iterations):
        refined = np.zeros_like(maps)
        for y in range(height):
            for x in range(width):
                window = np.array([at(pixels, y + d * dy, x + d * dx) for d in dilations for dy, dx in around])
                places = [(y + d * dy, x + d * dx) for d in dilations for dy, dx in around if dy or dx]
                differences = np.abs(np.array([at(pixels, *place) for place in places]) - pixels[:, y, x])
                logits = (-differences / (1e-8 + .1 * window.std(0, ddof=1))).mean(1)
                weights = np.exp(logits - logits.max())
                refined[:, y, x] = sum(weight * at(maps, *place) for weight, place in zip(weights / weights.sum(), places))
        maps = refined
    return maps


@pytest.mark.parametrize('height, width, dilations', [(9, 7, (1, 3)), (6, 11, (1, 2, 4, 8, 12, 24))])
def test_pamr_equals_the_published_module(height, width, dilations):
    probabilities, images = scene(height, width, (0, 1))
    fast = pamr(probabilities, images, 2, dilations)
    for i in range(2):
        slow = literal_pamr(probabilities[i].double().numpy(), images[i].double().numpy() / 255, 2, dilations)
        assert np.allclose(fast[i], slow, atol=1e-4)


def test_pamr_is_a_mean():
    probabilities, images = scene(33, 26, (0, 1))
    refined = pamr(probabilities, images)
    assert torch.allclose(refined.sum(1), torch.ones(2, 33, 26), atol=1e-4)
    assert (refined <= probabilities.amax((2, 3), keepdim=True) + 1e-5).all() and (refined >= probabilities.amin((2, 3), keepdim=True) - 1e-5).all()
    assert torch.allclose(pamr(probabilities[1:], images[1:]), refined[1:], atol=1e-6)
    assert torch.allclose(pamr(probabilities.flip(1), images), refined.flip(1), atol=1e-6)
    assert torch.allclose(pamr(probabilities.flip(3), images.flip(3)), refined.flip(3), atol=1e-5)
    one_colour = torch.full_like(images, 9)  # nothing divided by zero
    assert pamr(probabilities, one_colour).isfinite().all()


@pytest.mark.parametrize('wrong, message', [(dict(iterations=0), 'iterations'), (dict(dilations=()), 'dilations'), (dict(dilations=(1, 0)), 'dilations')])
def test_pamr_refuses(wrong, message):
    with pytest.raises(ValueError, match=message): pamr(*scene(8, 8), **wrong)


# ---- the guided filter


def literal_guided(maps, pixels, radius, epsilon):
    "Ridge regression in every window, and the mean of what all windows of a pixel say."
    _, height, width = maps.shape
    total, count = np.zeros_like(maps), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            window = np.s_[:, max(y - radius, 0):y + radius + 1, max(x - radius, 0):x + radius + 1]
            colours, values = pixels[window].reshape(3, -1), maps[window].reshape(len(maps), -1)
            mean_colour, mean_value, size = colours.mean(1, keepdims=True), values.mean(1, keepdims=True), colours.shape[1]
            rows = np.concatenate([(colours - mean_colour).T, math.sqrt(epsilon * size) * np.eye(3)])
            slope = np.linalg.lstsq(rows, np.concatenate([(values - mean_value).T, np.zeros((3, len(maps)))]), rcond=None)[0]
            total[window] += (slope.T @ (colours - mean_colour) + mean_value).reshape(maps[window].shape)
            count[window[1:]] += 1
    return total / count


@pytest.mark.parametrize('height, width, radius, epsilon', [(12, 17, 2, 1e-3), (9, 8, 8, 1e-2), (20, 13, 4, 1e-4)])
def test_guided_filter_equals_regression_in_windows(height, width, radius, epsilon):
    probabilities, images = scene(height, width, (0, 1))
    fast = guided_filter(probabilities, images, radius, epsilon)
    for i in range(2):
        slow = literal_guided(probabilities[i].double().numpy(), images[i].double().numpy() / 255, radius, epsilon)
        assert np.allclose(fast[i], slow, atol=2e-3 if epsilon < 1e-3 else 2e-4)


def test_guided_filter_is_linear_in_what_it_filters():
    probabilities, images = scene(23, 31, (0, 1))
    refined = guided_filter(probabilities, images)
    assert torch.allclose(refined.sum(1), torch.ones(2, 23, 31), atol=1e-4)
    assert torch.allclose(guided_filter(2 * probabilities - .5, images), 2 * refined - .5, atol=1e-4)
    assert torch.allclose(guided_filter(probabilities[1:], images[1:]), refined[1:], atol=1e-5)
    one_colour = guided_filter(probabilities, torch.full_like(images, 120), radius=2)  # a mean of means
    assert torch.allclose(one_colour, refinement._box_mean(refinement._box_mean(probabilities, 2), 2), atol=1e-4)


@pytest.mark.parametrize('wrong', [dict(radius=0), dict(epsilon=0.), dict(epsilon=math.nan)])
def test_guided_filter_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): guided_filter(*scene(8, 8), **wrong)


# ---- all that follow the image


IMAGE_GUIDED = [dense_crf, brute_force_crf, pamr, guided_filter]


@pytest.mark.parametrize('refine', IMAGE_GUIDED)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-5)])
def test_types_come_back(refine, dtype, tolerance):
    probabilities, images = scene(18, 22)
    rounded = probabilities.to(dtype)
    refined = refine(rounded, images)
    assert refined.dtype == dtype and torch.allclose(refined.float(), refine(rounded.float(), images), atol=tolerance)


@pytest.mark.parametrize('refine', IMAGE_GUIDED)
def test_images_of_bytes_and_of_floats_are_one(refine):
    probabilities, images = scene(18, 22)
    before = probabilities.clone(), images.clone()
    assert torch.allclose(refine(probabilities, images), refine(probabilities, images / 255), atol=1e-5)
    assert torch.equal(probabilities, before[0]) and torch.equal(images, before[1])
    with pytest.raises(ValueError, match='0 to 1, got'): refine(probabilities, images.float())


@pytest.mark.parametrize('refine', IMAGE_GUIDED)
def test_edges_of_the_image_are_found(refine):
    image, region = photograph(48, 60, seed=4)
    probabilities = told(region, seed=4, noise=.3, side=4)[None]
    options = dict(settings=CRFSettings(gaussian_sigma=1., bilateral_sigma=10.)) if refine in (dense_crf, brute_force_crf) else {}
    right = [(maps.argmax(1)[0] == region).float().mean().item() for maps in (probabilities, refine(probabilities, image[None], **options))]
    assert right[1] > right[0] + .02


@pytest.mark.parametrize('refine', IMAGE_GUIDED)
def test_shapes_that_do_not_fit_are_refused(refine):
    refine = getattr(refine, '__wrapped__', refine)
    while hasattr(refine, '__wrapped__'): refine = refine.__wrapped__  # below the check of annotations that tests add
    probabilities, images = scene(8, 6)
    for wrong, message in (((probabilities[0], images), r'\[b, class, h, w\]'), ((probabilities.long() + 1, images), 'floating point'), ((probabilities[..., :0], images[..., :0]), 'floating point'),
                           ((probabilities, images[:, :2]), r'\[b, 3, h, w\]'), ((probabilities, images.long()), 'uint8'), ((probabilities, images[..., :5]), 'interpolate'),
                           ((probabilities, images.repeat(2, 1, 1, 1)), 'number or size')):
        with pytest.raises(ValueError, match=message): refine(*wrong)


# ---- self-attention


@pytest.fixture
def random(): return torch.Generator().manual_seed(0)


@pytest.mark.parametrize('height, width', [(4, 4), (3, 5), (1, 7)])
def test_propagation_is_a_matrix_power(height, width, random):
    maps = torch.rand(2, 3, height, width, generator=random)
    attention = torch.rand(2, height * width, height * width, generator=random).mul(5).softmax(-1)
    expected = (torch.linalg.matrix_power(attention, 4) @ maps.flatten(2).mT).mT.view_as(maps)
    assert torch.allclose(propagate(maps, attention), expected, atol=1e-6)
    assert torch.equal(propagate(maps, attention, 0), maps)
    assert torch.allclose(propagate(maps[1], attention[1]), expected[1], atol=1e-6)


def test_propagation_finds_its_grid(random):
    maps, eye = torch.rand(1, 2, 32, 16, generator=random), torch.eye(32)[None]
    area = F.interpolate(maps, (8, 4), mode='area')
    assert torch.allclose(propagate(maps, eye), area) and torch.allclose(propagate(maps, eye, grid=(8, 4)), area)
    assert propagate(maps, eye, grid=(4, 8)).shape == (1, 2, 4, 8)
    enlarged = propagate(maps[..., :4, :2], eye, grid=(8, 4))
    assert torch.allclose(enlarged, F.interpolate(maps[..., :4, :2], (8, 4), mode='bilinear'))
    assert torch.allclose(propagate(maps, eye, resize_back=True), F.interpolate(area, (32, 16), mode='bilinear'))
    assert propagate(maps[0], eye[0], grid=(8, 4), resize_back=True).shape == (2, 32, 16)
    with pytest.raises(ValueError, match='a product of 32'): propagate(maps, eye, grid=(5, 6))
    with pytest.raises(ValueError, match='does not fit'): propagate(maps, torch.eye(31)[None])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_propagation_keeps_the_type(dtype, random):
    maps, attention = torch.rand(1, 2, 6, 6, generator=random), torch.rand(1, 36, 36, generator=random).softmax(-1)
    flowed = propagate(maps.to(dtype), attention.to(dtype))
    assert flowed.dtype == dtype and torch.allclose(flowed.float(), propagate(maps, attention), atol=1e-2)


def test_propagation_refuses(random):
    maps, attention = torch.rand(1, 2, 4, 4, generator=random), torch.eye(16)[None]
    with pytest.raises(ValueError, match='sum to 1'): propagate(maps, 1.5 * attention)
    with pytest.raises(ValueError, match='sum to 1'): propagate(maps, attention * math.nan)
    with pytest.raises(ValueError, match='power'): propagate(maps, attention, -1)
    bare = propagate
    while hasattr(bare, '__wrapped__'): bare = bare.__wrapped__
    for wrong, message in (((maps[0], attention), r'\[n, n\]'), ((maps, attention[0]), r'\[b, n, n\]'), ((maps, attention[..., :3]), r'\[b, n, n\]'), ((maps[0, 0], attention[0]), 'maps are'),
                           ((maps.repeat(2, 1, 1, 1), attention), 'maps of 2 images')):
        with pytest.raises(ValueError, match=message): bare(*wrong)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize('refine', IMAGE_GUIDED)
def test_gpu_equals_cpu(refine):
    probabilities, images = scene(60, 77, (0, 1))
    refined = refine(probabilities.cuda(), images.cuda())
    assert refined.is_cuda
    difference = (refined.cpu() - refine(probabilities, images)).abs()
    assert difference.mean() < 1e-3


@pytest.mark.gpu
def test_gpu_propagates(random):
    maps, attention = torch.rand(2, 3, 8, 8, generator=random), torch.rand(2, 64, 64, generator=random).softmax(-1)
    assert torch.allclose(propagate(maps.cuda(), attention.cuda()).cpu(), propagate(maps, attention), atol=1e-5)
