"""Filters: every measure on cases counted by hand, every rejection with its reason, and a stream that any interruption leaves as it was."""
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from synseg_kit.attention import capture
from synseg_kit.classes import ClassSet
from synseg_kit.datasets import Sample
from synseg_kit.filters import (HASHES, AreaLimits, Candidate, Confidence, Duplicates, Filters, Rejection, Report, Shown, area_limits, hamming, map_contrast, perceptual_hash, show_verdicts,
                                winning_area)
from synseg_kit.masks import PseudoMask
from synseg_kit.prompts import Mention, Prompt
from synseg_kit.toyworld import held_out_seeds, render
from tiny import generators, tiny_pipeline, tiny_prompt

LETTERS = ClassSet('letters', ('a', 'b', 'c'))
A, B = Prompt('a', (Mention(1, 0, 1),)), Prompt('a b', (Mention(1, 0, 1), Mention(2, 2, 3)))


def sample(shares, prompt=A, reliability=1., image=None, seed=0):
    "A sample of 10 x 20 pixels in which each id has a number of pixels, the rest is background."
    labels = np.repeat([*shares, 0], [*shares.values(), 200 - sum(shares.values())]).reshape(10, 20).astype(np.uint8)
    return Sample(image or Image.new('RGB', (20, 10), (seed % 256, 7, 9)), PseudoMask(labels, np.full((10, 20), reliability, np.float32)), prompt, seed)


def picture(seed, size=64):
    "A smooth random picture."
    g = torch.Generator().manual_seed(seed)
    colours = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=g), (size, size), mode='bicubic')[0].clamp(0, 1)
    return Image.fromarray((colours.permute(1, 2, 0) * 255).numpy().astype(np.uint8))


# ---- area


@pytest.mark.parametrize('pixels, expected', [(1, (.005, .01)), (2, None), (180, None), (181, (.905, .9))])
def test_area_is_a_share_of_the_image(pixels, expected):
    found = AreaLimits().judge(4, sample({1: pixels}))
    assert (found and (found.value, found.limit)) == expected
    if found: assert (found.number, found.filter, found.what, found.class_id) == (4, 'area', 'share', 1)


def test_every_mentioned_class_is_measured():
    assert AreaLimits().judge(0, sample({1: 50}, B)) == Rejection(0, 'area', 'share', 0., .01, 2)  # b is nowhere
    assert AreaLimits().judge(0, sample({1: 50, 3: 1}, A)) is None  # c is not asked for
    own = AreaLimits(classes={2: (.3, .5)})
    assert own.judge(0, sample({1: 50, 2: 50}, B)).limit == .3 and own.judge(0, sample({1: 50, 2: 110}, B)).limit == .5 and own.judge(0, sample({1: 50, 2: 80}, B)) is None
    assert AreaLimits().judge(0, sample({}, Prompt('nothing'))) is None
    assert AreaLimits(**json.loads(json.dumps({'least': .1, 'classes': {2: [.3, .5]}}))).classes == {2: (.3, .5)}


