"""Make what shows the explorer where nothing runs: a run kept in one file, from which the docs site makes live pages, and from that file its screenshot and its tour.

    python tools/make_live.py run        nbs/images/explorer.safetensors   (the shipped pipeline, a minute)
    python tools/make_live.py pictures   nbs/images/explorer.png, explorer.webp   (needs Chromium and websocket-client)
"""
import argparse
import base64
import io
import math
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]  # the clone's package, and the tests' Chromium
from synseg_kit.files import write_file  # noqa: E402

IMAGES = ROOT / 'nbs/images'
PROMPT, STEPS, SEED = 'a photo of a cat and a dog on grass', 20, 3
RECIPES = ('daam', 'otsu', 'synseg')  # whose masks are in the file
APP = 'document.querySelector(".ss").explorer'


def make_run(path):
    """Run the shipped pipeline, listen in every way, and keep what the explorer shows of it."""
    import torch
    from synseg_kit.classes import toy_objects
    from synseg_kit.evaluation import load_oracle
    from synseg_kit.explorer import Studio
    from synseg_kit.toyworld import load_toy_pipeline
    torch.set_num_threads(1)
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    studio = Studio(pipe, toy_objects(), guidance_scale=4., reference=load_oracle()).generate(PROMPT, STEPS, SEED)
    return studio.save(path, ['layers', 'self', 'previews', *(f'mask:{name}' for name in RECIPES)])


class Tour:
    """A page whose pointer is seen: moves, and a picture after each."""

    def __init__(self, page, scale):
        self.page, self.scale, self.frames, self.durations, self.at = page, scale, [], [], (500, 700)

    def shoot(self, milliseconds):
        """Take a picture that stays so long."""
        self.page.settle()
        data = base64.b64decode(self.page.send('Page.captureScreenshot', format='png')['data'])
        picture = Image.open(io.BytesIO(data)).convert('RGB')
        picture = picture.resize([round(side * self.scale) for side in picture.size], Image.Resampling.LANCZOS)
        x, y = (v * self.scale for v in self.at)
        arrow = [(x + a * 1.25, y + b * 1.25) for a, b in ((0, 0), (0, 13), (3, 10.4), (5.2, 15), (7.2, 14), (5.1, 9.6), (9, 9.4))]
        ImageDraw.Draw(picture).polygon(arrow, 'black', 'white')
        self.frames.append(picture)
        self.durations.append(milliseconds)

    def go(self, selector, x=.5, y=.5, steps=5, stay=0, held=False, each=70):
        """Move the pointer to a place of an element, and stay there."""
        (ax, ay), (bx, by) = self.at, self.page.at(selector, x, y)
        for k in range(1, steps + 1):
            share = k / steps if held else (1 - math.cos(math.pi * k / steps)) / 2
            self.at = ax + (bx - ax) * share, ay + (by - ay) * share
            self.page.mouse('mouseMoved', *self.at, buttons=int(held))
            self.shoot(each)
        if stay: self.durations[-1] = stay

    def press(self, down, stay=70):
        """Press the button, or let it go."""
        self.page.mouse('mousePressed' if down else 'mouseReleased', *self.at, buttons=int(down), count=1)
        self.page.settle(140)
        self.shoot(stay)

    def save(self, path, quality):
        """Write an animation that goes on for ever."""
        return write_file(path, lambda aside: self.frames[0].save(aside, save_all=True, append_images=self.frames[1:], duration=self.durations, loop=0, quality=quality, method=4, minimize_size=True))


def take_tour(page, out):
    """Words, places, steps, a mask: what a hand does in the first half minute."""
    tour = Tour(page, .74)
    tour.shoot(400)
    for word, stay in (('grass', 500), ('dog', 900), ('cat', 900)): tour.go(f'.ss-word::{word}', stay=stay)
    for x, y, stay in ((.3, .62, 900), (.72, .42, 900), (.45, .15, 500)): tour.go('.ss-canvas', x, y, steps=6, stay=stay)
    tour.go('.ss-side button::Light', steps=5, stay=150)
    for down in (True, False): tour.press(down, 500)
    tour.go('.ss-film', .025, .5, steps=5, stay=250)
    tour.press(True, 700)
    for step in (*range(1, 10), 12, 15, 18): tour.go('.ss-film', (step + .5) / 20, steps=1, held=True, each=190 if step < 9 else 120)
    tour.press(False, 500)
    tour.go('.ss-side button::Mask', steps=5, stay=150)
    tour.press(True)
    tour.press(False, 900)
    tour.go('.ss-side button::Disagreement', steps=4, stay=150)
    tour.press(True)
    tour.press(False, 1800)
    return tour.save(out / 'explorer.webp', 62)


def make_pictures(out):
    """Open the kept run in Chromium, and take its picture and its tour."""
    from chrome import Page
    from synseg_kit.explorer import load_explorer
    with tempfile.TemporaryDirectory() as folder, Page(1040, 832) as page:
        path = load_explorer(IMAGES / 'explorer.safetensors').page(Path(folder) / 'explorer.html')

        def open_page():
            page.mouse('mouseMoved', 1, 1)
            page.open(path.as_uri())
            page.wait(f'Boolean(document.querySelector(".ss")?.explorer?.maps?.previews && !document.querySelector(".ss-film").hidden && {APP}.stages[0].small)', 120)
            page.settle(500)
        open_page()
        made = [take_tour(page, out)]
        page.send('Emulation.setDeviceMetricsOverride', width=1040, height=1044, deviceScaleFactor=1, mobile=False)
        open_page()
        page.click('.ss-film', .325)
        page.hover('.ss-canvas', .3, .62)
        page.settle(300)
        data = base64.b64decode(page.send('Page.captureScreenshot', format='png')['data'])
        if page.errors or [url for url in page.requests if not url.startswith(('file:', 'data:', 'blob:'))]: raise RuntimeError(f'{page.errors} {page.requests}')
    picture = Image.open(io.BytesIO(data)).convert('RGB')
    return [*made, write_file(out / 'explorer.png', lambda aside: picture.save(aside, optimize=True))]


def main():
    """Make them, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('run', 'pictures'))
    parser.add_argument('--out', type=Path, default=IMAGES, metavar='FOLDER', help='where to write (default: nbs/images)')
    arguments = parser.parse_args()
    made = [make_run(arguments.out / 'explorer.safetensors')] if arguments.what == 'run' else make_pictures(arguments.out)
    for path in made: print(f'{path}: {path.stat().st_size / 1024:.0f} KB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
