"""The explorer's page, opened from disk in headless Chromium with the network off: what is clicked, and what is then there."""
import io
import json
import os
import re
import time
from importlib.util import find_spec

import numpy as np
import pytest
from chrome import CHROMIUM, Page
from PIL import Image
from synseg_kit.classes import toy_objects

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium'), pytest.mark.skipif(find_spec('websocket') is None, reason='needs websocket-client')]
TOYS = toy_objects()
APP = 'document.querySelector(".ss").explorer'
READY = f'Boolean(document.querySelector(".ss")?.explorer?.stages.length && {APP}.stages.every(stage => stage.small))'


@pytest.fixture(scope='module')
def run():
    """A short run of the shipped pipeline: trace by step, trace by layer, image."""
    import torch
    from synseg_kit.explorer import captures
    from synseg_kit.prompts import find_mentions
    from synseg_kit.toyworld import load_toy_pipeline
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompt = find_mentions('a photo of a cat and a dog on grass', TOYS)
    by_step, by_layer = captures(pipe, prompt)
    with by_step as trace, by_layer as layers:
        image = pipe(prompt.text, num_inference_steps=6, generator=torch.Generator().manual_seed(3)).images[0]
    return trace, layers, image


@pytest.fixture(scope='module')
def reference(run):
    """A mask to compare with."""
    from synseg_kit.recipes import recipe
    labels = recipe('synseg')(run[1], [run[2]], TOYS)[0].labels.copy()
    labels[:4] = TOYS.void
    return labels


@pytest.fixture(scope='module')
def kept(root):
    """The explorer that is kept for the docs: with previews, and with a segmenter's labels as reference."""
    from synseg_kit.explorer import load_explorer
    return load_explorer(root / 'nbs/images/explorer.safetensors')


@pytest.fixture(scope='module')
def files(run, reference, kept, tmp_path_factory):
    """The page of one run, that of two, and that of the kept one."""
    from synseg_kit.explorer import explore
    folder = tmp_path_factory.mktemp('pages')
    trace, layers, image = run
    explorer = explore(trace, image, TOYS, layers=layers, reference=reference)
    explorer.page(folder / 'one.html', ['layers', 'self', 'mask:otsu', 'mask:synseg'])
    explore(trace, image, TOYS, beside=(trace, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), titles=('as it is', 'mirrored'), view={'words': ['dog'], 'steps': [1, 4]}).page(folder / 'two.html')
    kept.page(folder / 'kept.html')
    return folder


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """One Chromium for all tests."""
    with Page() as page:
        page.folder_of_files = tmp_path_factory.mktemp('downloads')
        page.downloads(page.folder_of_files)
        yield page


@pytest.fixture
def shots(tmp_path):
    """Where screenshots go: SYNSEG_SCREENSHOTS, or a folder that pytest removes."""
    from pathlib import Path
    return Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path)


@pytest.fixture
def page(browser, files, shots, request):
    """The page of one run, freshly opened; afterwards it is held that nothing was asked for and nothing failed."""
    browser.requests.clear()
    browser.errors.clear()
    browser.mouse('mouseMoved', 1, 1)
    browser.open((files / getattr(request, 'param', 'one.html')).as_uri())
    browser.wait(READY)
    browser.settle()
    yield browser
    browser.screenshot(shots / f'{request.node.name}.png')
    assert all(re.match(r'file:///|data:|blob:', url) for url in browser.requests), browser.requests
    assert browser.errors == []


def pixels(page, selector='.ss-canvas'):
    """What a canvas shows."""
    import base64
    data = page.run(f'document.querySelector("{selector}").toDataURL()')
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(',')[2]))).convert('RGB')).astype(int)


def view(page): return page.run(f'{APP}.view')


def place(x, y): return (x + .5) / 128, (y + .5) / 128  # of a pixel, as shares of the image


