"""Makes a dataset with two workers, again and again killed with SIGKILL; `faults/test_generation.py` compares the files.

    python tests/killed_workers.py FOLDER SEED KILLS SAMPLES [PIPELINE]

FOLDER/whole is left alone. FOLDER/killed is killed KILLS times at times drawn with SEED: every other time the coordinator, else one of the workers. Then it runs to its end. With PIPELINE, a folder of a
diffusion pipeline, samples are made by it, else by functions that need no model. Prints as JSON the exit codes of the coordinators, how many workers were killed, and how many are left.
"""
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
if __name__ == '__main__':  # workers import this file as well, and need neither
    os.environ['OMP_NUM_THREADS'] = '1'  # a process with OpenMP threads must not be forked
    from synseg_kit.synthesis import SynthesisSettings  # takes seconds; loaded once, for all children

from fake_maker import FakeMaker

from synseg_kit.classes import ClassSet
from synseg_kit.prompts import find_mentions
from synseg_kit.workers import LocalPool, PipelineMaker, synthesize_in

PETS = ClassSet('pets', ('cat', 'dog', 'ball'))
BLOCK = 4


def make_prompts(count):
    """As many prompts as wanted, each of another text."""
    return [find_mentions(text, PETS) for text in ('a cat and a dog', 'a red ball', 'the dog on a ball', 'a photo of a cat')] * (count // 4 + 1)


def start(starter, folder, count):
    """Start a coordinator with two workers in a child process."""
    child = os.fork()
    if child: return child
    try:
        synthesize_in(LocalPool(starter, 2), make_prompts(count)[:count], folder, PETS, BLOCK, tries=99, progress=False)
        os._exit(0)
    except BaseException: traceback.print_exc()
    os._exit(1)


def wait(child): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def alive(notes):
    """Those of the workers that still run."""
    return [int(path.stem) for path in notes.glob('*.pid') if Path('/proc', path.stem, 'cmdline').exists() and b'spawn' in Path('/proc', path.stem, 'cmdline').read_bytes()]


if __name__ == '__main__':
    folder, seed, kills, count = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    notes = folder / 'notes'
    notes.mkdir()
    if len(sys.argv) > 5:
        starter = PipelineMaker(sys.argv[5], PETS, SynthesisSettings(steps=2, block_size=BLOCK, height=32, width=32, capture={'self_attention': [8]}), count, threads=1)
    else: starter = FakeMaker(str(notes), pause=.03)
    begin, child = time.monotonic(), start(starter, folder / 'whole', count)
    while not (folder / 'whole/blocks').exists() and os.waitpid(child, os.WNOHANG) == (0, 0): time.sleep(.01)
    startup = time.monotonic() - begin
    codes = [wait(child)]
    work, draw, workers = time.monotonic() - begin - startup, random.Random(seed), 0
    for number in range(kills):
        there = {*alive(notes)}
        child = start(starter, folder / 'killed', count)
        if number % 2:  # a worker first, as soon as there is one, and the coordinator a while later
            deadline = time.monotonic() + 60
            while not (running := [pid for pid in alive(notes) if pid not in there]) and time.monotonic() < deadline: time.sleep(.01)
            time.sleep(draw.uniform(0, 2 / kills) * work)
            if running := [pid for pid in running if pid in alive(notes)]:
                os.kill(draw.choice(running), signal.SIGKILL)
                workers += 1
        else: time.sleep(draw.uniform(.3, 1) * startup)
        time.sleep(draw.uniform(0, 2 / kills) * work)
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
    codes.append(wait(start(starter, folder / 'killed', count)))
    deadline = time.monotonic() + 20
    while alive(notes) and time.monotonic() < deadline: time.sleep(.1)
    print(json.dumps({'codes': codes, 'workers': workers, 'left': len(alive(notes))}))
