"""Synthesises a small dataset over and over in child processes that are killed with SIGKILL, until one is left to finish.

    python tests/killed_run.py FOLDER time 0.3 0.7   kill the first child after 0.3 s, the second after 0.7 s
    python tests/killed_run.py FOLDER rename 0 4     kill the first child before its first rename, the second before its fifth
    python tests/killed_run.py FOLDER none           let it run

Prints a line for each child: its exit code (-9: killed) and the seconds it ran.
"""
import os
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
SETTINGS = SynthesisSettings(steps=2, block_size=2, seed=3, height=32, width=32)


def kill_before_rename(number):
    "Let this process kill itself before a rename."
    rename, left = os.replace, count(number, -1)

    def replace(source, target):
        if next(left) == 0: os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace


def attempt(pipe, folder, how, limit):
    "Run once in a child; limit None: to the end."
    child, start = os.fork(), time.monotonic()
    if child == 0:
        try:
            if how == 'rename' and limit is not None: kill_before_rename(int(limit))
            synthesize(pipe, PROMPTS, folder, PETS, SETTINGS, progress=False)
            os._exit(0)
        except BaseException: traceback.print_exc()
        os._exit(1)
    while how == 'time' and limit is not None and time.monotonic() - start < limit and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.002)
    if how == 'time' and limit is not None: os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, round(time.monotonic() - start, 3), flush=True)


if __name__ == '__main__':
    folder, how, *limits = sys.argv[1:]
    pipe = tiny_pipeline()
    make_block(pipe, PROMPTS[:1], (0,), PETS, SETTINGS)  # what is loaded late is loaded now, once for all children
    for limit in [*map(float, limits), None]: attempt(pipe, folder, how, limit)