def test_limits_from_a_first_lot():
    lot = [sample({1: n, 2: n // 2}, B) for n in range(0, 100)]
    found = area_limits(lot, .1, .9, least=.2)
    shares = np.arange(100) / 200
    assert np.allclose(found.classes[1], np.quantile(shares, (.1, .9))) and found.least == .2 and set(found.classes) == {1, 2}
    left = [found.judge(i, one) for i, one in enumerate(lot)]
    assert 70 <= left.count(None) <= 90
    assert area_limits(lot[:10] + [sample({1: 5})] * 10).classes.keys() == {1}  # ten of b are too few
    assert area_limits(reversed(lot)) == area_limits(lot)
    with pytest.raises(ValueError, match='no areas'): area_limits([])
    with pytest.raises(ValueError, match='smaller first'): area_limits(lot, .9, .1)


# ---- attention


def test_contrast():
    maps = torch.tensor([[[1., 1.], [1., 1.]], [[0., 2.], [2., 0.]], [[0., 0.], [0., 4.]]])
    assert torch.allclose(map_contrast(maps), torch.tensor([0., 1., 3 ** .5])) and torch.allclose(map_contrast(1e-3 * maps), map_contrast(maps))
    assert map_contrast(torch.zeros(2, 2)) == 0 and map_contrast(maps[None].expand(5, -1, -1, -1)).shape == (5, 3)


def test_winning_area():
    maps = torch.zeros(2, 4, 5)
    maps[0, 0], maps[1, 1:3] = .7, .002  # the second is weaker, and stretched alike
    assert torch.allclose(winning_area(maps), torch.tensor([.25, .5])) and torch.allclose(winning_area(maps[None].expand(3, -1, -1, -1)), torch.tensor([.25, .5]).expand(3, 2))
    maps[1, 0] = .001
    assert torch.allclose(winning_area(maps), torch.tensor([.25, .5])) and torch.allclose(winning_area(maps, background=False).sum(), torch.tensor(1.))
    assert winning_area(torch.full((1, 3, 3), .2)) == 0  # a flat map wins nothing


def test_shown_says_which_class_is_missing():
    there, flat, beaten = torch.zeros(8, 8), torch.full((8, 8), .5), torch.zeros(8, 8)
    there[2:6, 2:6], flat[0, 0], beaten[3, 3] = 1, .51, 1
    one = sample({1: 50, 2: 50}, B)
    assert Shown().judge(0, one, ((1, 2), torch.stack([there, there.flip(0).roll(3, 1)]))) is None
    found = Shown().judge(0, one, ((1, 2), torch.stack([there, flat])))
    assert (found.what, found.class_id, found.limit) == ('contrast', 2, .1) and found.value < .01
    found = Shown(area=.05).judge(0, one, ((1, 2), torch.stack([there, beaten])))
    assert (found.what, found.class_id, found.value) == ('winning area', 2, 0)  # all of it is the other's
    assert Shown().judge(0, sample({}, Prompt('')), ((), torch.zeros(0, 4, 4))) is None
    with pytest.raises(ValueError, match='give the heat'): Shown().judge(0, one)
    with pytest.raises(ValueError, match=r'classes \[1\], the prompt mentions \[1, 2\]'): Shown().judge(0, one, ((1,), there[None]))


def test_shown_reads_a_trace():
    pipe, prompts = tiny_pipeline(), [tiny_prompt('a cat and a mushroom'), tiny_prompt('the red ball')]
    with capture(pipe, prompts) as trace: images = pipe([p.text for p in prompts], generator=generators(2), num_inference_steps=2, height=32, width=48, output_type='pil').images
    for i, (image, prompt) in enumerate(zip(images, prompts)):
        one = Sample(image, PseudoMask(np.zeros((32, 48), np.uint8), np.ones((32, 48), np.float32)), prompt, i)
        assert Shown(contrast=0., area=0.).judge(i, one, trace.class_maps(i)) is None
        contrast = map_contrast(trace.class_maps(i)[1]).min().item()
        assert np.isclose(Shown(contrast=2 * contrast).judge(i, one, trace.class_maps(i)).value, contrast) or Shown(contrast=2 * contrast).judge(i, one, trace.class_maps(i)).what == 'contrast'


# ---- confidence


def test_confidence():
    one = sample({255: 100, 1: 50}, reliability=.4)
    assert Confidence().judge(0, one) is None  # half is not more than half
    assert Confidence(most_void=.49).judge(3, one) == Rejection(3, 'confidence', 'share of void', .5, .49)
    found = Confidence(least_mean=.5).judge(0, one)
    assert found.what == 'mean reliability' and np.isclose(found.value, .4) and Confidence(least_mean=.39).judge(0, one) is None
    mixed = PseudoMask(one.mask.labels, np.where(one.mask.labels == 255, 0, .8).astype(np.float32))
    assert Confidence(.79).judge(0, SimpleNamespace(image=one.image, mask=mixed, prompt=A)) is None  # void does not pull the mean down
    nothing = sample({255: 200})
    assert Confidence(most_void=1.).judge(0, nothing) is None and Confidence(.1, 1.).judge(0, nothing).value == 0
    assert Confidence(void=7, most_void=.2).judge(0, sample({7: 100})).value == .5


# ---- near-duplicates


def slow_phash(grey):
    "Zauner's hash by the definition of the cosine transform, for a grey picture of 32 x 32."
    found = np.zeros((8, 8))
    for u in range(1, 9):
        for v in range(1, 9):
            found[u - 1, v - 1] = sum(grey[y, x] * np.cos(np.pi * (2 * y + 1) * u / 64) * np.cos(np.pi * (2 * x + 1) * v / 64) for y in range(32) for x in range(32))
    return int(''.join('1' if bit else '0' for bit in (found > np.median(found)).ravel()), 2)


def test_perceptual_hash_is_its_definition():
    for seed in range(3):
        grey = np.asarray(picture(seed, 32).convert('L'))
        assert int(perceptual_hash([grey])[0]) == slow_phash(grey.astype(float))


def test_difference_hash_is_its_definition():
    grey = np.random.default_rng(0).integers(256, size=(8, 9)).astype(np.uint8)
    bits = ''.join('1' if right > left else '0' for row in grey.astype(int) for left, right in zip(row, row[1:]))
    assert int(perceptual_hash([grey], 'dhash')[0]) == int(bits, 2)
    large = grey.repeat(5, 0).repeat(7, 1)  # means over equal areas are the same picture
    assert perceptual_hash([large], 'dhash') == perceptual_hash([grey], 'dhash')


def test_small_images_shrink_by_exact_areas():
    image = np.random.default_rng(0).integers(256, size=(13, 17)).astype(np.uint8)
    fine = image.repeat(32, 0).repeat(32, 1).astype(float).reshape(32, 13, 32, 17).mean((1, 3))
    assert int(perceptual_hash([image])[0]) == slow_phash(fine)


@pytest.mark.parametrize('kind', HASHES)
def test_hashes_know_what_looks_alike(kind):
    rng = np.random.default_rng(0)
    images = [np.asarray(picture(seed)) for seed in range(20)]
    hashes = perceptual_hash(images, kind)
    assert hashes.dtype == np.uint64 and (hamming(hashes, perceptual_hash(images, kind)) == 0).all()
    for change, limit in ((lambda x: (x + rng.normal(0, 3, x.shape)).clip(0, 255).astype(np.uint8), 8), (lambda x: (.9 * x).astype(np.uint8), 4),
                          (lambda x: np.asarray(Image.fromarray(x).resize((160, 96))), 8)):
        assert hamming(hashes, perceptual_hash([change(x) for x in images], kind)).max() <= limit
    assert hamming(hashes, perceptual_hash([x[:, ::-1] for x in images], kind)).min() >= 16
    others = hamming(hashes[:, None], hashes[None])[np.triu_indices(20, 1)]
    assert others.min() > 8 and 24 < others.mean() < 40


def test_mirrored_phash_is_half_of_the_bits_away():
    scenes = [render(seed).image for seed in held_out_seeds(30)]
    hashes = perceptual_hash(scenes)
    assert hamming(hashes, perceptual_hash([x[:, ::-1] for x in scenes])).min() >= 20
    noisy = [(x + np.random.default_rng(0).normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8) for x in scenes]
    assert hamming(hashes, perceptual_hash(noisy)).max() <= 8 < hamming(hashes[:, None], hashes[None])[np.triu_indices(30, 1)].min()


def test_hash_corner_cases():
    plain = [np.full((40, 30, 3), value, np.uint8) for value in (0, 99, 255)]
    for kind in HASHES: assert (perceptual_hash(plain, kind) == 0).all() and perceptual_hash([], kind).shape == (0,)
    assert hamming(np.uint64(5), np.uint64(6)) == 2 and hamming(np.array([0, 2 ** 64 - 1], np.uint64), np.uint64(0)).tolist() == [0, 64]
    with pytest.raises(ValueError, match='phash, dhash'): perceptual_hash(plain, 'md5')


def test_the_first_of_near_duplicates_stays():
    images = [picture(seed) for seed in (0, 1, 0, 2, 1)]
    filters = Filters(Duplicates())
    found = [filters.judge(sample({1: 50}, image=image.resize((20, 10)), seed=i)) for i, image in enumerate(images)]
    assert [f and f.like for f in found] == [None, None, 0, None, 1] and found[2] == Rejection(2, 'near-duplicates', 'different bits', 0, 8, like=0)


def test_a_sample_that_is_not_kept_blocks_nobody():
    image = picture(0).resize((20, 10))
    for filters in (Filters(Duplicates(), AreaLimits()), Filters(AreaLimits(), Duplicates())):
        stream = [sample({}, image=image), sample({1: 50}, image=image), sample({1: 60}, image=image)]
        assert [f and f.filter for f in map(filters.judge, stream)] == ['area', None, 'near-duplicates']
    assert filters.report.rejections[1].like == 1


def test_duplicates_of_one_prompt():
    image, other = picture(0).resize((20, 10)), Prompt('the a', (Mention(1, 4, 5),))
    stream = [sample({1: 50}, image=image), sample({1: 50}, other, image=image), sample({1: 50}, image=image)]
    assert [f and f.like for f in map(Filters(Duplicates(same_prompt=True)).judge, stream)] == [None, None, 0]
    assert [f and f.like for f in map(Filters(Duplicates()).judge, stream)] == [None, 0, 0]


def test_many_hashes():
    rng = np.random.default_rng(0)
    filters = Filters(Duplicates(limit=20, kind='dhash'))
    images = [Image.fromarray(rng.integers(256, size=(8, 9)).astype(np.uint8)).convert('RGB') for _ in range(120)]
    mask = PseudoMask(np.zeros((8, 9), np.uint8), np.ones((8, 9), np.float32))
    found = [filters.judge(Sample(image, mask, A, i)) for i, image in enumerate(images)]
    hashes, kept = perceptual_hash(images, 'dhash'), []
    for i, one in enumerate(found):
        distances = [int(hamming(hashes[i], hashes[k])) for k in kept]
        if distances and min(distances) <= 20: assert (one.value, one.like) == (min(distances), kept[int(np.argmin(distances))])
        else: assert one is None; kept.append(i)
    assert 50 < len(kept) < 120


# ---- a stream


def stream(count=30):
    "Samples of every kind: good, small, void, and repeating."
    rng = np.random.default_rng(0)
    return [sample({1: int(rng.integers(0, 9)), 255: int(rng.choice([0, 150]))}, image=picture(int(rng.integers(12))).resize((20, 10)), reliability=float(rng.random()), seed=i) for i in range(count)]


def some(): return Filters(AreaLimits(least=.01), Confidence(least_mean=.2), Duplicates(), class_set=LETTERS)


def test_a_stream_keeps_count_and_reasons():
    filters, samples = some(), stream()
    kept = [one.seed for one in filters.select(iter(samples))]
    report = filters.report
    assert kept == [i for i in range(30) if i not in {r.number for r in report.rejections}] and report.kept == len(kept) and report.seen == 30
    assert all(report.counts.values()) and sum(report.counts.values()) == 30 - len(kept)
    for r in report.rejections: assert r.value <= r.limit if r.what != 'share of void' else r.value > r.limit
    written = json.loads(json.dumps(report.to_dict()))
    assert written['rejected'] == report.counts and len(written['samples']) == 30 - len(kept) and {'number', 'filter', 'what', 'value', 'limit'} <= written['samples'][0].keys()
    again = some()
    assert [again(one) for one in samples] == [i in kept for i in range(30)] and again.report == report


def test_all_but_duplicates_do_not_mind_the_order():
    filters = (AreaLimits(least=.01), Confidence(least_mean=.2))
    samples = stream()
    forth, back = (Filters(*filters) for _ in range(2))
    kept = [[one.seed for one in f.select(s)] for f, s in ((forth, samples), (back, samples[::-1]))]
    assert kept[0] == kept[1][::-1]
    turned = [one.seed for one in Filters(*filters[::-1]).select(samples)]
    assert turned == kept[0]  # the order of the filters changes reasons only


@pytest.mark.parametrize('at', [0, 1, 13, 30])
def test_an_interrupted_stream_goes_on(at):
    whole, first, second, samples = some(), some(), some(), stream()
    expected = [whole.judge(one) for one in samples]
    found = [first.judge(one) for one in samples[:at]]
    second.restore(json.loads(json.dumps(first.state())))
    found += [second.judge(one) for one in samples[at:]]
    assert found == expected and second.report == whole.report and second.state() == whole.state()


def test_states_are_not_mixed_up():
    state = some().state()
    with pytest.raises(ValueError, match='other filters'): Filters(Duplicates()).restore(state)
    used = some()
    used(sample({1: 50}))
    with pytest.raises(ValueError, match='judged samples already'): used.restore(state)
    with pytest.raises(ValueError, match="two filters are called 'area'"): Filters(AreaLimits(), AreaLimits())
    assert Filters(AreaLimits(), AreaLimits(name='area of cars')).report.names == ('area', 'area of cars')
    assert some().describe()[0] == {'filter': 'AreaLimits', 'least': .01, 'most': .9, 'classes': {}, 'name': 'area'} and json.dumps(some().describe())


def test_numbers_may_be_given():
    filters = Filters(Duplicates())
    image = picture(0).resize((20, 10))
    assert filters.judge(sample({1: 9}, image=image), number=17) is None and filters.judge(sample({1: 9}, image=image), number=40) == Rejection(40, 'near-duplicates', 'different bits', 0, 8, like=17)


def test_heats_go_with_their_samples():
    there = torch.zeros(1, 8, 8)
    there[0, 2:6, 2:6] = 1
    heats = [((1,), there), ((1,), torch.ones(1, 8, 8))]
    filters = Filters(Shown())
    assert [one.seed for one in filters.select([sample({1: 50}, seed=5), sample({1: 50}, seed=6)], heats)] == [5] and filters.report.rejections[0].number == 1
    with pytest.raises(ValueError, match='shorter|longer'): list(Filters(Shown()).select([sample({1: 50})] * 2, heats[:1]))


@pytest.mark.parametrize('make, message', [
    (lambda: AreaLimits(least=.5, most=.2), 'smaller first'), (lambda: AreaLimits(classes={3: (.1, 1.2)}), 'limits of class 3'), (lambda: Shown(contrast=-1.), 'contrast'),
    (lambda: Shown(area=1.), 'area'), (lambda: Confidence(least_mean=2.), 'least_mean'), (lambda: Duplicates(limit=64), 'from 0 to 63'), (lambda: Duplicates(kind='md5'), 'phash, dhash')])
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_a_report_shows_itself(tmp_path):
    filters = some()
    assert filters.report._repr_markdown_() == 'No sample was judged yet.'
    for one in stream(): filters(one)
    lines = filters.report._repr_markdown_().splitlines()
    assert [line.split('|')[1].strip() for line in lines[2:]] == ['area', 'confidence', 'near-duplicates', '**kept**'] and 'share of a: 0' in lines[2]
    assert repr(filters).startswith('Filters(area, confidence, near-duplicates): ') and repr(filters.report).startswith('Report(')
    assert json.loads(filters.report.save(tmp_path / 'report.json').read_text()) == filters.report.to_dict()
    assert Report(1, ('x',), (Rejection(0, 'x', 'share', .5, .7, 2),)).to_dict()['samples'] == [{'number': 0, 'filter': 'x', 'what': 'share', 'value': .5, 'limit': .7, 'class_id': 2}]


def test_a_report_is_replaced_in_one_move(tmp_path, monkeypatch):
    file = Report(1, ('x',)).save(str(tmp_path / 'report.json'))
    before = file.read_bytes()

    def stop(*_): raise OSError
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', stop)
        with pytest.raises(OSError): Report(2, ('x',)).save(file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ['report.json']
    assert json.loads(Report(2, ('x',)).save(file).read_text())['seen'] == 2


def test_pictures_of_verdicts():
    samples = [sample({1: 50}), sample({})]
    figure = show_verdicts(samples, [some().judge(one) for one in samples], LETTERS)
    assert isinstance(figure, Figure) and [ax.get_title(loc='left') for ax in figure.axes] == ['kept\n', 'area\nshare 0']
    with pytest.raises(ValueError, match='2 samples and 1 verdicts'): show_verdicts(samples, [None], LETTERS)
    assert isinstance(samples[0], Candidate)
