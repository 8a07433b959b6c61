"""The explorer in a window of its own, for real: a prompt is typed and made into an image, a sample is rejected, and JupyterLab keeps to this machine."""
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import farm
import pytest
from chrome import CHROMIUM, Page
from synseg_kit.classes import toy_objects
from synseg_kit.served import Served

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium'), pytest.mark.skipif(find_spec('websocket') is None, reason='needs websocket-client'), pytest.mark.timeout(900)]
APP = 'document.querySelector(".ss").explorer'


def asked_elsewhere(page, served): return [url for url in page.requests if not url.startswith((f'http://127.0.0.1:{served.port}/', 'data:', 'blob:'))]


def test_a_prompt_becomes_an_image_in_a_window(tmp_path):
    from synseg_kit.explorer import Studio
    from synseg_kit.toyworld import load_toy_pipeline
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    studio = Studio(pipe, toy_objects(), 'a dog', steps=4, seed=3, guidance_scale=3.)
    with Served(studio) as served, Page(1100, 1000) as page:
        page.downloads(tmp_path)
        page.open(served.url)
        page.wait('Boolean(document.querySelector(".ss")?.explorer)', 60)
        page.run('document.querySelector(".ss-prompt").select()')
        page.type('a cat and a dog on grass')
        page.press('Enter')
        page.wait(f'{APP}.stages.length && Boolean({APP}.stages[0].small) && document.querySelector(".ss-go").textContent === "Generate"', 240)
        assert page.text('.ss-text') == 'a cat and a dog on grass' and page.run(f'{APP}.maps.count') == 4
        page.hover('.ss-word::dog')
        assert 'shown is dog' in page.run('document.querySelector(".ss-canvas").getAttribute("aria-label")')
        assert not page.run(f'Boolean({APP}.maps.previews)')
        page.click('.ss-wanted')  # decoded when somebody wants them
        page.wait(f'Boolean({APP}.maps.previews) && !document.querySelector(".ss-film").hidden', 60)
        page.click('.ss-add')
        page.type('bird')
        page.press('Enter')
        page.wait(f'{APP}.maps.words.at(-1).text === "bird"', 120)
        page.click('.ss-word::dog')
        for _ in range(100):
            if studio.view['words'] == [4]: break
            time.sleep(.1)
        assert studio.view['words'] == [4] and studio.view['base'] == 'final'  # Python knows what is looked at
        page.screenshot(Path(os.environ.get('SYNSEG_SCREENSHOTS') or tmp_path) / 'served.png')
        assert page.errors == [] and asked_elsewhere(page, served) == []
        served.close()
        page.wait('document.querySelector(".ss-gone")?.textContent.startsWith("The process that serves this page has ended")', 60)


def test_without_the_token_a_window_says_so(root):
    from synseg_kit.explorer import load_explorer
    with Served(load_explorer(root / 'nbs/images/explorer.safetensors')) as served, Page(800, 600) as page:
        page.open(served.url.partition('?')[0])
        page.wait('document.body?.textContent.includes("the token is wrong or missing")', 30)
        page.open(served.url)
        page.wait('Boolean(document.querySelector(".ss")?.explorer?.stages[0]?.small)', 60)
        assert page.errors == [] and asked_elsewhere(page, served) == []


def test_a_sample_is_rejected_in_a_window(tmp_path):
    from synseg_kit.browser import browse
    from synseg_kit.datasets import SyntheticFolder
    made = farm.write(tmp_path / 'made')
    names = SyntheticFolder(made.root).names
    with Served(browse(made.root)) as served, Page(1100, 800) as page:
        page.open(served.url)
        page.wait(f'document.querySelectorAll(".ss-sample img").length === {2 * len(names)}', 60)
        page.click('.ss-sample:nth-child(2)')
        page.press('r')
        page.wait('document.querySelector(".ss-bar [role=status]").textContent.endsWith("written")', 60)
        assert SyntheticFolder(made.root).names == (names[0], *names[2:]) and page.errors == [] and asked_elsewhere(page, served) == []


@pytest.mark.skipif(find_spec('jupyterlab') is None, reason='needs JupyterLab')
def test_synseg_lab_is_for_this_machine_and_wants_its_token(tmp_path):
    own = {name: str(tmp_path / name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_WORKSPACES_DIR', 'JUPYTERLAB_SETTINGS_DIR')}
    config = tmp_path / 'jupyter_config_dir/jupyter_server_config.json'
    config.parent.mkdir()
    config.write_text(json.dumps({'ServerApp': {'allow_root': True}}))  # whoever runs the tests
    command = [sys.executable, '-c', 'import sys; from synseg_kit.cli import main; sys.exit(main())', 'lab', '--no-browser']
    with open(tmp_path / 'log', 'w') as log: process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **own, 'JUPYTER_TOKEN': 'for-this-test'}, start_new_session=True)
    try:
        for _ in range(480):
            found = re.search(r'http://127\.0\.0\.1:(\d+)/lab/tree/index\.ipynb\?token=', (tmp_path / 'log').read_text())
            if found or process.poll() is not None: break
            time.sleep(.25)
        assert found, (tmp_path / 'log').read_text()
        for _ in range(240):  # JupyterLab names its address a moment before it listens there
            with socket.socket() as door:
                if door.connect_ex(('127.0.0.1', int(found[1]))) == 0: break
            time.sleep(.25)
        base = f'http://127.0.0.1:{found[1]}/api/contents/index.ipynb?content=0'
        with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(base, timeout=30)
        with urllib.request.urlopen(f'{base}&token=for-this-test', timeout=30) as answer: assert json.load(answer)['name'] == 'index.ipynb'
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
