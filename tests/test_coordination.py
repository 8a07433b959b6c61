"""Coordination: one loop for all workers; filters judge in order, shards are packed on the way, and the bytes are the same."""
import json
import subprocess
import sys
from pathlib import Path
from threading import Condition

import pytest
from fake_maker import FakeMaker, NotAgain

from synseg_kit.classes import ClassSet
from synseg_kit.coordination import AHEAD, ThisProcess, drop_samples, synthesize_in
from synseg_kit.datasets import SyntheticFolder
from synseg_kit.files import EncodedBlock
from synseg_kit.prompts import find_mentions
from synseg_kit.shards import ShardedDataset, export_shards, recorded_block_size
from synseg_kit.workers import LocalPool, WorkersFailed

PETS = ClassSet('pets', ('cat', 'dog', 'ball'))
PROMPTS = [find_mentions(text, PETS) for text in ('a cat and a dog', 'a red ball', 'a red ball', 'the dog on a ball', 'a cat and a dog', 'a photo of a cat', 'a red ball')] * 3


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def make(folder, notes, pool=None, prompts=PROMPTS, block_size=2, workers=1, keep=None, per_shard=None, **tricks):
    """Make a dataset that needs no model, in this process or with a pool that is made of its starter."""
    notes.mkdir(exist_ok=True)
    starter = FakeMaker(str(notes), **tricks)
    return synthesize_in(pool(starter, workers) if pool else ThisProcess(starter(0)), prompts, folder, PETS, block_size, progress=False, keep=keep, per_shard=per_shard)


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
    """A dataset that was made and judged by one process."""
    folder = tmp_path_factory.mktemp('judged')
    return make(folder / 'data', folder / 'notes', keep=NotAgain())


def by_hand(prompts=PROMPTS, apart=2):
    """Which samples the filter keeps, counted independently."""
    kept = []
    for number, prompt in enumerate(prompts):
        if prompt.text not in [prompts[n].text for n in kept[-apart:]]: kept.append(number)
    return kept


def test_importing_coordination_brings_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, synseg_kit.coordination; sys.exit("torch" in sys.modules)']).returncode == 0


# ---- blocks that end while the next one begins

class InTwoParts:
    """A maker whose blocks are ended by another thread."""
    def __init__(self, maker, stops_at=None, breaks_at=None):
        self.maker, self.about, self.hardware = maker, maker.about, maker.hardware
        self.stops_at, self.breaks_at, self.begun, self.together, self.news = stops_at, breaks_at, [], 0, Condition()

    def check(self, prompts): self.maker.check(prompts)
    def make(self, task): raise AssertionError('it can begin')

    def begin(self, task):
        if task.block == self.stops_at: raise KeyboardInterrupt
        with self.news:
            self.begun.append(task.block)
            self.news.notify_all()
        block = self.maker.make(task)
        return lambda: self.end(block)

    def end(self, block):
        if block.number == self.breaks_at: raise ValueError(f'block {block.number} cannot be encoded')
        with self.news: self.together += self.news.wait_for(lambda: self.begun[-1] > block.number, 5 if block.number < 10 else 0)
        return block


def in_two_parts(folder, notes, **tricks):
    notes.mkdir(exist_ok=True)
    maker = InTwoParts(FakeMaker(str(notes))(0), **tricks)
    return maker, lambda: synthesize_in(ThisProcess(maker), PROMPTS, folder, PETS, 2, progress=False)


def test_a_block_ends_while_the_next_one_begins(tmp_path):
    whole = make(tmp_path / 'whole', tmp_path / 'notes')
    maker, run = in_two_parts(tmp_path / 'data', tmp_path / 'notes')
    assert contents(run().root) == contents(whole.root)
    assert maker.begun == list(range(11)) and maker.together == 10  # the last one has none after it


@pytest.mark.parametrize(('tricks', 'error', 'written'), [({'stops_at': 0}, KeyboardInterrupt, 0), ({'stops_at': 4}, KeyboardInterrupt, 4), ({'breaks_at': 4}, ValueError, 4)])
def test_what_was_made_before_an_interruption_is_written(tmp_path, tricks, error, written):
    whole = make(tmp_path / 'whole', tmp_path / 'notes')
    _, run = in_two_parts(tmp_path / 'data', tmp_path / 'notes', **tricks)
    with pytest.raises(error): run()
    assert len([*(tmp_path / 'data').glob('blocks/*.json')]) == written
    maker, again = in_two_parts(tmp_path / 'data', tmp_path / 'notes')
    assert contents(again().root) == contents(whole.root) and maker.begun[0] == written


