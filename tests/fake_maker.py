"""A maker of blocks that needs no model and no torch, and workers that die, lie or differ on request."""
import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synseg_kit.files import EncodedBlock
from synseg_kit.workers import Task

PATTERNS = {'file_name': 'JPEGImages/{:06}.jpg', 'mask_file_name': 'SegmentationClass/{:06}.png', 'reliability_file_name': 'SegmentationReliability/{:06}.png'}


@dataclass(frozen=True)
class FakeMaker:
    """Starts workers whose samples are a function of the seed, the number and the prompt."""
    notes: str  # folder for what workers leave behind: a file for each process, and one for each time that one died
    seed: int = 0
    pause: float = 0.  # seconds that a block takes
    deaths: Mapping[int, int] = field(default_factory=dict)  # block -> how often it kills its worker
    dies_at_start: int = 0  # how many starts end in SIGKILL
    fails: int | None = None  # block that raises
    elsewhere: str = ''  # one more file that block 1 brings
    differing: int | None = None  # worker with other versions
    missing_model: bool = False
    slow: Mapping[int, float] = field(default_factory=dict)  # block -> seconds more that it takes
    blind: bool = False  # forgets to look at its samples

    def __call__(self, worker):
        Path(self.notes, f'{os.getpid()}.pid').touch()
        if self.missing_model: raise FileNotFoundError('there is no folder my-model')
        self.die_once('start', self.dies_at_start)
        return FakeWorker(self, worker)

    def die_once(self, where, times):
        """Kill this process unless it was done often enough."""
        for number in range(times):
            flag = Path(self.notes, f'died-{where}-{number}')
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FakeSample:
    """What filters look at, without its picture."""
    prompt: Any
    image: None = None
    mask: None = None


class FakeWorker:
    """Makes blocks without a model."""

    def __init__(self, plan, worker):
        self.plan, self.hardware = plan, 'cpu'
        self.about = {'prompts': '', 'maker': 'fake', 'seed': plan.seed, 'versions': {'torch': '2.0' if worker == plan.differing else '3.0'}}

    def check(self, prompts):
        if not prompts: raise ValueError('there are no prompts')

    def fit(self, prompts): return 2

    def make(self, task: Task):
        time.sleep(self.plan.pause + self.plan.slow.get(task.block, 0.))
        self.plan.die_once(task.block, self.plan.deaths.get(task.block, 0))
        if task.block == self.plan.fails: raise ValueError(f'block {task.block}, prompt {task.numbers[0]}: the maps are NaN')
        files, lines = {}, []
        for number, prompt in zip(task.numbers, task.prompts, strict=True):
            line = {key: pattern.format(number) for key, pattern in PATTERNS.items()}
            files |= {path: hashlib.sha256(f'{self.plan.seed} {number} {prompt} {path}'.encode()).digest() * 40 for path in line.values()}
            lines.append(line | {'text': str(prompt), 'mentions': [], 'class_ids': [], 'seed': number, 'block': task.block, 'source': 'fake'})
        if self.plan.elsewhere and task.block == 1: files[self.plan.elsewhere] = b'evil'
        looks = {} if task.look is None or self.plan.blind else {number: task.look(number, FakeSample(prompt)) for number, prompt in zip(task.numbers, task.prompts, strict=True)}
        return EncodedBlock(task.block, files, lines, looks)


class NotAgain:
    """A filter of prompts that need no model: turns a text away unless `apart` others were kept since it was kept last, so a verdict hangs on all before it."""

    def __init__(self, apart=2): self.apart, self.kept, self.seen, self.refused = apart, [], 0, []

    def describe(self): return [{'filter': 'NotAgain', 'apart': self.apart}]
    def fresh(self): return NotAgain(self.apart)
    def look(self, number, sample): return sample.prompt.text

    def decide(self, number, seen):
        self.seen += 1
        if seen in [text for _, text in self.kept[-self.apart:]]: self.refused.append(number); return 'again'
        self.kept.append([number, seen])

    def state(self, since=0): return {'seen': self.seen, 'kept': [one for one in self.kept if one[0] >= since], 'refused': [n for n in self.refused if n >= since]}

    def restore(self, *states):
        for one in states:
            self.seen = one['seen']
            self.kept += one['kept']
            self.refused += one['refused']
        return self

    @property
    def report(self): return self

    def to_dict(self): return {'seen': self.seen, 'refused': self.refused}
