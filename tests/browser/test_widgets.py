"""The pages of curves, failures and strengths, opened from disk in headless Chromium with the network off."""
import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from chrome import CHROMIUM, Page
from synseg_kit.atlas import Atlas, AtlasClass, AtlasWord, quantise
from synseg_kit.classes import ClassSet
from synseg_kit.curves import Curves
from synseg_kit.explorer import page as html_page
from synseg_kit.failures import ORDERS, PLAIN_VIEW, ImageScores, image_part, scores_part
from synseg_kit.pictures import Case
from synseg_kit.strength import PLAIN_VIEW as STRENGTH_VIEW

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium'), pytest.mark.skipif(find_spec('websocket') is None, reason='needs websocket-client')]
APP = 'document.querySelector(".ss").explorer'
PETS = ClassSet('pets', ('cat', 'dog'))


@pytest.fixture(scope='module')
def browser():
    """One Chromium for all tests."""
    with Page(1040, 900) as page: yield page


@pytest.fixture
def opened(browser, tmp_path, request):
    """Opens a page; afterwards it is held that nothing was asked for and nothing failed."""
    browser.requests.clear()
    browser.errors.clear()

    def open_page(text):
        (tmp_path / 'page.html').write_text(text)
        browser.mouse('mouseMoved', 1, 1)
        browser.open((tmp_path / 'page.html').as_uri())
        browser.wait('Boolean(document.querySelector(".ss")?.explorer)')
        return browser
    yield open_page
    browser.screenshot(Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path) / f'{request.node.name}.png')
    assert all(re.match(r'file:///|data:|blob:', url) for url in browser.requests), browser.requests
    assert browser.errors == []


def texts(page, selector): return page.run(f'[...document.querySelectorAll("{selector}")].filter(node => !node.closest("[hidden]")).map(node => node.textContent)')


# ---- curves

LOOKS = [{'step': step, 'loss': 400 / step, 'learning_rate': 1e-3 * (1 - step / 500), 'images_per_second': 80., **({'miou': step / 1000} if step % 100 == 0 else {})} for step in range(20, 401, 20)]


def test_each_number_has_a_chart_and_one_pointer_reads_them_all(opened, tmp_path):
    curves = Curves()
    for look in LOOKS: curves(look)
    page = opened(curves.page(tmp_path / 'curves.html').read_text())
    assert texts(page, '.ss-curve figcaption span') == ['loss', 'learning rate', 'images per second', 'mIoU']
    assert texts(page, '.ss-curve-now') == ['1', '0.0002', '80', '0.4']
    assert page.run('document.querySelector(".ss-curve svg").getAttribute("aria-label")') == 'loss: 1 at step 400, from 20 at step 20'
    share = (44 + 202 / 400 * 246) / 300  # of the chart's width: step 202
    page.hover('.ss-curve svg', share, .5)
    assert texts(page, '.ss-curve-now') == ['2', '0.0006', '80', '0.2'] and set(texts(page, '.ss-curve-mark text')) == {'step 200'}
    page.mouse('mouseMoved', 1, 1)
    page.settle()
    assert texts(page, '.ss-curve-now')[0] == '1'
    assert page.run('document.querySelectorAll(".ss-curve-mark[visibility=visible]").length') == 0


def test_curves_grow_with_each_look(opened):
    page = opened(html_page({'curves': []}, {}, {}, ('base', 'curves', 'page')))
    assert texts(page, '.ss-curves > p') == ['waiting for the first look of the training']
    page.run(f'''(() => {{ const app = {APP}, add = steps => {{ app.model.set("curves", [{{name: "loss", title: "loss", steps, values: steps.map(step => 1 / step)}}]); app.model.listeners.get("change:curves").forEach(act => act()); }};
        add([20]); window.before = document.querySelector(".ss-curve-line").getAttribute("d"); add([20, 40, 60]); }})()''')
    assert texts(page, '.ss-curves > p') == [] and texts(page, '.ss-curve-now') == ['0.0167']
    assert page.run('document.querySelector(".ss-curve-line").getAttribute("d").split("L").length') == 3 and page.run('before.split("L").length') == 1


# ---- failures