# ---- filters

def test_what_filters_say_is_done_and_written(judged):
    kept = by_hand()
    assert judged.names == tuple(f'{n:06}' for n in kept) and len(kept) < len(PROMPTS)
    assert json.loads((judged.root / 'filters.json').read_text()) == {'seen': len(PROMPTS), 'refused': [n for n in range(len(PROMPTS)) if n not in kept]}
    assert judged.about['filter'] == [{'filter': 'NotAgain', 'apart': 2}]
    assert len(contents(judged.root / 'JPEGImages')) == len(contents(judged.root / 'SegmentationReliability')) == len(kept)
    assert len(contents(judged.root / 'filters')) == len(contents(judged.root / 'blocks')) == 11


def test_three_workers_judge_as_one_process_whatever_comes_first(judged, tmp_path):
    slow = {0: .6, 3: .4, 4: .2}  # the first block comes last of the first ones
    assert contents(make(tmp_path / 'data', tmp_path / 'notes', LocalPool, workers=3, keep=NotAgain(), slow=slow, deaths={1: 1}).root) == contents(judged.root)


def test_a_run_that_broke_off_judges_on(judged, tmp_path):
    with pytest.raises(ValueError, match='the maps are NaN'): make(tmp_path / 'data', tmp_path / 'notes', keep=NotAgain(), fails=5)
    assert len(contents(tmp_path / 'data/blocks')) == 5 and not (tmp_path / 'data/filters.json').exists()
    with pytest.raises(FileExistsError, match='filter'): make(tmp_path / 'data', tmp_path / 'notes', keep=NotAgain(apart=3))
    assert contents(make(tmp_path / 'data', tmp_path / 'notes', LocalPool, workers=2, keep=NotAgain()).root) == contents(judged.root)


def test_blocks_are_written_in_order_when_they_are_judged(tmp_path):
    """While the first block is missing no later one may count: what it kept decides about them."""
    with pytest.raises(WorkersFailed, match='block 0: 3 workers were lost'): make(tmp_path / 'data', tmp_path / 'notes', LocalPool, workers=2, keep=NotAgain(), deaths={0: 99})
    assert not (tmp_path / 'data').exists()


def test_nobody_runs_far_ahead_of_a_slow_block(tmp_path):
    class NeverTheFirst(ThisProcess):
        """A pool of two workers, one of which never ends its first block."""
        count, most = 2, 0

        def __init__(self, maker): super().__init__(maker); self.held = 0

        def start(self, worker): self._asked.append((worker, 'start', None))
        def send(self, worker, kind, content): self._asked.append((worker, kind, content))

        def receive(self):
            while self._asked and self._asked[0][1] == 'make' and self._asked[0][2].block == 0: self._asked.popleft()
            if not self._asked: raise TimeoutError
            worker, kind, content = self._asked.popleft()
            if kind == 'make': self.most = max(self.most, content.block)
            yield (worker, 'ready', (self.maker.about, 'cpu')) if kind == 'start' else (worker, {'check': 'checked', 'make': 'made'}[kind], getattr(self.maker, kind)(content))

    pool = NeverTheFirst(FakeMaker(str(tmp_path))(0))
    with pytest.raises(TimeoutError): synthesize_in(pool, PROMPTS * 9, tmp_path / 'data', PETS, 2, progress=False, keep=NotAgain())
    assert 3 <= pool.most <= AHEAD * 2 - 1


def test_a_function_judges_whole_samples_in_their_order(tmp_path):
    seen = []

    def odd(sample):
        seen.append(sample.prompt.text)
        return len(seen) % 2 == 0

    dataset = make(tmp_path / 'data', tmp_path / 'notes', LocalPool, workers=3, keep=odd, slow={0: .5})
    assert seen == [prompt.text for prompt in PROMPTS] and dataset.names == tuple(f'{n:06}' for n in range(1, len(PROMPTS), 2)) and dataset.about['filter'].endswith('odd')


def test_a_maker_that_does_not_look_is_told(tmp_path):
    with pytest.raises(ValueError, match='block 0 came with 2 samples and 0 notes for the filters; its maker has to ask `task.look`'): make(tmp_path / 'data', tmp_path / 'notes', keep=NotAgain(), blind=True)


