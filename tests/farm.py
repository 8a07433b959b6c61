"""Hand-made datasets of a few kilobytes, for tests of what happens to files."""
import os

import numpy as np
from PIL import Image

from synseg_kit.classes import ClassSet
from synseg_kit.datasets import Example, Sample, SampleWriter
from synseg_kit.prompts import Mention, Prompt

FARM = ClassSet('farm', ('cow', 'sheep', 'barn'))
WORDS = {1: 'cow', 2: 'sheep', 3: 'barn'}


def example(seed=0, size=(24, 32), class_set=FARM):
    """An image in the colours of its labels."""
    draw = np.random.default_rng(seed)
    labels = np.kron(draw.integers(class_set.num_classes, size=(size[0] // 8, size[1] // 8)), np.ones((8, 8))).astype(class_set.dtype)
    labels[:2, :2] = class_set.void
    reliability = np.where(labels == class_set.void, 0, (labels % 5 + 1) / 5).astype(np.float32)
    return Example(Image.fromarray(class_set.palette[labels]), labels, reliability, f'example {seed}')


def sample(number, class_set=FARM, size=(24, 32), others=()):
    """A sample whose class and seed follow from its number."""
    made, class_id = example(number, size, class_set), number % 3 + 1
    prompt = Prompt(f'a {WORDS[class_id]} on grass', (Mention(class_id, 2, 2 + len(WORDS[class_id])),))
    return Sample(made.image, made, prompt, seed=1000 + number, source='painter', others={name: made for name in others})


def write(folder, count=7, block_size=2, class_set=FARM, make=sample, first=0, finish=True, **about):
    """A synthetic dataset, finished; blocks that are there stay."""
    with SampleWriter(folder, class_set, count, block_size, about) as writer:
        for block in writer.missing: writer.write(block, [make(first + n, class_set) for n in writer.numbers(block)])
        return writer.finish() if finish else None


def contents(folder):
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def flip(path, place=-1):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def release(self, *error):
    """What is left of leaving a writer when its process is killed."""
    for place in (self, getattr(self, 'place', None)):
        if hasattr(place, '_lock'): place._lock.release()


def killed_at_every_rename(start, folder, monkeypatch, writer):
    """Run `start(place)` killed before its first rename, in another place before its second, and so on; start each again, and give all places."""
    rename, places = os.replace, []
    while True:
        place, left = folder / f'killed-{len(places)}', [len(places)]

        def until(a, b, left=left):
            if left[0] == 0: raise Killed
            left[0] -= 1
            rename(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(writer, '__exit__', release)  # a kill does not tidy up
            patch.setattr(os, 'replace', until)
            try: start(place)
            except Killed: pass
            else: return places
        start(place)
        places.append(place)