def failures_page(count=3, background='background'):
    """Five images of 8x8: the prediction of image i misses i of the 8 rows of its class; the last page part is left out."""
    classes, parts, rows = ClassSet('pets', ('cat', 'dog'), background), {}, []
    cat, dog = classes.id_of('cat'), classes.id_of('dog')
    for i in range(5):
        mask = np.full((8, 8), dog if i == 2 else cat, np.uint8)
        mask[0, 0] = 255
        said = mask.copy()
        said[0, 0], said[8 - i:] = mask[1, 1], 0
        parts[f'image:{i}'] = image_part(i, Case(image=np.full((8, 8, 3), 120, np.uint8), mask=mask, prediction=said), classes)
        rows += [(i, int(mask[1, 1]), 63 - 8 * i, 63, 63 - 8 * i)] + ([(i, 0, 0, 0, 8 * i)] if i else [])
    scores = ImageScores(tuple(f'pet {i}' for i in range(5)), classes, np.array(rows), np.array([8 * i / 63 for i in range(5)]))
    kept = {name: part for name, part in parts.items() if name != 'image:1'}
    return scores, html_page({'view': PLAIN_VIEW, 'offers': list(kept)}, {'atlas': scores_part(scores, count)}, kept, ('base', 'failures', 'page'))


def test_rows_are_sorted_filtered_and_fetched_when_seen(opened):
    scores, text = failures_page()
    page = opened(text)
    page.wait('document.querySelectorAll(".ss-fail-row canvas").length === 9')
    for order, button in zip(ORDERS, ('Lowest IoU first', 'Most disagreement first')):
        page.click(f'.ss-choice button::{button}')
        assert texts(page, '.ss-fail-name b') == [scores.names[i] for i in scores.worst(5, order) if i != 1][:3]
    assert texts(page, '[role=status]') == ['3 of 5 images'] and page.run(f'{APP}.view.order') == 'disagreement'
    page.click('.ss-button::More')
    page.wait('document.querySelectorAll(".ss-fail-row canvas").length === 12')
    assert texts(page, '[role=status]') == ['4 of 5 images, all that this page holds'] and texts(page, '.ss-button') == []
    page.run('(() => { const list = document.querySelector(".ss-select"); list.value = "2"; list.dispatchEvent(new Event("change")); })()')
    assert texts(page, '.ss-fail-name b') == ['pet 2'] and texts(page, '.ss-fail-chosen span') == ['dog']
    assert texts(page, '.ss-fail-name span') == [f'mean IoU {scores.iou()[2]:.2f} · disagrees on 25 %']


def colour(page, row, column, x, y):
    """A pixel of a canvas."""
    return page.run(f'[...document.querySelectorAll(".ss-fail-row")[{row}].querySelectorAll("canvas")[{column}].getContext("2d").getImageData({x}, {y}, 1, 1).data]')


def test_a_pixel_is_read_in_mask_and_prediction(opened):
    page = opened(failures_page()[1])
    page.wait('document.querySelectorAll(".ss-fail-row canvas").length === 9')  # the first is pet 4, whose lower half was missed
    page.hover('.ss-fail-row .ss-fail-picture', .4, .8)
    assert texts(page, '.ss-fail-readout')[0] == 'mask cat, prediction background'
    assert page.run('document.querySelectorAll(".ss-fail-dot:not([hidden])").length') == 3
    page.hover('.ss-fail-row .ss-fail-picture', .4, .3)
    assert texts(page, '.ss-fail-readout')[0] == 'both cat'
    page.hover('.ss-fail-row .ss-fail-picture', .02, .02)
    assert texts(page, '.ss-fail-readout')[0] == 'mask void, prediction cat'
    page.hover('.ss-fail-facts')
    assert texts(page, '.ss-fail-readout')[0] == '' and page.run('document.querySelectorAll(".ss-fail-dot:not([hidden])").length') == 0
    before = colour(page, 0, 1, 4, 2)
    page.click('.ss-choice button::Errors')
    cat = PETS.palette[PETS.id_of('cat')].tolist()
    assert colour(page, 0, 1, 4, 6)[:3] == cat and colour(page, 0, 2, 4, 6)[:3] == [60, 60, 60]  # what the mask says, and background where it was missed
    assert colour(page, 0, 1, 4, 2) != before and colour(page, 0, 1, 4, 2) == colour(page, 0, 2, 4, 2)
    assert colour(page, 0, 0, 4, 6) == [120, 120, 120, 255]


# ---- strengths