@pytest.mark.parametrize('folder', ['', '0012/'])
def test_dropped_samples_take_all_their_files_with_them(folder):
    files = {f'{kind}/{folder}{n:06}.{ending}': b'' for n in (4, 5) for kind, ending in (('JPEGImages', 'jpg'), ('SegmentationClass', 'png'), ('SegmentationReliability', 'png'), ('SegmentationClass-daam', 'png'))}
    block = drop_samples(EncodedBlock(2, files, [{'file_name': f'JPEGImages/{folder}{n:06}.jpg'} for n in (4, 5)], {4: 1, 5: 2}), [False, True])
    assert [line['file_name'] for line in block.lines] == [f'JPEGImages/{folder}000005.jpg'] and len(block.files) == 4 and all('000005' in file for file in block.files) and not block.looks


# ---- the size of blocks

def test_an_open_block_size_is_found_once_and_then_known(tmp_path):
    whole = make(tmp_path / 'whole', tmp_path / 'notes')
    assert recorded_block_size(tmp_path / 'new') is None
    with pytest.raises(ValueError, match='NaN'): make(tmp_path / 'data', tmp_path / 'notes', block_size=None, fails=3)
    assert recorded_block_size(tmp_path / 'data') == 2

    class Grown(FakeMaker):
        """A worker that has room for more by now."""
        def __call__(self, worker):
            made = super().__call__(worker)
            made.fit = lambda prompts: pytest.fail('the size is known')
            return made

    assert contents(synthesize_in(ThisProcess(Grown(str(tmp_path / 'notes'))(0)), PROMPTS, tmp_path / 'data', PETS, None, progress=False).root) == contents(whole.root)


# ---- shards

def test_shards_are_those_of_the_packed_folder(judged, tmp_path):
    export_shards(judged, tmp_path / 'packed', 4, progress=False)
    made = make(tmp_path / 'direct', tmp_path / 'notes', LocalPool, workers=3, keep=NotAgain(), per_shard=4, slow={0: .4})
    assert isinstance(made, ShardedDataset) and contents(tmp_path / 'direct') == contents(tmp_path / 'packed')
    again = make(tmp_path / 'direct', tmp_path / 'notes', keep=NotAgain(), per_shard=4, fails=0)  # nothing is left to do
    assert again.names == judged.names and contents(tmp_path / 'direct') == contents(tmp_path / 'packed')
    assert recorded_block_size(tmp_path / 'direct') == 2


def test_unpacked_they_are_the_folder(judged, tmp_path):
    from synseg_kit.shards import import_shards
    make(tmp_path / 'direct', tmp_path / 'notes', keep=NotAgain(), per_shard=5)
    import_shards(tmp_path / 'direct', tmp_path / 'unpacked', progress=False)
    assert contents(tmp_path / 'unpacked') == contents(judged.root) and SyntheticFolder(tmp_path / 'unpacked').names == judged.names


def test_shards_that_broke_off_go_on(judged, tmp_path):
    export_shards(judged, tmp_path / 'packed', 4, progress=False)
    with pytest.raises(WorkersFailed, match='NaN'): make(tmp_path / 'direct', tmp_path / 'notes', LocalPool, workers=2, keep=NotAgain(), per_shard=4, fails=6)
    begun = sorted(p.name for p in (tmp_path / 'direct').iterdir())
    assert begun[0] == 'shard-000000.tar' and begun[-1] == 'writing' and 'manifest.json' not in begun
    waiting = [p for p in (tmp_path / 'direct/writing/dataset/JPEGImages').iterdir()]
    assert len(waiting) < 4  # what is packed is gone
    for wrong, says in ((dict(per_shard=3), 'per_shard is 4 there, 3 here'), (dict(block_size=3), 'block_size is 2 there, 3 here'), (dict(per_shard=None), 'holds other files')):
        with pytest.raises(FileExistsError, match=says): make(tmp_path / 'direct', tmp_path / 'notes', keep=NotAgain(), **{'per_shard': 4, **wrong})
    make(tmp_path / 'direct', tmp_path / 'notes', keep=NotAgain(), per_shard=4)
    assert contents(tmp_path / 'direct') == contents(tmp_path / 'packed')
