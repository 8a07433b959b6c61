"""Faults while a dataset is made: for each a clear message, nothing lost, and in the end the same dataset."""
import errno
import json
import logging
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_maker import FakeMaker
from PIL import Image

from synseg_kit import datasets, synthesis, workers
from synseg_kit.classes import ClassSet
from synseg_kit.datasets import Example, Sample, SampleWriter, SyntheticFolder, encode_block
from synseg_kit.families import load_pipeline
from synseg_kit.filters import AreaLimits, Duplicates, Filters, Shown
from synseg_kit.prompts import find_mentions
from synseg_kit.shards import export_shards
from synseg_kit.synthesis import OutOfMemory, Room, SynthesisSettings, make_numbered_block, sample_seed
from synseg_kit.workers import LocalPool, PipelineMaker, WorkersFailed, synthesize_in

PETS = ClassSet('pets', ('cat', 'dog', 'ball'))
PROMPTS = [find_mentions(text, PETS) for text in ('a cat and a dog', 'a red ball', 'the dog on a ball', 'a photo of a cat')] * 3
KILLS, SAMPLES = int(os.environ.get('SYNSEG_KILLS', 4)), int(os.environ.get('SYNSEG_KILLED_SAMPLES', 300))  # 30 kills: SYNSEG_KILLS=30
PIPELINE = os.environ.get('SYNSEG_KILLED_PIPELINE')  # a folder: samples are made by this model instead of functions that need none


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def make(folder, notes, workers=2, prompts=PROMPTS, **tricks):
    """Make a dataset with workers that need no model."""
    notes.mkdir(exist_ok=True)
    return synthesize_in(LocalPool(FakeMaker(str(notes), **tricks), workers), prompts, folder, PETS, 2, progress=False)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The files of a dataset that nothing happened to."""
    folder = tmp_path_factory.mktemp('whole')
    return contents(make(folder / 'data', folder / 'notes', workers=1).root)


# ---- killed

def test_killed_at_random_times_with_two_workers(tmp_path):
    seed = random.randrange(2**32)
    script = Path(__file__).parent.with_name('killed_workers.py')
    done = subprocess.run([sys.executable, str(script), str(tmp_path), str(seed), str(KILLS), str(SAMPLES), *([PIPELINE] if PIPELINE else [])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['codes'][0] == told['codes'][-1] == 0 and told['codes'].count(-9) >= KILLS // 2 and told['left'] == 0, (seed, told)
    assert PIPELINE or told['workers'] >= 1, (seed, told)
    files = contents(tmp_path / 'killed')
    assert files == contents(tmp_path / 'whole'), f'points drawn with seed {seed}'
    assert len([name for name in files if name.startswith('JPEGImages/')]) == SAMPLES


# ---- a lost worker

def test_a_lost_worker_costs_nothing_but_its_block(tmp_path, whole, caplog):
    with caplog.at_level(logging.WARNING): dataset = make(tmp_path / 'data', tmp_path / 'notes', deaths={0: 1, 3: 2})
    assert contents(dataset.root) == whole
    assert len(list((tmp_path / 'notes').glob('died-*'))) == 3
    assert caplog.text.count('was killed (SIGKILL; the system does that when memory runs out); another one takes its place') == 3


def test_a_block_that_takes_every_worker_with_it_is_named(tmp_path, whole):
    with pytest.raises(WorkersFailed, match='block 3: 3 workers were lost over it; the last one was killed'): make(tmp_path / 'data', tmp_path / 'notes', deaths={3: 99})
    assert not (tmp_path / 'data/blocks/000003.json').exists()
    assert contents(make(tmp_path / 'data', tmp_path / 'fresh').root) == whole


def test_workers_that_die_while_they_start(tmp_path, whole):
    assert contents(make(tmp_path / 'data', tmp_path / 'notes', workers=1, dies_at_start=2).root) == whole
    with pytest.raises(WorkersFailed, match='worker 0 was lost 3 times while it started'): make(tmp_path / 'other', tmp_path / 'more', workers=1, dies_at_start=3)
    assert not (tmp_path / 'other').exists()


def test_workers_that_cannot_start_say_why(tmp_path):
    with pytest.raises(WorkersFailed, match=r'worker \d could not start: there is no folder my-model'): make(tmp_path / 'data', tmp_path / 'notes', missing_model=True)
    assert not (tmp_path / 'data').exists()


def test_a_worker_of_other_versions_is_refused(tmp_path):
    with pytest.raises(WorkersFailed, match="would make another dataset: its versions is {'torch': '[23].0'}, that of the first worker"):
        make(tmp_path / 'data', tmp_path / 'notes', differing=1, pause=1.)


def test_an_error_in_a_block_ends_the_run_and_keeps_what_is_written(tmp_path, whole):
    with pytest.raises(WorkersFailed) as error: make(tmp_path / 'data', tmp_path / 'notes', fails=4)
    assert str(error.value) == 'block 4, prompt 8: the maps are NaN'
    assert 'Traceback' in error.value.__notes__[0] and 'fake_maker.py' in error.value.__notes__[0]
    with pytest.raises(ValueError, match='is not finished'): SyntheticFolder(tmp_path / 'data')
    assert contents(make(tmp_path / 'data', tmp_path / 'notes').root) == whole


def test_workers_are_gone_when_their_coordinator_is(tmp_path):
    make(tmp_path / 'data', tmp_path / 'notes', workers=3)
    for note in (tmp_path / 'notes').glob('*.pid'):
        with pytest.raises(ProcessLookupError): os.kill(int(note.stem), 0)


def test_one_worker_or_three_make_the_same(tmp_path, whole):
    assert contents(make(tmp_path, tmp_path.with_name('notes-of-three'), workers=3, pause=.01).root) == whole


def test_no_more_than_two_blocks_a_worker_are_handed_out(tmp_path):
    class Silent:
        """A pool that never answers a request to make something."""
        count, asked = 3, ()

        def start(self, worker): self.asked += (('start', worker),)
        def send(self, worker, kind, content): self.asked += ((kind, worker),)
        def close(self): pass

        def receive(self):
            if self.asked[-1] == ('start', 2): yield from [(w, 'ready', ({'prompts': ''}, 'cpu')) for w in range(3)]
            elif self.asked[-1] == ('check', 0): yield 0, 'checked', None
            else: raise KeyboardInterrupt

    pool = Silent()
    with pytest.raises(KeyboardInterrupt): synthesize_in(pool, PROMPTS * 9, tmp_path / 'data', PETS, 2, progress=False)
    assert [kind for kind, _ in pool.asked].count('make') == 6 and {worker for kind, worker in pool.asked if kind == 'make'} == {0, 1, 2}


# ---- what a worker hands in

@pytest.mark.parametrize('path', ['../evil.txt', '/tmp/evil.txt', 'SegmentationClass-../../evil.png', 'dataset.json', 'JPEGImages/000000.jpg', 'SegmentationClass-x/../../evil.png'])
def test_a_block_cannot_write_beside_its_samples(tmp_path, path):
    with pytest.raises(ValueError, match='which is no file of its samples'): make(tmp_path / 'in/data', tmp_path / 'notes', workers=1, elsewhere=path)
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and p.read_bytes() == b'evil'] and not (tmp_path / 'in/data/blocks/000001.json').exists()


def test_a_block_without_its_files_is_refused(tmp_path):
    block = FakeMaker(str(tmp_path))(0).make(workers.Task(0, range(2), PROMPTS[:2]))
    with SampleWriter(tmp_path / 'data', PETS, 4, 2) as writer:
        with pytest.raises(ValueError, match='block 0 lacks SegmentationClass/000001.png'): writer.commit(replace(block, files={k: v for k, v in block.files.items() if k != 'SegmentationClass/000001.png'}))
        with pytest.raises(ValueError, match='has blocks 0 to 1; got block 7'): writer.commit(replace(block, number=7))
        assert writer.missing == [0, 1]


# ---- out of disk

def a_sample(number):
    """A small sample of noise."""
    draw = np.random.default_rng(number)
    labels = draw.integers(0, 4, (8, 8)).astype(np.uint8)
    image = Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    return Sample(image, Example(image, labels, np.ones((8, 8), np.float32)), PROMPTS[number], sample_seed(0, number))


def write_all(folder):
    """Write eight samples in blocks of two."""
    with SampleWriter(folder, PETS, 8, 2) as writer:
        for block in writer.missing: writer.write(block, [a_sample(n) for n in writer.numbers(block)])
        return writer.finish()


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize('writes', [0, 7, 11, 19, 24])
def test_a_full_disk_leaves_whole_files_and_says_what_is_safe(tmp_path, monkeypatch, writes, code):
    whole, left, really = contents(write_all(tmp_path / 'whole').root), [writes], Path.write_bytes

    def full(path, content):
        if 'writing' in path.parts and not left[0]:
            really(path, content[:len(content) // 2])
            raise OSError(code, os.strerror(code))
        left[0] -= 1
        return really(path, content)

    monkeypatch.setattr(Path, 'write_bytes', full)
    if writes < 24:
        with pytest.raises(OSError, match=rf'the disk is full; block {writes // 6} of .*data was not written\. {writes // 6} of 4 blocks are complete and stay; make room') as error: write_all(tmp_path / 'data')
        assert error.value.errno == code
    else: write_all(tmp_path / 'data')
    monkeypatch.undo()
    there = contents(tmp_path / 'data') if (tmp_path / 'data').exists() else {}
    assert all(whole[name] == content for name, content in there.items()) and not (tmp_path / 'data/writing').exists()
    assert contents(write_all(tmp_path / 'data').root) == whole


def test_a_full_disk_at_the_end(tmp_path, monkeypatch):
    whole, really = contents(write_all(tmp_path / 'whole').root), SampleWriter.put

    def full(writer, name, write):
        if name == 'README.md': raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(writer, name, write)

    monkeypatch.setattr(SampleWriter, 'put', full)
    with pytest.raises(OSError, match='the list of samples of .*data was not written. 4 of 4 blocks'): write_all(tmp_path / 'data')
    monkeypatch.undo()
    with pytest.raises(ValueError, match='is not finished'): SyntheticFolder(tmp_path / 'data')
    assert contents(write_all(tmp_path / 'data').root) == whole


def test_other_errors_of_the_disk_are_passed_on(tmp_path, monkeypatch):
    def broken(path, content): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(Path, 'write_bytes', broken)
    with pytest.raises(OSError, match='Input/output error'): write_all(tmp_path / 'data')


# ---- two processes on one folder

def test_a_second_command_is_told_and_disturbs_nothing(tmp_path, whole):
    (tmp_path / 'notes').mkdir()
    with SampleWriter(tmp_path / 'data', PETS, len(PROMPTS), 2, {'prompts': '', 'maker': 'fake'}):
        with pytest.raises(RuntimeError, match='another process is writing to .*data; wait for it, or choose another folder'): make(tmp_path / 'data', tmp_path / 'notes')
        assert (tmp_path / 'data/writing/lock').exists()
    assert contents(make(tmp_path / 'data', tmp_path / 'notes').root) == whole


def test_who_leaves_takes_nothing_from_who_comes(tmp_path, monkeypatch):
    """Between the first process's release and its end the second begins: its lock and its half-written block must stay."""
    first, second = SampleWriter(tmp_path, PETS, 8, 2), SampleWriter(tmp_path, PETS, 8, 2)
    with first:
        first.write(0, [a_sample(0), a_sample(1)])
        release = first._lock.release

        def and_the_next_one_begins():
            release()
            second.__enter__()
            (second.aside / 'block').mkdir()
            (second.aside / 'block/half.jpg').write_text('half')

        monkeypatch.setattr(first._lock, 'release', and_the_next_one_begins)
    assert (second.aside / 'block/half.jpg').is_file()
    with pytest.raises(RuntimeError, match='another process is writing'): SampleWriter(tmp_path, PETS, 8, 2).__enter__()
    second.write(1, [a_sample(2), a_sample(3)])
    second.__exit__()
    assert contents(write_all(tmp_path).root) == contents(write_all(tmp_path.with_name('alone')).root)