def strength_page(places=(0, 1, 2)):
    """Three strengths of 16x16 images, brighter as they rise; the second word's map moves from left to right."""
    words = (AtlasWord('a', 0, 1, 'word', None, (1,)), AtlasWord('cat', 2, 5, 'word', 1, (2,)), AtlasWord('sleeping', 6, 14, 'word', None, (3,)))
    parts = {}
    for place in places:
        maps = np.full((3, 1, 4, 4), .1, np.float32)
        maps[1, 0, :, place:place + 2] = .2 * (place + 1)
        atlas = Atlas(np.full((16, 16, 3), 60 * (place + 1), np.uint8), 'a cat sleeping', words, quantise(maps), (), 6, classes=(AtlasClass(1, 'cat', '#cc3333'),))
        parts[f'strength:{place}'] = atlas.to_bytes()
    about = {'text': 'a cat sleeping', 'name': 'adapted', 'seed': 3, 'strengths': [0., .5, 1.], 'base': 0}
    return html_page({'about': about, 'view': STRENGTH_VIEW, 'offers': list(parts), 'status': {}}, {}, parts, ('base', 'maps', 'strength', 'page'))


def shown(page, stage=1, x=.5, y=.5):
    """A pixel of one of the two pictures."""
    return page.run(f'(() => {{ const c = document.querySelectorAll(".ss-stage canvas")[{stage}]; return [...c.getContext("2d").getImageData(c.width * {x}, c.height * {y}, 1, 1).data]; }})()')


def test_the_strength_is_dragged_and_words_are_chosen(opened):
    page = opened(strength_page())
    page.wait(f'{APP}.painted.size === 3')
    assert texts(page, '.ss-strength-tile span') == ['0 (base)', '0.5', '1'] and page.run('document.querySelector(".ss-go").hidden')
    assert texts(page, '.ss-caption') == ['base · cat · mean 15.0 %, most 20.0 %', 'strength 1 · cat · mean 35.0 %, most 60.0 %']
    hot, cold = shown(page, 1, .8), shown(page, 1, .1)
    assert hot[1] > cold[1] + 60  # yellow where the word looks, and dark where it does not
    page.click('input[aria-label^=strength]', .5, .5)
    page.press('ArrowRight')
    assert page.run(f'{APP}.view.place') == 2
    page.press('ArrowLeft')
    assert page.run(f'{APP}.view.place') == 1 and texts(page, '.ss-caption')[1] == 'strength 0.5 · cat · mean 25.0 %, most 40.0 %'
    assert texts(page, '.ss-strength-tile[aria-pressed=true] span') == ['0.5']
    page.click('.ss-word::sleeping')
    assert texts(page, '.ss-word[aria-pressed=true]') == ['sleeping'] and 'sleeping · mean 10.0 %' in texts(page, '.ss-caption')[0]
    page.click('.ss-word::cat', shift=True)
    assert page.run(f'{APP}.view.words') == [2, 1]
    page.click('.ss-choice button::Images')
    assert texts(page, '.ss-caption') == ['base', 'strength 0.5'] and shown(page)[:3] == [120, 120, 120] and shown(page, 0)[:3] == [60, 60, 60]
    page.click('.ss-strength-tile::0 (base)')
    assert texts(page, '.ss-caption')[1] == 'strength 0' and shown(page, 1)[:3] == [60, 60, 60]


def test_what_is_not_painted_says_so(opened):
    page = opened(strength_page((0, 2)))
    page.wait(f'{APP}.painted.size === 2')
    page.click('.ss-strength-tile::0.5')
    assert texts(page, '.ss-caption')[1].startswith('strength 1 (0.5 is not painted yet) · cat')
    empty = html_page({'about': {'text': 'a cat', 'name': 'mine', 'seed': 0, 'strengths': [0., 1.], 'base': 0}, 'view': STRENGTH_VIEW, 'offers': ['paint'], 'status': {}}, {}, {}, ('base', 'maps', 'strength', 'page'))
    page = opened(empty)
    assert texts(page, '.ss-message') == ['nothing is painted yet'] and texts(page, '.ss-go') == ['Paint']
    told = f'''(() => {{ const app = {APP}; app.model.set("status", {{busy: true, done: 3, total: 12, text: "painting at strength 0"}}); app.model.listeners.get("change:status").forEach(act => act()); }})()'''
    page.run(told)
    assert texts(page, '.ss-go') == ['Stop'] and texts(page, '.ss-message') == ['painting at strength 0'] and page.run('document.querySelector(".ss-progress").getAttribute("aria-valuenow")') == '25'
    page.run(told.replace('{busy: true, done: 3, total: 12, text: "painting at strength 0"}', '{error: "ValueError: no"}'))
    assert texts(page, '.ss-go') == ['Paint'] and texts(page, '.ss-message.ss-wrong') == ['ValueError: no']
