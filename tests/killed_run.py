"""Synthesises a small dataset three times; `test_synthesis.py` compares the files.

    python tests/killed_run.py FOLDER SEED

FOLDER/whole is left alone. FOLDER/renames is killed with SIGKILL before chosen renames of files, FOLDER/times after times drawn with SEED; after each kill
the run is started again, at last to its end. Prints the exit code of every child as JSON (-9: killed).
"""
import json
import os
import random
import signal
import sys
import time
import traceback
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
if __name__ == '__main__': os.environ['OMP_NUM_THREADS'] = '1'  # a process with OpenMP threads must not be forked

from synseg_kit.classes import ClassSet
from synseg_kit.synthesis import SynthesisSettings, make_block, synthesize
from tiny import tiny_pipeline, tiny_prompt

PETS = ClassSet('pets', ('cat', 'dog', 'ball', 'mushroom', 'sailboat'))
PROMPTS = tuple(map(tiny_prompt, ('a cat and a dog', 'a red ball', 'a mushroom and a cat', 'the sailboat', 'a dog on a ball')))
SETTINGS = SynthesisSettings(steps=2, block_size=2, seed=3, height=32, width=32, capture={'self_attention': [8]})  # the tiny model has no 16 or 32
RENAMES = (0, 1, 3, 6, 8, 7, 1, 3, 4, 1, 2)  # before dataset.json; a first file; a later one; a record; ... of the next blocks; each of the three lists


def kill_before_rename(number):
    "Let this process kill itself before a rename."
    rename, left = os.replace, count(number, -1)

    def replace(source, target):
        if next(left) == 0: os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace


def start(pipe, folder, prepare=lambda: None):
    "Start a run in a child process."
    child = os.fork()
    if child: return child
    try:
        prepare()
        synthesize(pipe, PROMPTS, folder, PETS, SETTINGS, progress=False)
        os._exit(0)
    except BaseException: traceback.print_exc()
    os._exit(1)


def wait(child): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds, child):
    "Kill a child after a while; one that was done by then stays done."
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


if __name__ == '__main__':
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    pipe = tiny_pipeline()
    make_block(pipe, PROMPTS[:1], (0,), PETS, SETTINGS)  # what is loaded late is loaded now, once for all children
    begin = time.monotonic()
    codes = {'whole': [wait(start(pipe, folder / 'whole'))]}
    seconds, draw = time.monotonic() - begin, random.Random(seed)
    codes['renames'] = [wait(start(pipe, folder / 'renames', lambda n=n: kill_before_rename(n))) for n in RENAMES] + [wait(start(pipe, folder / 'renames'))]
    codes['times'] = [killed_after(draw.uniform(0, .35 * seconds), start(pipe, folder / 'times')) for _ in range(8)] + [wait(start(pipe, folder / 'times'))]
    print(json.dumps(codes))