def heat_at(maps, x, y):
    """The value of maps at a pixel, as torch enlarges them."""
    import torch
    return torch.nn.functional.interpolate(maps[None].float(), (128, 128), mode='bilinear')[0, :, y, x].numpy()


def ranks(page): return page.run('[...document.querySelectorAll(".ss-rank:not([hidden])")].map(row => [row.querySelector("b").textContent, parseFloat(row.querySelector("span").textContent)])')


def shown_labels(page): return np.array(page.run(f'Array.from({APP}.labels({APP}.maps, 0))'), np.uint8).reshape(128, 128)


# words and places

def test_a_word_under_the_pointer_is_shown(page, run):
    plain = pixels(page)
    page.hover('.ss-word::dog')
    dog = pixels(page)
    heat = run[0].word_map('dog', 0, weights=run[0].calls()).numpy()
    assert (dog != plain).any() and 'shown is dog, all 6 steps' in page.run('document.querySelector(".ss-canvas").getAttribute("aria-label")')
    r, c = np.unravel_index(heat.argmax(), heat.shape)
    hot, cold = (dog[int((y + .5) / 16 * 512), int((x + .5) / 16 * 512)] for y, x in ((r, c), np.unravel_index(heat.argmin(), heat.shape)))
    assert hot[:2].min() > hot[2] and cold[2] > cold[1]  # viridis ends in yellow and begins in violet
    page.mouse('mouseMoved', 1, 1)
    page.settle()
    assert (pixels(page) == plain).all()


def test_clicks_hold_words_and_shift_adds(page):
    page.click('.ss-word::dog')
    assert view(page)['words'] == [7] and page.run('document.querySelectorAll(".ss-word[aria-pressed=true]").length') == 1
    page.click('.ss-word::cat', shift=True)
    assert view(page)['words'] == [7, 4]
    page.mouse('mouseMoved', 1, 1)
    page.settle()
    assert page.text('.ss-readout').strip() == 'dog + cat'
    page.click('.ss-word::dog', shift=True)
    page.click('.ss-word::cat')
    assert view(page)['words'] == []


@pytest.mark.parametrize(('x', 'y'), [(40, 70), (90, 70), (5, 5), (127, 127)])
def test_words_at_a_place_are_the_traces(page, run, x, y):
    trace = run[0]
    names, maps = trace.token_maps(0, weights=trace.calls())
    values = heat_at(maps, x, y)[:10]
    page.hover('.ss-canvas', *place(x, y))
    found = ranks(page)
    order = sorted(range(10), key=lambda i: -values[i])
    assert [value for _, value in found] == pytest.approx([100 * values[i] for i in order], abs=.16)
    assert found[0][0] == names[order[0]].removesuffix('</w>') and page.text('.ss-word.ss-here').startswith(found[0][0])
    told = page.text('.ss-readout')
    assert f'x {x}  y {y}' in told and float(re.search(r'cat ([\d.]+) %', told)[1]) == pytest.approx(100 * values[4], abs=.08)


