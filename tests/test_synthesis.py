"""Synthesis: one seed, one dataset, whatever happens on the way."""
import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_run import PETS, PROMPTS, RENAMES, SETTINGS
from peft import LoraConfig
from tiny import tiny_pipeline, tiny_prompt, tiny_xl_pipeline

from synseg_kit import synthesis
from synseg_kit.filters import AreaLimits, Duplicates, Filters
from synseg_kit.prompts import Mention, Prompt, PromptTooLong
from synseg_kit.synthesis import SynthesisSettings, check_prompts, denoiser_precision, describe_model, fingerprint, make_block, quiet, sample_seed, synthesize


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Networks this small are slower on two threads; and `killed_run.py` has one."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def pipe(): return tiny_pipeline()


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def make(pipe, folder, prompts=PROMPTS, settings=SETTINGS, class_set=PETS, **options): return synthesize(pipe, prompts, folder, class_set, settings, progress=False, **options)


@pytest.fixture(scope='module')
def whole(pipe, tmp_path_factory):
    "A dataset that nobody interrupted."
    return make(pipe, tmp_path_factory.mktemp('whole') / 'dataset')


# ---- seeds

def test_seeds_are_pinned():
    assert [sample_seed(0, n) for n in range(4)] == [3202332595, 171021625, 3110237010, 2698409930]
    assert sample_seed(0, 2**32 - 1) != sample_seed(0, 0)


def test_seeds_differ():
    seeds = {sample_seed(seed, number) for seed in range(3) for number in range(10_000)}
    assert len(seeds) > 29_995 and max(seeds) < 2**32
    for seed in range(3): assert len({sample_seed(seed, number) for number in range(10_000)}) == 10_000


def test_neighbours_have_unlike_noise():
    noise = torch.stack([torch.randn(4096, generator=torch.Generator().manual_seed(sample_seed(7, n))) for n in range(64)])
    similar = noise @ noise.T / 4096 - torch.eye(64)
    assert similar.abs().max() < .1


def test_torch_uses_32_bits():
    "The reason for 32-bit seeds; should torch ever use more, they could be longer."
    draw = lambda seed: torch.randn(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(5), draw(5 + 2**32)) and not torch.equal(draw(5), draw(6))


# ---- what is refused before anything is written

@pytest.mark.parametrize('prompts, error, says', [
    ((), ValueError, 'there are no prompts'),
    ((PROMPTS[0], tiny_prompt('a photo of the red')), ValueError, "prompt 1 mentions no class of 'pets'"),
    ((PROMPTS[0], Prompt('', ())), ValueError, 'prompt 1 mentions no class'),
    ((*PROMPTS, tiny_prompt('the cat on grass')), ValueError, "prompt 5 mentions class id 300, and 'pets' has 1 to 5"),
    ((*PROMPTS, Prompt('a cat', (Mention(0, 2, 5),))), ValueError, 'prompt 5 mentions class id 0'),
    ((*PROMPTS, tiny_prompt('a photo of ' + 'the ' * 20 + 'cat')), PromptTooLong, "prompt 5: 'cat' is token"),
])
def test_prompts_are_refused(pipe, tmp_path, prompts, error, says):
    with pytest.raises(error, match=says): make(pipe, tmp_path / 'new', prompts)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('wrong, says', [
    (dict(recipe='magic'), "unknown recipe 'magic'"), (dict(recipe_parameters={'gamma': 1}), "has no parameter 'gamma'"), (dict(capture={'keep': 'all'}), "keep is 'resolution' or"),
    (dict(height=33), 'divisible by')])
def test_settings_that_fail_in_the_first_block_leave_nothing(pipe, tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says): make(pipe, tmp_path / 'new', settings=replace(SETTINGS, **wrong))
    assert not (tmp_path / 'new').exists()


def test_every_tokenizer_is_asked():
    pipe = tiny_xl_pipeline()
    check_prompts(PROMPTS, PETS, pipe)
    pipe.tokenizer_2.model_max_length = 4
    with pytest.raises(PromptTooLong, match='prompt 0'): check_prompts(PROMPTS, PETS, pipe)


@pytest.mark.parametrize('wrong', [dict(steps=0), dict(block_size=0), dict(guidance_scale=.5), dict(height=0), dict(precision='fp8')])
def test_settings_refuse(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}=.*; needed is'): SynthesisSettings(**wrong)


