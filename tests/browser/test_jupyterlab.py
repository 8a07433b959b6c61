"""The explorer in JupyterLab, for real: a prompt is typed and made into an image, and every control does its work."""
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from chrome import CHROMIUM, Page

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium'), pytest.mark.skipif(find_spec('jupyterlab') is None, reason='needs JupyterLab'),
              pytest.mark.skipif(find_spec('websocket') is None, reason='needs websocket-client'), pytest.mark.timeout(900)]
APP = 'document.querySelector(".ss").explorer'
OPEN = '''from synseg_kit.classes import toy_objects
from synseg_kit.explorer import explore
from synseg_kit.toyworld import load_toy_pipeline

pipe = load_toy_pipeline()
explorer = explore(pipe, class_set=toy_objects(), prompt='a dog', steps=8, seed=3)
explorer'''
TELL = '''import json
import numpy as np
from IPython.display import HTML
from synseg_kit.explorer import View
view = View(**explorer.view)
HTML('<pre id="told">' + json.dumps({'view': view.to_json(), 'text': explorer.shown.text, 'mask': np.unique(explorer.mask).tolist(), 'steps': explorer.trace.num_steps}) + '</pre>')'''

BROWSE = '''import numpy as np
from PIL import Image
from synseg_kit import toyworld
from synseg_kit.classes import toy_objects
from synseg_kit.datasets import Sample, SampleWriter, SyntheticFolder
from synseg_kit.explorer import explore
from synseg_kit.masks import PseudoMask

with SampleWriter('toyset', toy_objects(), 4, 4) as writer:
    scenes = [toyworld.render(10_000_000 + i) for i in range(4)]
    writer.write(0, [Sample(Image.fromarray(s.image), PseudoMask(s.labels, np.ones(s.labels.shape, np.float32)), s.prompt, i) for i, s in enumerate(scenes)])
    dataset = writer.finish()
browser = explore(dataset)
browser'''
TELL_DECISIONS = '''import json
from IPython.display import HTML
HTML('<pre id="told">' + json.dumps({'reviews': browser.reviews, 'names': SyntheticFolder('toyset').names}) + '</pre>')'''

TRAIN = '''from PIL import Image
from synseg_kit import toyworld
from synseg_kit.classes import toy_objects
from synseg_kit.curves import Curves
from synseg_kit.datasets import Augmentation, Example
from synseg_kit.evaluation import evaluate
from synseg_kit.training import SegmenterSettings, train

scenes = [toyworld.render(10_000_000 + i) for i in range(8)]
examples, class_set = [Example(Image.fromarray(scene.image), scene.labels) for scene in scenes], toy_objects()
settings = SegmenterSettings(encoder='tu-mobilenetv3_small_050', decoder_channels=(32, 24, 16, 12, 8), augmentation=Augmentation(crop=64), steps=60, batch_size=4, checkpoint_every=15)
segmenter = train(examples, class_set, settings, 'trained', log=Curves('trained'), progress=False, validate=lambda segmenter: {'miou': evaluate(segmenter.predict, examples, class_set, progress=False).miou})'''
TELL_TRAINING = '''import json
from IPython.display import HTML
from synseg_kit.history import read_history
HTML('<pre id="told">' + json.dumps(read_history('trained')) + '</pre>')'''
POINTS = '[...document.querySelectorAll(".ss-curve-line")].map(line => line.getAttribute("d").split("L").length)'