def test_another_dataset_that_began_in_between_is_refused(tmp_path, monkeypatch):
    """Two processes look at an empty folder at the same time; the second gets the lock when the first is done."""
    look, looks = SampleWriter._refuse_other, []

    def slow(self):
        look(self)
        looks.append(self)
        if len(looks) == 1: write_all(tmp_path / 'data')

    monkeypatch.setattr(SampleWriter, '_refuse_other', slow)
    with pytest.raises(FileExistsError, match='count is 8 there, 6 here'): SampleWriter(tmp_path / 'data', PETS, 6, 2).__enter__()
    assert len(write_all(tmp_path / 'data')) == 8  # the lock is free


# ---- a clock that jumps

def test_time_stamps_mean_nothing(tmp_path, whole):
    with pytest.raises(WorkersFailed): make(tmp_path / 'data', tmp_path / 'notes', fails=4)
    for number, path in enumerate(sorted((tmp_path / 'data').rglob('*'))): os.utime(path, (4e9 * (number % 2), 4e9 * (number % 2)))
    stamps = {path: path.stat().st_mtime for path in (tmp_path / 'data').rglob('*.jpg')}
    assert contents(make(tmp_path / 'data', tmp_path / 'notes').root) == whole
    assert all(path.stat().st_mtime == stamp for path, stamp in stamps.items() if path.stem in {f'{n:06}' for n in range(4)})  # made, and not again