def test_a_click_pins_and_shows_self_attention(page, run):
    x, y = 44, 84
    page.click('.ss-canvas', *place(x, y))
    page.wait(f'Boolean({APP}.maps.self)')
    page.settle()
    assert view(page)['pin'] == [x, y]
    matrix = run[1].self_attention(0, 16)
    row = (matrix / matrix.sum(1, keepdim=True))[(y // 8) * 16 + x // 8].reshape(1, 16, 16)
    page.hover('.ss-canvas', *place(60, 60))
    told = float(re.search(r'looked at from the pin ([\d.]+) %', page.text('.ss-readout'))[1])
    assert told == pytest.approx(100 * heat_at(row, 60, 60)[0], abs=.06)
    page.press('Escape')
    assert view(page)['pin'] is None


def test_a_scribble_ranks_words_inside(page, run):
    page.click('.ss-left button::Scribble')
    page.drag('.ss-canvas', place(80, 65), place(100, 75), place(105, 60))
    region = np.array(page.run(f'Array.from({APP}.region)')).reshape(128, 128).astype(bool)
    import torch
    trace = run[0]
    maps = torch.nn.functional.interpolate(trace.token_maps(0, weights=trace.calls())[1][None], (128, 128), mode='bilinear')[0].numpy()
    found = ranks(page)
    assert region.sum() > 300 and found[0][0] == 'dog' and found[0][1] == pytest.approx(100 * maps[7][region].mean(), abs=.16)
    assert 'overlap' in page.text('.ss-panel h3')
    overlap = float(page.text('.ss-rank span').split('·')[1])
    low, high = maps[7].min(), maps[7].max()
    assert 0 < overlap < 1 and low < high


# time, layers

def test_time_moves_and_plays(page, run):
    trace = run[0]
    page.click('.ss-timeline', (2 + .5) / 6)
    assert view(page)['steps'] == [2, 2] and page.text('.ss-time .ss-link') == 'step 3 of 6'
    page.hover('.ss-canvas', *place(40, 70))
    value = heat_at(trace.token_maps(0, weights=trace.calls(), step=2)[1], 40, 70)[4]
    assert dict(ranks(page))['cat'] == pytest.approx(100 * value, abs=.16)
    page.drag('.ss-timeline', (.2, .5), (.65, .5))
    assert view(page)['steps'] == [1, 3] and page.text('.ss-time .ss-link') == 'steps 2 to 4 of 6'
    page.drag('.ss-timeline', (.4, .5), (.6, .5))  # from inside: the window moves
    assert view(page)['steps'] == [2, 4]
    page.click('.ss-play')
    page.wait(f'{APP}.view.steps[1] === 5 && !{APP}.playing')
    assert view(page)['steps'] == [3, 5]
    page.click('.ss-time .ss-link')
    assert view(page)['steps'] is None and page.text('.ss-time .ss-link') == 'all 6 steps'


@pytest.mark.parametrize('page', ['kept.html'], indirect=True)
def test_a_film_shows_what_the_model_expected(page, kept):
    from synseg_kit.atlas import unpack
    about, tensors = unpack(kept.part('previews'))
    film = np.asarray(Image.open(io.BytesIO(tensors['film'].tobytes()))).astype(int)
    page.wait(f'Boolean({APP}.maps.previews) && !document.querySelector(".ss-film").hidden')
    page.settle(60)
    assert about['steps'] == list(range(20)) and page.run(f'{APP}.maps.previewAt(7)') == 7
    page.click('.ss-film', (3 + .5) / 20)
    assert view(page)['steps'] == [3, 3] and view(page)['base'] == 'expected' and 'on the image as expected at step 4' in page.text('.ss-readout') + page.run(f'{APP}.baseText()')
    page.run(f'{APP}.change({{opacity: 0}}, 511)')
    page.mouse('mouseMoved', 1, 1)
    page.settle()

    def shown():  # the grey image under the heat, brought back to the film's size
        return np.asarray(Image.fromarray(pixels(page).astype(np.uint8)).resize((128, 128), Image.Resampling.BOX)).astype(int)
    grey = [(film[128 * k:128 * (k + 1)] @ [.299, .587, .114])[..., None] for k in (3, 19)]
    assert abs(shown() - grey[0]).mean() < 3 < 10 < abs(shown() - grey[1]).mean()
    page.click('.ss-time .ss-link')  # all steps: the finished image
    page.mouse('mouseMoved', 1, 1)
    page.settle()
    assert abs(shown() - grey[1]).mean() < 4 and 'on the finished image' in page.text('.ss-readout')
    page.drag('.ss-film', (.22, .5), (.47, .5))
    assert view(page)['steps'] == [4, 9]
    page.click('.ss-choice button::finished')
    assert view(page)['base'] == 'final' and 'on the' not in page.text('.ss-readout')


def test_no_film_where_nothing_was_heard(page):
    assert page.run('document.querySelector(".ss-film").hidden && document.querySelector(".ss-wanted").hidden') and not page.run(f'{APP}.baseField.offsetHeight')


@pytest.mark.parametrize('page', ['kept.html'], indirect=True)
def test_hovering_leaves_the_film_alone(page):
    page.wait(f'Boolean({APP}.maps.previews)')
    page.settle(60)
    page.run(f'window.drawn = 0; {{ const film = {APP}.film.getContext("2d"), draw = film.drawImage; film.drawImage = function(...a) {{ drawn++; return draw.apply(this, a); }}; }}')
    for word in ('cat', 'dog', 'grass'): page.hover(f'.ss-word::{word}')
    assert page.run('drawn') == 0
    page.click('.ss-timeline', .5)
    assert page.run('drawn') > 0


def test_layers_and_heads_are_fetched_picked_and_averaged(page, run):
    import torch
    _, layers, image = run
    assert not page.run(f'Boolean({APP}.maps.layerMaps)')
    page.click('.ss-choice button::Layers')
    page.wait('document.querySelectorAll(".ss-layer").length > 0')
    assert page.run('document.querySelectorAll(".ss-layer").length') == len(layers.layers)
    page.click('.ss-layer:nth-child(2) .ss-cell:nth-of-type(3)')  # second layer, second head: the first of its pictures is the mean over heads
    assert view(page)['layers'] == [[1, 1]]
    page.hover('.ss-canvas', *place(40, 70))
    page.click('.ss-side button::Save')
    namespace = {'trace': layers, 'image': image}
    exec(page.text('.ss-code'), namespace)  # the layer's map, brought to the finest grid as the page does it
    page.click('.ss-side button::Look')
    page.hover('.ss-canvas', *place(40, 70))
    assert dict(ranks(page))['cat'] == pytest.approx(100 * heat_at(torch.from_numpy(namespace['heat'])[None], 40, 70)[0], abs=.1)
    for order in ('by focus', 'by likeness', 'by fit', 'by depth'):
        page.click(f'.ss-choice button::{order}')
        names = page.run('[...document.querySelectorAll(".ss-layer-name")].map(node => node.title)')
        assert sorted(names) == sorted(layers.layers) and (names == list(layers.layers)) == (order == 'by depth')
    page.click('.ss-link::mean of 1 picked')
    assert view(page)['layers'] == []


def test_small_pictures_follow(page):
    assert page.run('document.querySelectorAll(".ss-gallery .ss-cell").length') == 13
    page.click('.ss-gallery .ss-cell::grass')
    assert view(page)['words'] == [9]
    page.click('.ss-choice button::Steps')
    assert page.run('document.querySelectorAll(".ss-gallery .ss-cell").length') == 6
    page.click('.ss-gallery .ss-cell::step 5')
    assert view(page)['steps'] == [4, 4]


@pytest.mark.parametrize('kind', ['Light', 'Winner', 'Spread'])
def test_other_ways_to_look(page, kind):
    heat = pixels(page)
    page.click(f'.ss-side button::{kind}')
    assert (pixels(page) != heat).any() and view(page)['show'] == kind.lower()


def test_scale_and_colours(page):
    scales = []
    for label in ('this map', 'all words', 'all steps'):
        page.click(f'.ss-side button::{label}')
        page.mouse('mouseMoved', 1, 1)
        page.settle()
        scales.append(page.text('.ss-legend'))
    assert len(set(scales)) == 3 and scales[1].startswith('0.00 %')
    viridis = pixels(page)
    page.click('.ss-side button::grey')
    page.mouse('mouseMoved', 1, 1)
    page.settle()
    grey = pixels(page)
    assert (viridis != grey).any() and (abs(grey - grey.mean(2, keepdims=True)) < 2).all()


# masks

def test_thresholds_cut_the_mask_that_the_code_makes(page, run, reference):
    trace, layers, image = run
    page.click('.ss-side button::Mask')
    page.click('.ss-button::Otsu')
    cut = view(page)['low']
    assert cut == view(page)['high']
    page.drag('.ss-histogram', (cut + .02, .5), (.7, .5))
    assert view(page)['low'] == cut and view(page)['high'] == pytest.approx(.7, abs=.01)
    page.click('.ss-timeline', .99)
    labels = shown_labels(page)
    page.click('.ss-side button::Save')
    code = page.text('.ss-code')
    namespace = {'trace': trace, 'image': image, 'class_set': TOYS}
    exec(code, namespace)
    ids = np.array([0, TOYS.id_of('cat'), TOYS.id_of('dog')] + [255] * 253)[labels]
    assert 'steps=tuple([5])' in code and (ids == namespace['mask'].labels).mean() > .998
    page.click('.ss-side button::Mask')
    table = {row[0]: row[1:] for row in page.run('[...document.querySelectorAll(".ss-table tr")].map(row => [...row.children].map(cell => cell.textContent))')}
    known = reference != TOYS.void
    ious = []
    for name, i in (('background', 0), ('cat', TOYS.id_of('cat')), ('dog', TOYS.id_of('dog'))):
        assert float(table[name][0].rstrip(' %')) == pytest.approx(100 * (ids == i).mean(), abs=.06)
        both, either = ((ids == i) & (reference == i) & known).sum(), (((ids == i) | (reference == i)) & known).sum()
        assert float(table[name][2]) == pytest.approx(both / either, abs=6e-4)
        ious.append(both / either)
    assert float(table['mIoU'][0]) == pytest.approx(np.mean(ious), abs=6e-4)
    import torch
    from synseg_kit.masks import connected_components
    assert int(table['dog'][1]) == len(np.unique(connected_components(torch.from_numpy(labels.astype(int))[None])[0].numpy()[labels == 2]))


def test_otsu_is_the_kits(page, run):
    import torch
    from synseg_kit.masks import normalise, otsu
    trace = run[0]
    page.click('.ss-side button::Mask')
    page.click('.ss-button::Otsu')
    maps = normalise(trace.class_maps(0, weights=trace.calls())[1])
    best = torch.nn.functional.interpolate(maps[None], (128, 128), mode='bilinear')[0].amax(0)
    assert view(page)['low'] == pytest.approx(float(otsu(best)), abs=.006)


def test_recipes_reference_and_errors(page, run, reference):
    page.click('.ss-side button::Mask')
    page.run('(() => { const list = document.querySelector(".ss-select"); list.value = "synseg"; list.dispatchEvent(new Event("change")); })()')
    page.wait(f'{APP}.maps.masks.has("synseg")')
    page.settle()
    from synseg_kit.recipes import recipe
    made = recipe('synseg')(run[1], [run[2]], TOYS)[0].labels
    labels = shown_labels(page)
    assert (np.array([0, TOYS.id_of('cat'), TOYS.id_of('dog')] + [255] * 253)[labels] == made).all()
    assert float(page.run('document.querySelector(".ss").dataset.miou')) > .95
    mask = pixels(page)
    page.click('.ss-side button::Reference')
    page.click('.ss-side button::Errors')
    assert (pixels(page) != mask).any()


@pytest.mark.parametrize('page', ['kept.html'], indirect=True)
def test_disagreement_with_a_segmenter_is_counted(page, kept):
    page.click('.ss-side button::Mask')
    assert page.text('.ss-side button::Segmenter') and page.text('.ss-side button::Disagreement') and not page.text('.ss-side button::Reference')
    page.click('.ss-side button::Disagreement')
    said, theirs = shown_labels(page), kept.shown.reference
    both = (said != 255) & (theirs != 255)
    kinds = [(both & (said == 0) & (theirs > 0)).sum(), (both & (said > 0) & (theirs == 0)).sum(), (both & (said > 0) & (theirs > 0) & (said != theirs)).sum()]
    told = page.run('[...document.querySelectorAll(".ss-apart > *")].map(node => node.textContent)')
    assert [re.sub(r' [\d.]+ %$', '', text) for text in told[1:]] == ['only the segmenter', 'only the mask', 'another class']
    shares = [100 * n / both.sum() for n in (sum(kinds), *kinds)]
    assert [float(re.search(r'([\d.]+) %', text)[1]) for text in told] == pytest.approx(shares, abs=.051) and shares[0] > 1
    painted = pixels(page)[2::4, 2::4]  # the middle of each pixel of 128 by 128

    def near(colour): return abs(painted - colour).max(2) < 45
    assert (near([0, 114, 178]) == (both & (said == 0) & (theirs > 0))).mean() > .99 and (near([213, 94, 0]) == (both & (said > 0) & (theirs == 0))).mean() > .99
    table = {row[0]: row[1:] for row in page.run('[...document.querySelectorAll(".ss-table tr")].map(row => [...row.children].map(cell => cell.textContent))')}
    cat = 1 + [one.name for one in kept.shown.classes].index('cat')
    assert float(table['cat'][2]) == pytest.approx(((said == cat) & (theirs == cat)).sum() / (((said == cat) & (theirs != 255)) | (theirs == cat)).sum(), abs=6e-4)


def test_flow_moves_scores_as_the_recipe_does(page, run):
    trace, layers, image = run
    page.click('.ss-side button::Mask')
    page.wait(f'Boolean({APP}.maps.self)')
    page.run(f'{APP}.change({{power: 2}}, 511)')
    page.settle()
    from synseg_kit.recipes import Recipe, band, choose, constant, flow, read, step, stretch
    made = Recipe('mine', (step(read), step(flow, resolution=16, power=2), stretch, step(constant, level=.6), choose, step(band, low=.5, high=.6)))(layers, [image], TOYS)[0].labels
    ids = np.array([0, TOYS.id_of('cat'), TOYS.id_of('dog')] + [255] * 253)[shown_labels(page)]
    assert (ids == made).mean() > .99


def test_a_brush_corrects_and_takes_back(page):
    page.click('.ss-side button::Mask')
    before = shown_labels(page)
    page.click('.ss-ink::dog')
    assert page.run('document.querySelector(".ss").dataset.tool') == 'brush'
    page.drag('.ss-canvas', place(20, 20), place(40, 20))
    after = shown_labels(page)
    assert (after[18:23, 20:40] == 2).all() and (after != before).sum() > 150
    page.wait(f'{APP}.model.values.labels?.byteLength === 16384')  # what Python gets
    page.click('.ss-button::Undo')
    assert (shown_labels(page) == before).all()


# export

def test_the_code_gives_what_is_shown(page, run):
    trace, layers, image = run
    page.click('.ss-word::dog')
    page.drag('.ss-timeline', (.4, .5), (.75, .5))
    page.click('.ss-side button::Save')
    code = page.text('.ss-code')
    namespace = {'trace': trace, 'image': image}
    exec(code, namespace)
    a, b = view(page)['steps']
    shown = np.array(page.run(f'Array.from({APP}.maps.mean([7], {APP}.view.steps))')).reshape(16, 16)
    assert f'step=range({a}, {b + 1})' in code and abs(namespace['heat'].numpy() - shown).max() < shown.max() / 250


def test_files_are_saved(page):
    page.click('.ss-side button::Save')
    for label, name in (('PNG', 'cat.png'), ('SVG', 'cat.svg'), ('State', 'view.json'), ('Mask', 'mask.png')):
        file = page.folder_of_files / name
        file.unlink(missing_ok=True)
        page.click(f'.ss-buttons button::{label}')
        for _ in range(100):
            if file.exists() and file.stat().st_size: break
            time.sleep(.05)
        assert file.stat().st_size > 100, name
    assert Image.open(page.folder_of_files / 'cat.png').size == (512, 512)
    labels = np.asarray(Image.open(page.folder_of_files / 'mask.png').convert('L'))
    assert set(np.unique(labels)) <= {0, TOYS.id_of('cat'), TOYS.id_of('dog'), 255} and labels.shape == (128, 128)
    svg = (page.folder_of_files / 'cat.svg').read_text()
    assert 'a photo of a cat and a dog on grass' in svg and 'cat, all 6 steps' in svg
    from synseg_kit.explorer import View
    assert View(**json.loads((page.folder_of_files / 'view.json').read_text())) == View(**view(page))


def outlines_of(svg):
    """The mask's paths of a drawing: label -> path and attributes, read by matplotlib."""
    import xml.etree.ElementTree as ElementTree

    from matplotlib.path import Path as Outline
    tree, found = ElementTree.fromstring(svg), {}
    for node in tree.iter('{http://www.w3.org/2000/svg}path'):
        points, codes = [], []
        for ring in node.attrib['d'].strip('M').split('M'):
            corners = [tuple(map(float, corner.split())) for corner in ring.removesuffix('Z').split('L')]
            points += [*corners, corners[0]]
            codes += [Outline.MOVETO, *[Outline.LINETO] * (len(corners) - 1), Outline.CLOSEPOLY]
        found[int(node.attrib['data-label'])] = Outline(points, codes), node.attrib
    return tree, found


def inside(outline, height, width):
    """Which centres of pixels are inside, by the even-odd rule, counted ring by ring."""
    y, x = np.mgrid[:height, :width] + .5
    count = sum(ring.contains_points(np.stack([x.ravel(), y.ravel()], 1)).astype(int) for ring in (type(outline)(piece) for piece in outline.to_polygons(closed_only=False)))
    return (count % 2).reshape(height, width).astype(bool)


@pytest.mark.parametrize('page', ['kept.html'], indirect=True)
@pytest.mark.parametrize('truth', ['Mask', 'Segmenter', 'Disagreement'])
def test_a_mask_is_saved_as_outlines(page, kept, truth):
    page.click('.ss-side button::Mask')
    page.click(f'.ss-side button::{truth}')
    tree, found = outlines_of(page.run(f'{APP}.svg()'))
    said, theirs = shown_labels(page), kept.shown.reference
    both = (said != 255) & (theirs != 255)
    wanted = {'Mask': said, 'Segmenter': theirs, 'Disagreement': np.select([~both, said == theirs, said == 0, theirs == 0], [4, 0, 1, 2], 3)}[truth]
    assert set(found) == {'Mask': set(np.unique(said)) - {0}, 'Segmenter': set(np.unique(theirs)) - {0}, 'Disagreement': {1, 2, 3}}[truth] - ({3} if truth == 'Disagreement' and 3 not in wanted else set())
    for label, (outline, _) in found.items(): assert (inside(outline, 128, 128) == (wanted == label)).all(), label  # every pixel's centre is on its own side
    texts = [node.text for node in tree.iter('{http://www.w3.org/2000/svg}text')]
    images = [node.attrib['href'] for node in tree.iter('{http://www.w3.org/2000/svg}image')]
    assert texts[0] == kept.shown.text and len(images) == 1 and images[0].startswith('data:image/')
    for label, (_, attributes) in found.items(): assert f'{attributes["data-name"]} {100 * (wanted == label).mean():.1f} %' in texts


@pytest.mark.parametrize(('rows', 'label'), [(['1'], 1), (['010', '101', '010'], 1), (['111', '101', '111'], 1), (['10', '01'], 1), (['2111', '2212', '0222'], 2), (['11111', '10001', '10101', '10001', '11111'], 1)])
def test_outlines_keep_every_pixel_on_its_side(page, rows, label):
    from synseg_kit.explorer import script
    labels = np.array([[int(v) for v in row] for row in rows])
    source = script('base')
    d = page.run(f'(() => {{ {source}; return outlines({json.dumps(labels.ravel().tolist())}, {labels.shape[0]}, {labels.shape[1]}, {label}); }})()')
    _, found = outlines_of(f'<svg xmlns="http://www.w3.org/2000/svg"><path data-label="{label}" d="{d}"/></svg>')
    assert (inside(found[label][0], *labels.shape) == (labels == label)).all()


# access

def test_the_keyboard_reaches_everything(page):
    page.run('document.querySelector(".ss-word").focus()')
    page.press('ArrowRight')
    assert page.run('document.activeElement.textContent') == 'photo' and 'shown is photo' in page.run('document.querySelector(".ss-canvas").getAttribute("aria-label")')
    page.run('document.querySelector(".ss-canvas").focus()')
    for _ in range(2): page.press('ArrowRight')
    page.press('ArrowDown', modifiers=8)
    assert page.text('.ss-readout').startswith('x 66  y 72')
    page.press('Enter')
    assert view(page)['pin'] == [66, 72]
    page.press('Escape')
    page.press(']')
    assert view(page)['steps'] == [0, 0]
    page.press('s')
    assert page.run('document.querySelector(".ss").dataset.tool') == 'scribble'
    page.run('document.querySelector(".ss-choice button[aria-checked=true]").focus()')
    page.press('ArrowRight')
    assert page.run('[...document.querySelectorAll("button, canvas, input, select")].filter(node => !node.closest("[hidden]") && !node.matches(".ss-cell *") && !(node.textContent.trim() || node.getAttribute("aria-label") || node.title) && node.tabIndex >= 0).length') == 0


def test_dark_theme_and_reduced_motion(files, shots):
    with Page(dark=True, reduced_motion=True) as page:
        page.open((files / 'one.html').as_uri())
        page.wait(READY)
        page.settle()
        ink, ground = (page.run(f'getComputedStyle(document.{where}).{what}') for where, what in (('querySelector(".ss")', 'color'), ('body', 'backgroundColor')))
        light = [sum(map(int, re.findall(r'\d+', colour)[:3])) for colour in (ink, ground)]
        assert light[0] > 600 and light[1] < 150
        assert page.run('getComputedStyle(document.querySelector(".ss-progress i")).transitionDuration') == '0s'
        page.screenshot(shots / 'dark.png')
        assert page.errors == []


@pytest.mark.parametrize('page', ['two.html'], indirect=True)
def test_two_runs_share_words_time_and_pointer(page, run):
    assert page.run('document.querySelectorAll(".ss-canvas").length') == 2 and view(page)['steps'] == [1, 4]
    page.hover('.ss-canvas', *place(90, 70))
    before = pixels(page, '.ss-stage:nth-child(2) canvas')
    page.hover('.ss-canvas', *place(30, 30))
    assert (pixels(page, '.ss-stage:nth-child(2) canvas') != before).any()  # the pointer's twin moved
    page.click('.ss-side button::B')
    page.hover('.ss-stage:nth-child(2) canvas', *place(90, 70))
    assert re.search(r'right minus left -?0\.00', page.text('.ss-readout'))  # the same trace twice
    assert page.text('.ss-stage:nth-child(2) figcaption') == 'mirrored'


def test_hovering_is_quick(page):
    """Far from what a free machine needs (nbs/bench/explorer.ipynb measures it); here it only must not be slow."""
    page.run(f'{APP}.clock.length = 0')
    for k in range(30): page.hover('.ss-canvas', .1 + .02 * k, .5)
    for word in ('cat', 'dog', 'grass'): page.hover(f'.ss-word::{word}')
    work = page.run(f'{APP}.clock.map(one => one.work)')
    assert len(work) >= 30 and sorted(work)[len(work) // 2] < 60
