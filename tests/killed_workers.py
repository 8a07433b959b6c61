"""Makes a dataset with two workers, again and again killed with SIGKILL; `faults/test_generation.py` compares the files.

    python tests/killed_workers.py FOLDER SEED KILLS SAMPLES [PIPELINE]

FOLDER/whole is left alone. FOLDER/killed is killed KILLS times at points of its work drawn with SEED (going by what is there, not by the clock, so that a busy machine does not end the work before the kills):
every other time one of the workers goes first. Then it runs to its end. With PIPELINE, a folder of a
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


def work_until(child, folder, goal):
    """Let a coordinator work until there are so many blocks, or it has ended."""
    while len(list(folder.glob('blocks/*.json'))) < goal and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.005)


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
    draw, workers, blocks = random.Random(seed), 0, -(-count // BLOCK)
    for number in range(kills):
        there, goals = {*alive(notes)}, [blocks * (number + draw.random() + more) / (kills + 1) for more in (0, draw.random())]
        child = start(starter, folder / 'killed', count)
        if number % 4 == 2: time.sleep(draw.uniform(.3, 1) * startup)  # while it starts, or soon after
        else: work_until(child, folder / 'killed', goals[0])
        if number % 2 and (running := [pid for pid in alive(notes) if pid not in there]):  # a worker first, and the coordinator a while later
            os.kill(draw.choice(running), signal.SIGKILL)
            workers += 1
            work_until(child, folder / 'killed', goals[1])
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
    codes.append(wait(start(starter, folder / 'killed', count)))
    deadline = time.monotonic() + 20
    while alive(notes) and time.monotonic() < deadline: time.sleep(.1)
    print(json.dumps({'codes': codes, 'workers': workers, 'left': len(alive(notes))}))