@pytest.mark.parametrize('module', ['files', 'datasets', 'shards', 'coordination', 'synthesis', 'workers', 'runs', 'sweeps', 'cluster'])
def test_no_decision_is_made_by_the_clock(root, module):
    text = (root / f'synseg_kit/{module}.py').read_text()
    for word in ('st_mtime', 'st_ctime', 'getmtime', 'time.time(', 'datetime'): assert word not in text, f'{module}.py decides by {word}'


# ---- out of memory

@pytest.fixture(scope='module')
def pipe():
    """A pipeline of random weights."""
    from tiny import tiny_pipeline
    torch.set_num_threads(1)
    return tiny_pipeline()


@pytest.fixture
def narrow(monkeypatch):
    """Let blocks be made by a model that has room for so many images at once."""
    def set_room(most, error=None):
        calls = []

        def make_block(pipe, prompts, seeds, class_set, settings):
            calls.append(len(prompts))
            if len(prompts) > most: raise error or torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
            return [replace(a_sample(0), prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]

        monkeypatch.setattr(synthesis, 'make_block', make_block)
        return calls
    return set_room


@pytest.mark.parametrize(('most', 'batches', 'calls'), [(5, [None] * 5, [5]), (4, [3, 3, 3, 2, 2], [5, 3, 2]), (2, [2, 2, 1, 2, 2], [5, 3, 2, 1, 2]), (1, [1] * 5, [5, 3, 2, 1, 1, 1, 2, 1, 1])])
def test_a_block_is_made_in_halves_and_says_so(pipe, narrow, most, batches, calls):
    made = narrow(most)
    samples = make_numbered_block(pipe, 2, range(10, 15), PROMPTS[:5], PETS, SynthesisSettings())
    assert [s.batch for s in samples] == batches and made == calls
    assert [s.seed for s in samples] == [sample_seed(0, n) for n in range(10, 15)] and [s.prompt for s in samples] == PROMPTS[:5]


FIRST = {5: [5], 4: [5, 3, 2], 3: [5, 3, 2], 2: [5, 3, 2, 1, 2], 1: [5, 3, 2, 1, 1, 1, 2, 1, 1]}  # images that fit -> calls of a block of five, the first
SECOND = {5: [5], 4: [3, 2], 3: [3, 2], 2: [2, 1, 2], 1: [1] * 5}  # and of the next


@pytest.mark.parametrize('most', FIRST)
def test_what_fitted_is_remembered_and_blocks_are_cut_in_the_same_places(pipe, narrow, most):
    calls, room = narrow(most), Room()
    first, second = ([s.batch for s in make_numbered_block(pipe, block, range(5), PROMPTS[:5], PETS, SynthesisSettings(), room)] for block in range(2))
    assert first == second and calls[:len(calls) - len(SECOND[most])] == FIRST[most] and calls[-len(SECOND[most]):] == SECOND[most]
    assert room.most == (None if most == 5 else max(first))


def test_now_and_then_the_whole_is_tried_again(pipe, narrow):
    room = Room(again=3)
    narrow(2)
    assert [s.batch for s in make_numbered_block(pipe, 0, range(4), PROMPTS[:4], PETS, SynthesisSettings(), room)] == [2] * 4
    calls, tried = narrow(4), []
    for block in range(1, 6):
        before = len(calls)
        make_numbered_block(pipe, block, range(4), PROMPTS[:4], PETS, SynthesisSettings(), room)
        tried.append(calls[before:])
    assert tried == [[2, 2], [2, 2], [2, 2], [4], [4]]  # whatever was on the GPU is gone since the first block


def test_a_short_block_says_nothing_about_a_whole_one(pipe, narrow):
    room = Room()
    narrow(2)
    make_numbered_block(pipe, 0, range(4), PROMPTS[:4], PETS, SynthesisSettings(), room)
    calls = narrow(2)
    make_numbered_block(pipe, 1, range(2), PROMPTS[:2], PETS, SynthesisSettings(), room)
    make_numbered_block(pipe, 2, range(4), PROMPTS[:4], PETS, SynthesisSettings(), room)
    assert calls == [2, 2, 2]


@pytest.mark.parametrize(('fits', 'count', 'found', 'calls'), [(1, 99, 1, [1, 2]), (5, 99, 4, [1, 2, 4, 8]), (64, 99, 64, [1, 2, 4, 8, 16, 32, 64]), (1000, 12, 16, [1, 2, 4, 8, 16])])
def test_a_gpu_finds_out_how_many_fit(pipe, narrow, monkeypatch, fits, count, found, calls):
    monkeypatch.setattr(type(pipe), 'device', torch.device('meta'))  # any that is no CPU
    made = narrow(fits)
    assert synthesis.find_block_size(pipe, (PROMPTS * 9)[:count], PETS) == found and made == calls


def test_trying_out_sizes_takes_the_prompts_with_most_mentions_and_few_steps(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(type(pipe), 'device', torch.device('meta'))
    monkeypatch.setattr(synthesis, 'make_block', lambda pipe, prompts, seeds, class_set, settings: seen.append((prompts, settings.steps)))
    assert synthesis.find_block_size(pipe, PROMPTS, PETS, SynthesisSettings(steps=50), most=2) == 2
    assert seen == [([PROMPTS[0]], 2), ([PROMPTS[0], PROMPTS[2]], 2)]
    synthesis.find_block_size(pipe, PROMPTS, PETS, SynthesisSettings(steps=50, capture={'steps': [30]}), most=1)
    assert seen[-1][1] == 50  # the step that is listened to must be reached


def test_sizes_are_not_tried_where_memory_is_no_matter(pipe, narrow):
    calls = narrow(0)
    assert synthesis.find_block_size(pipe, PROMPTS, PETS) == 8 and synthesis.find_block_size(pipe, PROMPTS, PETS, most=4) == 4 and not calls


def test_when_not_even_one_fits_no_size_is_found(pipe, narrow, monkeypatch):
    monkeypatch.setattr(type(pipe), 'device', torch.device('meta'))
    narrow(0)
    with pytest.raises(OutOfMemory, match='memory does not suffice for a single image'): synthesis.find_block_size(pipe, PROMPTS, PETS)
    narrow(0, RuntimeError('shapes do not match'))
    with pytest.raises(RuntimeError, match='shapes do not match'): synthesis.find_block_size(pipe, PROMPTS, PETS)


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:98] DefaultCPUAllocator: can't allocate memory"), RuntimeError('MPS backend out of memory'),
                                   torch.OutOfMemoryError('CUDA out of memory')])
