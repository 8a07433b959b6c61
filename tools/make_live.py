"""Make what shows the explorer where nothing runs: a run kept in one file, from which the docs site makes live pages, and from that file its screenshot and its tour.

    python tools/make_live.py run        nbs/images/explorer.safetensors   (the shipped pipeline, a minute)
    python tools/make_live.py pictures   nbs/images/explorer.png, explorer.webp   (needs Chromium and websocket-client)
"""
import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
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


def main():
    """Make them, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('run', 'pictures'))
    parser.add_argument('--out', type=Path, default=IMAGES, metavar='FOLDER', help='where to write (default: nbs/images)')
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
    made = [make_run(arguments.out / 'explorer.safetensors')] if arguments.what == 'run' else make_pictures(arguments.out)
    for path in made: print(f'{path}: {path.stat().st_size / 1024:.0f} KB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