def notebook(*cells):
    """A notebook of code cells."""
    return {'cells': [{'cell_type': 'code', 'id': f'c{i}', 'metadata': {}, 'outputs': [], 'execution_count': None, 'source': source} for i, source in enumerate(cells)],
            'metadata': {'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}}, 'nbformat': 4, 'nbformat_minor': 5}


def open_notebook(page, lab, name):
    """Open a notebook, and wait until its cells can be run."""
    page.open(f'{lab}/lab/tree/{name}?reset')
    page.wait('Boolean(document.querySelector(".jp-CodeCell .cm-content"))', 180)
    wait_for_kernel(lab, name)


def wait_for_kernel(lab, name, seconds=240):
    """Wait until the notebook's kernel waits as well."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with urllib.request.urlopen(f'{lab}/api/sessions', timeout=20) as answer: sessions = json.load(answer)
        if any(one['name'] == name and one['kernel']['execution_state'] == 'idle' and one['kernel']['connections'] for one in sessions): return
        time.sleep(.5)
    raise TimeoutError(f'within {seconds} s no kernel was idle: {sessions}')


@pytest.fixture(scope='module')
def lab(root, tmp_path_factory):
    """A JupyterLab with a folder and settings of its own; its address."""
    folder = tmp_path_factory.mktemp('lab')
    (folder / 'explore.ipynb').write_text(json.dumps(notebook(OPEN, TELL)))
    (folder / 'browse.ipynb').write_text(json.dumps(notebook(BROWSE, TELL_DECISIONS)))
    (folder / 'train.ipynb').write_text(json.dumps(notebook(TRAIN, TELL_TRAINING)))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    own = {name: str(folder / name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_WORKSPACES_DIR', 'JUPYTERLAB_SETTINGS_DIR')}
    env = {**os.environ, **own, 'PYTHONPATH': str(root), 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    log = open(folder / 'log', 'w')
    process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', f'--ServerApp.root_dir={folder}',
                                '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.news_url=', '--expose-app-in-browser'], stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=2).close()
                break
            except OSError:
                if process.poll() is not None: raise RuntimeError((folder / 'log').read_text()) from None
                time.sleep(.5)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()
        log.close()


def test_a_prompt_becomes_an_image_to_explore(lab, tmp_path):
    shots = Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path)
    with Page(1500, 1500) as page:
        page.downloads(tmp_path)
        open_notebook(page, lab, 'explore.ipynb')
        page.run('void jupyterapp.commands.execute("notebook:run-cell-and-select-next")')
        page.wait('Boolean(document.querySelector(".ss")?.explorer)', 180)
        assert page.run('document.querySelector(".ss").classList.contains("ss-empty")') and page.run('document.querySelector(".ss").dataset.theme') == 'light'

        # type a prompt, generate, watch
        page.click('.ss-prompt')
        page.run('document.querySelector(".ss-prompt").select()')
        page.type('a photo of a cat and a dog on grass')
        page.run('''window.seen = []; new MutationObserver(() => seen.push(document.querySelector(".ss-go").textContent)).observe(document.querySelector(".ss-go"), {childList: true, characterData: true, subtree: true})''')
        page.press('Enter')
        page.wait(f'{APP}.stages.length && Boolean({APP}.stages[0].small) && document.querySelector(".ss-go").textContent === "Generate"', 240)
        assert 'Stop' in page.run('seen') and page.text('.ss-text') == 'a photo of a cat and a dog on grass' and page.run(f'{APP}.maps.count') == 8

        # hover a word
        before = page.run('document.querySelector(".ss-canvas").toDataURL().length + document.querySelector(".ss-canvas").toDataURL().slice(-3000, -2000)')
        page.hover('.ss-word::dog')
        assert page.run('document.querySelector(".ss-canvas").toDataURL().length + document.querySelector(".ss-canvas").toDataURL().slice(-3000, -2000)') != before
        assert 'shown is dog' in page.run('document.querySelector(".ss-canvas").getAttribute("aria-label")')

        # point at a pixel, pin it
        page.hover('.ss-canvas', .3, .6)
        assert re.match(r'x 38  y 76   cat [\d.]+ %', page.text('.ss-readout')) and page.text('.ss-panel h3') == 'Words here'
        page.screenshot(shots / 'lab-place.png')
        page.click('.ss-canvas', .3, .6)
        page.wait(f'Boolean({APP}.maps.self)', 60)
        page.press('Escape')

        # move time and layers
        page.drag('.ss-timeline', (.4, .5), (.7, .5))
        assert page.run(f'{APP}.view.steps') == [3, 5]
        page.click('.ss-choice button::Layers')
        page.wait('document.querySelectorAll(".ss-layer").length > 0', 60)
        page.click('.ss-layer .ss-cell')
        page.wait(f'{APP}.view.layers.length === 1 && {APP}.view.layers[0][0] === 0')
        page.screenshot(shots / 'lab-layers.png')
        page.click('.ss-link::mean of')

        # a word that the prompt does not have
        page.click('.ss-add')
        page.type('bird')
        page.press('Enter')
        page.wait(f'{APP}.maps.words.at(-1).text === "bird"', 120)

        # the mask: thresholds, a recipe
        page.click('.ss-side button::Mask')
        page.drag('.ss-histogram', (.6, .5), (.8, .5))
        assert page.run(f'{APP}.view.high') == pytest.approx(.8, abs=.01)
        page.run('(() => { const list = document.querySelector(".ss-select"); list.value = "otsu"; list.dispatchEvent(new Event("change")); })()')
        page.wait(f'{APP}.maps.masks.has("otsu")', 120)
        page.screenshot(shots / 'lab-mask.png')

        # export a page; it opens from disk
        page.click('.ss-side button::Save')
        assert 'with capture(pipe, [prompt]' in page.text('.ss-code')
        page.click('.ss-buttons button::HTML page')
        file = tmp_path / 'explorer.html'
        for _ in range(600):
            if file.exists(): break
            time.sleep(.1)

        # Python knows what is seen
        time.sleep(.5)
        page.run('void jupyterapp.commands.execute("notebook:move-cursor-down").then(() => jupyterapp.commands.execute("notebook:run-cell"))')
        try: told = json.loads(page.wait('document.querySelector("#told")?.textContent', 60))
        finally: page.screenshot(shots / 'lab-told.png')
        assert told['text'] == 'a photo of a cat and a dog on grass' and told['view']['recipe'] == 'otsu' and told['view']['panel'] == 'save' and told['steps'] == 8 and set(told['mask']) <= {0, 6, 7, 255}

        # stop
        page.run('document.querySelector(".ss-prompt").scrollIntoView()')
        page.run('(() => { const steps = document.querySelector(".ss-form input[aria-label=steps]"); steps.value = 400; })()')
        page.click('.ss-go')
        page.wait('document.querySelector(".ss-go").textContent === "Stop"', 60)
        page.wait(f'{APP}.model.get("status").done > 0', 120)
        page.click('.ss-go')
        page.wait('document.querySelector(".ss-message").textContent === "stopped"', 120)
        asked = [url for url in page.requests if not url.startswith((lab, 'data:', 'blob:', lab.replace('http', 'ws')))]
        assert asked == [], asked
    with Page() as alone:  # JupyterLab would ask whether to leave an unsaved notebook
        alone.open(file.as_uri())
        alone.wait('Boolean(document.querySelector(".ss")?.explorer?.stages[0]?.small)')
        assert alone.text('.ss-text') == 'a photo of a cat and a dog on grass' and alone.errors == []
        alone.screenshot(shots / 'lab-page.png')


def test_a_sample_is_rejected(lab, tmp_path):
    shots = Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path)
    with Page(1500, 1200) as page:
        open_notebook(page, lab, 'browse.ipynb')
        page.run('void jupyterapp.commands.execute("notebook:run-cell-and-select-next")')
        page.wait('document.querySelectorAll(".ss-sample img").length === 8', 180)
        page.click('.ss-sample:nth-child(2)')
        page.press('r')
        page.press('a')  # the next one is at hand at once
        assert page.run('[...document.querySelectorAll(".ss-sample")].map(node => node.dataset.review)') == ['', 'rejected', 'accepted', '']
        page.wait('document.querySelector(".ss-bar [role=status]").textContent.endsWith("written")', 60)
        page.screenshot(shots / 'lab-browser.png')
        page.run('void jupyterapp.commands.execute("notebook:move-cursor-down").then(() => jupyterapp.commands.execute("notebook:run-cell"))')
        told = json.loads(page.wait('document.querySelector("#told")?.textContent', 60))
        assert told == {'reviews': {'000001': 'rejected', '000002': 'accepted'}, 'names': ['000000', '000002', '000003']}


def test_curves_appear_and_grow_while_a_training_runs(lab, tmp_path):
    shots = Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path)
    with Page(1500, 1000) as page:
        open_notebook(page, lab, 'train.ipynb')
        page.run(f'window.seen = []; new MutationObserver(() => {{ const points = {POINTS}[0]; if (points && points !== seen.at(-1)) seen.push(points); }}).observe(document.body, {{subtree: true, childList: true, attributes: true, attributeFilter: ["d"]}})')
        page.run('void jupyterapp.commands.execute("notebook:run-cell-and-select-next")')
        page.wait(f'{POINTS}[0] === 6', 240)
        seen = page.run('seen')
        assert seen == sorted(seen) and len(seen) >= 3, seen  # it was drawn on the way, more than once
        assert page.run(POINTS) == [6, 6, 6, 4]
        page.hover('.ss-curve svg', .6, .5)
        page.screenshot(shots / 'lab-curves.png')
        page.run('void jupyterapp.commands.execute("notebook:move-cursor-down").then(() => jupyterapp.commands.execute("notebook:run-cell"))')
        told = json.loads(page.wait('document.querySelector("#told")?.textContent', 120))
        assert [look['step'] for look in told] == [15, 20, 30, 40, 45, 60] and [look['step'] for look in told if 'miou' in look] == [15, 30, 45, 60]
        shown = page.run('[...document.querySelectorAll(".ss-curve svg")].map(chart => chart.getAttribute("aria-label"))')
        last = float(f'{told[-1]["loss"]:.3g}')
        assert shown[0].startswith(f'loss: {last:g} at step 60')