def test_memory_runs_out_in_many_words(pipe, narrow, error):
    narrow(1, error)
    assert [s.batch for s in make_numbered_block(pipe, 0, range(2), PROMPTS[:2], PETS)] == [1, 1]


def test_when_not_even_one_fits(pipe, narrow):
    narrow(0)
    with pytest.raises(OutOfMemory, match='block 3: memory does not suffice for a single image .CUDA out of memory'): make_numbered_block(pipe, 3, range(4), PROMPTS[:4], PETS)


def test_other_errors_are_not_tried_in_halves(pipe, narrow):
    calls = narrow(0, RuntimeError('shapes do not match'))
    with pytest.raises(RuntimeError, match='shapes do not match'): make_numbered_block(pipe, 3, range(4), PROMPTS[:4], PETS)
    assert calls == [4]


def test_the_dataset_tells_which_samples_were_made_in_smaller_batches(pipe, narrow, tmp_path):
    with SampleWriter(tmp_path, PETS, 6, 3) as writer:
        for block, most in ((0, 3), (1, 2)):
            narrow(most)
            samples = make_numbered_block(pipe, block, writer.numbers(block), [PROMPTS[n] for n in writer.numbers(block)], PETS)
            writer.commit(encode_block(block, writer.numbers(block), 6, samples, PETS))
        dataset = writer.finish()
    assert [line.get('batch') for line in dataset.metadata] == [None, None, None, 2, 2, 1] and 'batch' not in dataset.metadata[0]
    assert 'Memory did not suffice for block 1: 3 samples were made in smaller batches' in (tmp_path / 'README.md').read_text()
    assert 'Memory' not in datasets.dataset_card(PETS, 6)