def test_occupied_folder(pipe, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='holds other files, such as notes.txt'): make(pipe, tmp_path)
    assert contents(tmp_path) == {'notes.txt': b'mine'}


@pytest.mark.parametrize('other, says', [
    (dict(settings=replace(SETTINGS, steps=3, seed=4)), r'settings.steps is 2 there, 3 here; settings.seed is 3 there, 4 here\. Choose another folder'),
    (dict(settings=replace(SETTINGS, block_size=3)), 'block_size is 2 there, 3 here'),
    (dict(settings=replace(SETTINGS, recipe_parameters={'beta': .3})), r'settings.recipe_parameters.* there'),
    (dict(prompts=PROMPTS[::-1]), 'prompts is "[0-9a-f]{32}" there, "[0-9a-f]{32}" here'),
    (dict(prompts=PROMPTS[:4]), 'count is 5 there, 4 here'),
    (dict(class_set=replace(PETS, name='animals')), 'class_set.name is "pets" there, "animals" here'),
    (dict(keep=lambda sample: True), 'filter is null there'),
])
def test_another_dataset_is_refused(pipe, whole, other, says):
    before = contents(whole.root)
    with pytest.raises(FileExistsError, match=says): make(pipe, whole.root, **other)
    assert contents(whole.root) == before


def test_another_model_is_refused(whole):
    with pytest.raises(FileExistsError, match='model.fingerprint is'): make(tiny_pipeline(seed=1), whole.root)


# ---- the model's fingerprint

def test_fingerprint_goes_with_the_model_not_its_place(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / 'here')
    (tmp_path / 'here').rename(tmp_path / 'there')
    again = type(pipe).from_pretrained(tmp_path / 'there', safety_checker=None)
    assert {**describe_model(again), 'name': ''} == {**describe_model(pipe), 'name': ''}
    assert describe_model(again)['name'] == 'there'  # not the path


@pytest.mark.parametrize('change', [
    lambda p: p.vae.decoder.conv_out.bias.data.add_(1), lambda p: p.unet.to(torch.bfloat16), lambda p: p.scheduler.register_to_config(steps_offset=0),
    lambda p: p.tokenizer.add_tokens(['zebra']), lambda p: p.register_modules(text_encoder=None)])
def test_fingerprint_sees(change):
    pipe = tiny_pipeline()
    before = fingerprint(pipe)
    change(pipe)
    assert fingerprint(pipe) != before


def test_fingerprint_sees_the_strength_of_an_adapter():
    pipe = tiny_pipeline()
    prints = [fingerprint(pipe)]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=['to_q'], init_lora_weights='gaussian'), 'street')
    for strength in (1., .5):
        pipe.unet.set_adapters(['street'], [strength])
        prints.append(fingerprint(pipe))
    assert len(set(prints)) == 3


# ---- one block

def test_the_pipeline_is_left_as_it_was(pipe):
    before = dict(vars(pipe)), dict(vars(pipe.unet))
    make_block(pipe, PROMPTS[:2], (1, 2), PETS, replace(SETTINGS, precision='bf16'))
    assert (dict(vars(pipe)), dict(vars(pipe.unet))) == before
    with pytest.raises(MemoryError), quiet(pipe), denoiser_precision(pipe, 'bf16'): raise MemoryError
    assert (dict(vars(pipe)), dict(vars(pipe.unet))) == before


def test_a_sample_keeps_its_noise_in_any_block(pipe):
    pairs = make_block(pipe, PROMPTS[:3], (1, 2, 3), PETS, SETTINGS)
    alone = make_block(pipe, PROMPTS[2:3], (3,), PETS, SETTINGS)
    assert pairs[2].seed == alone[0].seed == 3 and pairs[2].prompt == alone[0].prompt == PROMPTS[2]
    assert np.abs(np.array(pairs[2].image, int) - np.array(alone[0].image, int)).max() <= 2
    assert np.abs(np.array(pairs[1].image, int) - np.array(alone[0].image, int)).max() > 20


def test_bf16_is_repeatable_and_near(pipe):
    fast = [make_block(pipe, PROMPTS[:2], (1, 2), PETS, replace(SETTINGS, precision='bf16')) for _ in range(2)]
    exact = make_block(pipe, PROMPTS[:2], (1, 2), PETS, SETTINGS)
    for a, b, e in zip(*fast, exact):
        assert a.image.tobytes() == b.image.tobytes() and np.array_equal(a.mask.labels, b.mask.labels)
        assert 0 < np.abs(np.array(a.image, float) - np.array(e.image, float)).mean() < 4