# ---- with a pipeline

SETTINGS = SynthesisSettings(steps=2, block_size=2, height=32, width=32, capture={'self_attention': [8]})  # the tiny model has no 16 or 32


def test_a_pipeline_without_room_makes_the_same_samples_but_for_rounding(pipe, tmp_path, monkeypatch):
    roomy = synthesis.synthesize(pipe, PROMPTS[:4], tmp_path / 'roomy', PETS, SETTINGS, progress=False)
    forward = pipe.unet.forward

    @wraps(forward)
    def crowded(sample, *rest, **options):
        if len(sample) > 2: raise torch.OutOfMemoryError('CUDA out of memory')  # with guidance, an image counts twice
        return forward(sample, *rest, **options)

    monkeypatch.setattr(pipe.unet, 'forward', crowded)
    halved = synthesis.synthesize(pipe, PROMPTS[:4], tmp_path / 'halved', PETS, SETTINGS, progress=False)
    assert [line['batch'] for line in halved.metadata] == [1] * 4 and [line['seed'] for line in halved.metadata] == [line['seed'] for line in roomy.metadata]
    for a, b in zip(roomy, halved): assert np.abs(np.array(a.image, int) - np.array(b.image, int)).mean() < 1


def test_nan_in_the_maps_is_refused_with_block_and_prompt(pipe, tmp_path, monkeypatch):
    before = pipe.unet.forward
    whole = contents(synthesis.synthesize(pipe, PROMPTS[:4], tmp_path / 'whole', PETS, SETTINGS, progress=False).root)
    steps = []

    @wraps(before)
    def overflowing(sample, *rest, **options):
        steps.append(len(sample))
        if len(steps) > SETTINGS.steps: sample = torch.where(torch.arange(len(sample)).view(-1, 1, 1, 1) % 2 == 1, torch.nan, sample)  # the second image of the second block
        return before(sample, *rest, **options)

    monkeypatch.setattr(pipe.unet, 'forward', overflowing)
    with pytest.raises(ValueError, match=r"^block 1, prompt 3: 100% of the attention maps of 'a photo of a cat' are NaN or infinite.*bfloat16 or float32"):
        synthesis.synthesize(pipe, PROMPTS[:4], tmp_path / 'data', PETS, SETTINGS, progress=False)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / 'data/blocks').iterdir()] == ['000000.json']
    assert contents(synthesis.synthesize(pipe, PROMPTS[:4], tmp_path / 'data', PETS, SETTINGS, progress=False).root) == whole


def test_workers_with_pipelines_make_what_one_process_makes(pipe, tmp_path):
    """Filters that look at images, masks and attention, one that remembers, and shards: all of it in two workers, and the same bytes."""
    pipe.save_pretrained(tmp_path / 'model')
    picky = Filters(AreaLimits(least=.01), Shown(contrast=0., area=0.), Duplicates(limit=45))  # of 64 bits: nearly any two images count as alike
    alone = synthesis.synthesize(load_pipeline(tmp_path / 'model'), PROMPTS[:9], tmp_path / 'alone', PETS, SETTINGS, picky, progress=False)
    assert 0 < len(alone) < 9
    export_shards(alone, tmp_path / 'packed', 2, progress=False)
    starter = PipelineMaker(str(tmp_path / 'model'), PETS, SETTINGS, 9, threads=1)
    synthesize_in(LocalPool(starter, 2), PROMPTS[:9], tmp_path / 'together', PETS, SETTINGS.block_size, progress=False, keep=picky, per_shard=2)
    assert contents(tmp_path / 'together') == contents(tmp_path / 'packed')