def test_size_and_negative_prompt(pipe):
    sample, = make_block(pipe, PROMPTS[:1], (1,), PETS, replace(SETTINGS, width=48))
    assert sample.image.size == (48, 32) == sample.mask.labels.shape[::-1]
    away, = make_block(pipe, PROMPTS[:1], (1,), PETS, replace(SETTINGS, height=32, width=48, negative_prompt='a red ball'))
    assert away.image.tobytes() != sample.image.tobytes()


def test_without_guidance(pipe): assert make_block(pipe, PROMPTS[:1], (1,), PETS, replace(SETTINGS, guidance_scale=1.))[0].image.size == (32, 32)


def test_xl_makes_a_dataset(tmp_path):
    dataset = make(tiny_xl_pipeline(), tmp_path, PROMPTS[:3], settings=replace(SETTINGS, capture={'self_attention': [4]}))
    assert len(dataset) == 3 and dataset.about['model']['pipeline'] == 'StableDiffusionXLPipeline'


def test_blackened_images_are_left_out(tmp_path):
    pipe = tiny_pipeline()
    pipe.run_safety_checker = lambda image, device, dtype: (image, [text % 2 == 1 for text in range(len(image))])
    assert make(pipe, tmp_path).names == ('000000', '000002', '000004')


# ---- the dataset

def test_dataset(whole):
    assert whole.names == tuple(f'{n:06}' for n in range(5)) and whole.prompts == PROMPTS
    assert [line['seed'] for line in whole.metadata] == [sample_seed(3, n) for n in range(5)]
    assert [line['block'] for line in whole.metadata] == [0, 0, 1, 1, 2]
    for example, prompt in zip(whole, PROMPTS):
        assert example.image.size == (32, 32) and set(np.unique(example.labels)) <= {0, 255, *prompt.class_ids}


def test_description(whole):
    about = json.loads((whole.root / 'dataset.json').read_text())
    assert (about['count'], about['block_size'], about['settings']) == (5, 2, asdict(SETTINGS))
    assert set(about['model']) == {'name', 'pipeline', 'fingerprint', 'dtype', 'device'} and set(about['versions']) == {'synseg_kit', 'torch', 'diffusers'}
    assert str(whole.root) not in ''.join(p.read_text() for p in whole.root.rglob('*.json*'))


def test_the_same_again(pipe, whole, tmp_path):
    make(pipe, tmp_path / 'again')
    assert contents(tmp_path / 'again') == contents(whole.root)
    make(pipe, tmp_path / 'again')  # there is nothing left to do
    assert contents(tmp_path / 'again') == contents(whole.root)


def test_another_seed_is_another_dataset(pipe, whole, tmp_path):
    other = make(pipe, tmp_path, settings=replace(SETTINGS, seed=4))
    assert all(a.image.tobytes() != b.image.tobytes() for a, b in zip(other, whole))


def test_keep(pipe, tmp_path):
    seen = []

    def odd(sample):
        seen.append(sample.seed)
        return len(seen) % 2 == 0

    dataset = make(pipe, tmp_path / 'odd', keep=odd)
    assert dataset.names == ('000001', '000003') and dataset.about['filter'].endswith('odd')
    assert seen == [sample_seed(3, n) for n in range(5)]
    with pytest.raises(ValueError, match='all 5 samples .* were rejected'): make(pipe, tmp_path / 'none', keep=lambda sample: False)


def test_masks_by_another_recipe(pipe, whole, tmp_path):
    both = make(pipe, tmp_path / 'both', settings=replace(SETTINGS, also={'daam': {'threshold': .5}}))
    alone = make(pipe, tmp_path / 'alone', settings=replace(SETTINGS, recipe='daam', recipe_parameters={'threshold': .5}))
    assert contents(both.root / 'SegmentationClass') == contents(whole.root / 'SegmentationClass')
    assert contents(both.root / 'SegmentationClass-daam') == contents(alone.root / 'SegmentationClass')


def test_an_error_in_a_block_keeps_the_blocks_before(pipe, whole, tmp_path, monkeypatch):
    real = synthesis.make_block

    def breaks(pipe, prompts, *rest):
        if PROMPTS[2] in prompts: raise MemoryError('out of memory')
        return real(pipe, prompts, *rest)

    monkeypatch.setattr(synthesis, 'make_block', breaks)
    with pytest.raises(MemoryError): make(pipe, tmp_path)
    assert [p.name for p in tmp_path.glob('blocks/*')] == ['000000.json'] and not (tmp_path / 'writing').exists()
    monkeypatch.undo()
    make(pipe, tmp_path)
    assert contents(tmp_path) == contents(whole.root)


# ---- SIGKILL

@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "Run `killed_run.py`; give its folder, the seed of its times and the exit codes of its children."
    folder, seed = tmp_path_factory.mktemp('killed'), random.randrange(2**32)
    done = subprocess.run([sys.executable, str(Path(__file__).with_name('killed_run.py')), str(folder), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, seed, json.loads(done.stdout)


def test_killed_at_every_kind_of_moment(killed):
    "Before dataset.json, between the files of a block, before and after its record, among the lists at the end."
    folder, _, codes = killed
    assert codes['whole'] == [0] and codes['renames'] == [-9] * len(RENAMES) + [0]
    assert contents(folder / 'renames') == contents(folder / 'whole')


def test_killed_at_random_times(killed):
    folder, seed, codes = killed
    assert codes['times'][-1] == 0 and -9 in codes['times'], f'times drawn with seed {seed}'
    assert contents(folder / 'times') == contents(folder / 'whole'), f'times drawn with seed {seed}, exit codes {codes["times"]}'


def test_processes_agree(killed, whole): assert contents(killed[0] / 'whole') == contents(whole.root)


def test_another_number_of_threads_is_refused(whole, pipe):
    torch.set_num_threads(2)
    try:
        with pytest.raises(FileExistsError, match='threads is 1 there, 2 here'): make(pipe, whole.root)
    finally: torch.set_num_threads(1)


PICKY = Filters(AreaLimits(least=.01), Duplicates(limit=45))  # of 64 bits: nearly any two images count as alike, on every machine


def test_filters_leave_out_the_same_with_and_without_a_break(pipe, tmp_path, monkeypatch):
    whole = make(pipe, tmp_path / 'whole', keep=PICKY)
    report = json.loads((whole.root / 'filters.json').read_text())
    assert report['seen'] == 5 and report['kept'] == len(whole) and sum(report['rejected'].values()) == 5 - len(whole) > 0
    assert [f['filter'] for f in whole.about['filter']] == ['AreaLimits', 'Duplicates']
    real, blocks = synthesis.make_block, []

    def breaks(*arguments):
        blocks.append(arguments)
        if len(blocks) == 2: raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(synthesis, 'make_block', breaks)
    with pytest.raises(KeyboardInterrupt): make(pipe, tmp_path / 'broken', keep=PICKY)
    assert contents(make(pipe, tmp_path / 'broken', keep=PICKY).root) == contents(whole.root)
    assert not PICKY.report.seen  # what is given stays as it was


def test_lost_memory_of_filters_is_told(pipe, tmp_path):
    folder = make(pipe, tmp_path / 'data', keep=PICKY).root
    (folder / 'filters/000001.json').unlink()
    with pytest.raises(FileNotFoundError, match='000001.json is there, but what the filters learned in block 1 is not'): make(pipe, folder, keep=PICKY)
    for block in ('000001', '000002'): (folder / f'blocks/{block}.json').unlink()
    assert contents(make(pipe, folder, keep=PICKY).root) == contents(make(pipe, tmp_path / 'again', keep=PICKY).root)
    with pytest.raises(FileExistsError, match='filter'): make(pipe, folder, keep=Filters(AreaLimits(least=.06)))


@pytest.mark.parametrize('wrong, message', [(dict(recipe='magic'), 'magic'), (dict(recipe_parameters={'bta': .1}), "no parameter 'bta'"), (dict(also={'daam': {'threshold': 2.}}), 'between 0 and 1'),
                                            (dict(also={'synseg': {}}), 'one of also')])
def test_recipes_are_checked_before_the_first_block(wrong, message):
    with pytest.raises(ValueError, match=message): SynthesisSettings(**wrong)


def test_samples_have_their_heat_for_filters(pipe, whole):
    sample, *_ = synthesis.make_block(pipe, PROMPTS[:1], (0,), PETS, SETTINGS)
    ids, maps = sample.heat
    assert tuple(ids) == PROMPTS[0].class_ids and len(maps) == len(ids) and (maps >= 0).all()
