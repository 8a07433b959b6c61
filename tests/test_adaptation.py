"Adapters: diffusers' own format, a base that stays as it is, a training that can be killed; images of a domain without a label."
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from families import CALLS, FAMILIES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from synseg_kit.adaptation import DenoisingSettings, draw_noise, generator_of, loss_weight, run_steps
from synseg_kit.classes import ClassSet
from synseg_kit.drift import Examiner, Health, StopRule, attention_drift, features_of, find_copies, kernel_distance, nearest, word_maps
from synseg_kit.history import read_history
from synseg_kit.lora import (PRESETS, WEIGHTS, LoraSettings, adapt, adapted_parts, adapter_names, add_adapter, encode_texts, encode_views, load_adapter,
                             loss_of, merge_adapters, paint_prior, remove_adapter, save_adapter, set_strength, size_numbers, target_modules, thin_matrices,
                             training_scheduler, unet_loss, without_adapters)
from synseg_kit.prompts import Prompt, find_mentions
from synseg_kit.synthesis import fingerprint
from synseg_kit.targets import View, fit_box, read_image_captions, read_targets
from synseg_kit.training import Segmenter, SegmenterSettings, adamw, build_segmenter
from torch.nn import functional as F

PETS = ClassSet('pets', ('cat', 'dog', 'ball', 'grass'), None)
TRAINED = ('sd1', 'sd2', 'sdxl', 'sd3', 'sd35', 'flux')
TEMPLATES = ('a photo of {objects}', '{objects}')
FEW = dict(rank=3, steps=4, batch_size=2, warmup_steps=1, learning_rate=5e-2, checkpoint_every=2, ema_decay=.5, precision='fp32')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Images of mixed sizes, one broken, one tiny."
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for number, (height, width) in enumerate([(64, 64), (80, 64), (64, 120), (200, 100)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f'{number}.png')
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8\xff no image')
    Image.new('RGB', (8, 90)).save(folder / 'tiny.png')
    return folder


@pytest.fixture(scope='module')
def targets(folder):
    return read_targets(folder, PETS, (64, 64), scene=('cat', 'dog'), templates=TEMPLATES, copies=2)


def state(pipe):
    return {f'{name}.{key}': tensor.clone() for name, part in adapted_parts(pipe).items() for key, tensor in part.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def paint(family, pipe, **options):
    return pipe('a red cat', num_inference_steps=2, generator=torch.Generator().manual_seed(3), **CALLS[family], **options).images


# ---- images of a domain


def test_what_cannot_be_used_is_counted(targets):
    assert (len(targets), targets.images, targets.skipped) == (8, 4, {'broken': 1, 'too small': 1})
    assert {targets[i].size for i in range(8)} == {(64, 64)}
    assert [view.mirrored for view in targets.views] == [False, True] * 4 and len(targets.whole) == 4
    assert np.array_equal(np.asarray(targets[0])[:, ::-1], np.asarray(targets[1]))
    assert all(prompt.class_ids == (0, 1) for prompt in targets.prompts)


def test_a_view_is_the_box_of_its_image(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    view = View(tmp_path / 'a.png', (10, 5, 42, 37), False, Prompt(''), (40, 60))
    assert np.array_equal(np.asarray(view.picture((32, 32))), pixels[5:37, 10:42])


@pytest.mark.parametrize('image, size', [((100, 300), (64, 64)), ((300, 100), (64, 128)), ((33, 32), (32, 32)), ((50, 50), (64, 128))])
@pytest.mark.parametrize('share', [1., .5])
def test_boxes_have_the_proportions_and_stay_inside(image, size, share):
    for at in ((0., 0.), (.5, .5), (1., 1.)):
        left, top, right, bottom = fit_box(image, size, share, at)
        assert 0 <= left < right <= image[1] and 0 <= top < bottom <= image[0]
        assert abs((bottom - top) / size[0] - (right - left) / size[1]) <= 1 / min(size)


def test_pieces_are_smaller_and_differ(folder):
    views = read_targets(folder, PETS, (64, 64), templates=TEMPLATES, pieces=3, piece_size=(.3, .5)).views
    sizes = [(view.box[2] - view.box[0]) / min(view.image_size) for view in views]
    assert len(views) == 16 and sizes[0] == 1 and all(.28 < size < .52 for number, size in enumerate(sizes) if number % 4)
    assert len({view.box for view in views}) == 16


def test_pieces_are_named_by_what_can_be_in_them(folder):
    rows = {'cat': (0., .5), 'dog': (.5, 1.)}
    views = read_targets(folder, PETS, (64, 64), scene=('cat', 'dog', 'ball'), templates=TEMPLATES, pieces=12, piece_size=(.2, .3), rows=rows).views
    seen = set()
    for view in views:
        top, bottom = view.box[1] / view.image_size[0], view.box[3] / view.image_size[0]
        ids, edge = set(view.prompt.class_ids), .1 * (bottom - top)
        if view.box[2] - view.box[0] >= .9 * min(view.image_size): assert ids == {0, 1, 2}
        else:
            assert 2 in ids and (0 in ids) == (top <= .5 - edge) and (1 in ids) == (bottom >= .5 + edge)
            seen.add(tuple(sorted(ids)))
    assert seen == {(0, 2), (1, 2), (0, 1, 2)}


@pytest.mark.parametrize('scale', [.25, 1, 2])
def test_pieces_are_named_by_what_was_found_in_them(folder, scale):
    "A cat above, a dog below, at any resolution; image 0 was not looked at; rows do not count where something was found."
    labels = {}
    for number in range(1, 4):
        with Image.open(folder / f'{number}.png') as image: width, height = (round(side * scale) for side in image.size)
        labels[f'{number}.png'] = np.repeat([0] * (height // 2) + [1] * (height - height // 2), width).reshape(height, width)
    views = read_targets(folder, PETS, (64, 64), scene=('cat', 'dog', 'ball'), templates=TEMPLATES, pieces=12, piece_size=(.2, .3), labels=labels, rows={'cat': (.9, 1.)}, least=.25).views
    seen = set()
    for view in views:
        (height, width), (left, top, right, bottom) = view.image_size, view.box
        if view.file.name == '0.png' or (right - left) >= .9 * min(height, width): continue
        cat = min(max((height / 2 - top) / (bottom - top), 0), 1)                 # share of the piece
        if min(abs(cat - .25), abs(cat - .75)) < .2: continue                     # the pixels of labels decide
        wanted = {number for number, share in enumerate((cat, 1 - cat)) if share >= .25}
        assert set(view.prompt.class_ids) == wanted, (view, cat)
        seen.add(tuple(sorted(wanted)))
    assert {(0,), (1,)} <= seen
    whole = [view for view in views if view.box[2] - view.box[0] >= .9 * min(view.image_size)]
    assert len(whole) == 4 and all(set(view.prompt.class_ids) == {0, 1, 2} for view in whole)


def test_a_piece_in_which_nothing_was_found_has_the_names_of_its_image(folder):
    nothing = {f'{number}.png': np.full((10, 10), 255, np.uint8) for number in range(4)}
    for view in read_targets(folder, PETS, (64, 64), scene=('cat', 'dog'), templates=TEMPLATES, pieces=3, labels=nothing).views: assert set(view.prompt.class_ids) == {0, 1}
    with pytest.raises(ValueError, match='least=0'): read_targets(folder, PETS, (64, 64), labels=nothing, least=0.)
    said = {f'{number}.png': 'a cat beside a dog' for number in range(4)}
    for view in read_targets(folder, PETS, (64, 64), captions=said, pieces=3, labels=nothing).views: assert view.prompt.text == 'a cat beside a dog'


def test_captions_by_name_text_or_classes(folder, tmp_path):
    lines = [dict(file_name='0.png', text='the red dog'), dict(file_name='1.png', classes=['cat', 'ball'])]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n\n')
    found = read_targets(folder, PETS, (64, 64), captions=read_image_captions(tmp_path / 'metadata.jsonl'), templates=TEMPLATES)
    assert found.prompts[0].text == 'the red dog' and found.prompts[1].class_ids == (0, 2)
    assert found.skipped == {'without a caption': 4}
    (tmp_path / '0.txt').write_text('a cat\n')
    assert read_image_captions(tmp_path) == {'0': 'a cat'}


@pytest.mark.parametrize('line, error', [('{', 'line 1 is not JSON'), ('{"file_name": "a.png"}', 'needed are "file_name" and'), ('["a"]', 'needed are'), ('{"file_name": 3, "text": "a"}', 'needed')])
def test_lines_that_say_nothing_are_refused(tmp_path, line, error):
    (tmp_path / 'a.jsonl').write_text(line)
    with pytest.raises(ValueError, match=error): read_image_captions(tmp_path / 'a.jsonl')


def test_folders_that_cannot_serve_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'): read_targets(tmp_path / 'none', PETS, (64, 64))
    with pytest.raises(ValueError, match='0 usable images, and 2 are needed'): read_targets(tmp_path, PETS, (64, 64))
    Image.new('RGB', (64, 64)).save(tmp_path / 'one.png')
    with pytest.raises(ValueError, match='1 usable image, and 2 .* set at_least=1'): read_targets(tmp_path, PETS, (64, 64))
    assert read_targets(tmp_path, PETS, (64, 64), at_least=1).images == 1
    with pytest.raises(ValueError, match='5 without a caption'): read_targets(folder, PETS, (64, 64), captions={'3.png': 'a cat'})
    with pytest.raises(ValueError, match='cow'): read_targets(folder, PETS, (64, 64), scene=('cow',))
    with pytest.raises(ValueError, match='piece_size'): read_targets(folder, PETS, (64, 64), piece_size=(.5, .2))


# ---- what is adapted


@pytest.mark.parametrize('family', TRAINED)
def test_presets_nest_and_name_layers(family):
    denoiser = next(iter(adapted_parts(FAMILIES[family]()).values()))
    found = {preset: set(target_modules(denoiser, preset)) for preset in PRESETS}
    assert found['look'] < found['blocks'] and found['keys_values'] - found['look']
    assert found['keys'] < found['keys_values'] < found['all'] < found['blocks'] and found['cross'] < found['all']
    for name in found['blocks']: assert isinstance(denoiser.get_submodule(name), torch.nn.Linear | torch.nn.Conv2d)
    if family in ('sd1', 'sd2', 'sdxl'):
        assert all('attn2' in name for name in found['cross']) and any('attn1' in name for name in found['keys'])
        assert found['blocks'] - found['look'] == {name for name in found['cross'] if name.endswith(('to_q', 'to_k'))}
        assert len(found['keys']) == sum(name.endswith('to_k') for name, _ in denoiser.named_modules())
    else: assert all('add' in name for name in found['cross'])


def test_settings_are_checked():
    for wrong, error in ((dict(preset='kees'), 'did you mean'), (dict(optimiser='muon'), 'adamw8bit'), (dict(rank=0), 'rank is 0'), (dict(dropout=1.), 'dropout'), (dict(alpha=0.), 'alpha'),
                         (dict(noise_offset=-1.), 'noise_offset'), (dict(steps=0), 'steps'), (dict(weighting='odd'), 'weighting')):
        with pytest.raises(ValueError, match=error): LoraSettings(**wrong)


def test_the_eight_bit_optimiser_says_what_it_needs():
    try: import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match='bitsandbytes'): LoraSettings(optimiser='adamw8bit')


# ---- the adapter and its file


@pytest.mark.parametrize('family', TRAINED)
def test_an_adapter_goes_through_plain_diffusers(family, targets, tmp_path):
    pipe = FAMILIES[family]()
    base, plain, mark = state(pipe), paint(family, pipe), fingerprint(pipe)
    adapt(pipe, targets, tmp_path, LoraSettings(**FEW, text_encoder=family in ('sd1', 'sdxl')), progress=False)
    adapted = paint(family, pipe)
    assert not torch.equal(adapted, plain)
    with without_adapters(pipe): assert torch.equal(paint(family, pipe), plain)
    other = FAMILIES[family]()
    other.load_lora_weights(str(tmp_path))
    assert torch.equal(paint(family, other), adapted)
    remove_adapter(pipe)
    assert same(state(pipe), base) and torch.equal(paint(family, pipe), plain) and fingerprint(pipe) == mark


@pytest.mark.parametrize('changes', [dict(alpha=7.), dict(rslora=True, rank=5), dict(dora=True), dict(preset='blocks'), dict(preset='cross', dropout=.3), dict(preset='keys')])
def test_kinds_of_adapters_come_back(changes, targets, tmp_path):
    pipe = FAMILIES['sd1']()
    adapt(pipe, targets, tmp_path, LoraSettings(**FEW | changes), progress=False)
    adapted, other = paint('sd1', pipe), FAMILIES['sd1']()
    other.load_lora_weights(str(tmp_path))
    assert torch.equal(paint('sd1', other), adapted) and not torch.equal(adapted, paint('sd1', FAMILIES['sd1']()))


def test_one_of_diffusers_scripts_loads_here(tmp_path):
    pipe = FAMILIES['sd1']()
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=['to_k', 'to_q', 'to_v', 'to_out.0']))
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if 'lora' in name: weight.mul_(3)
    made = paint('sd1', pipe)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)), safe_serialization=True)
    other = FAMILIES['sd1']()
    load_adapter(other, tmp_path, 'theirs')
    assert torch.equal(paint('sd1', other), made) and adapter_names(other) == ['theirs']


def test_strength_goes_from_the_base_to_the_adapter_and_mixes(targets, tmp_path):
    pipe = FAMILIES['sd1']()
    plain = paint('sd1', pipe)
    for number in (1, 2):
        adapt(pipe, targets, tmp_path / str(number), LoraSettings(**FEW, seed=number), name=f'n{number}', progress=False)
    set_strength(pipe, {'n1': 0.})
    assert torch.equal(paint('sd1', pipe), plain)
    set_strength(pipe, {'n1': 1.})
    full = paint('sd1', pipe)
    assert torch.equal(paint('sd1', pipe, cross_attention_kwargs={'scale': 1.}), full)
    set_strength(pipe, {'n1': .5})
    assert 0 < (paint('sd1', pipe) - plain).norm() < (full - plain).norm()
    set_strength(pipe, {'n1': .5, 'n2': .25})
    mixed = paint('sd1', pipe)
    merge_adapters({tmp_path / '1': .5, tmp_path / '2': .25}, tmp_path / 'both')
    other = FAMILIES['sd1']()
    load_adapter(other, tmp_path / 'both')
    assert torch.allclose(paint('sd1', other), mixed, atol=1e-4)
    with pytest.raises(ValueError, match='n3'): set_strength(pipe, {'n3': 1.})


def test_merging_knows_alpha_and_rslora(targets, tmp_path):
    deltas = []
    for number, changes in enumerate((dict(alpha=6.), dict(rslora=True, rank=4, alpha=2.))):
        pipe = FAMILIES['sd1']()
        adapt(pipe, targets, tmp_path / str(number), LoraSettings(**FEW | changes), progress=False)
        layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
        deltas.append(layer.get_delta_weight('adapted'))
    merged = thin_matrices(merge_adapters({tmp_path / '0': 1., tmp_path / '1': -.5}, tmp_path / 'both') / WEIGHTS)
    down, up = merged['unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k']
    assert torch.allclose(up @ down, deltas[0] - .5 * deltas[1], atol=1e-6) and deltas[0].abs().max() > 1e-3


def test_files_that_are_no_adapters_are_refused(targets, tmp_path):
    pipe = FAMILIES['sd1']()
    with pytest.raises(FileNotFoundError, match='no adapter'): load_adapter(pipe, tmp_path)
    (tmp_path / 'a.bin').write_bytes(b'1')
    with pytest.raises(ValueError, match='convert it'): load_adapter(pipe, tmp_path / 'a.bin')
    save_file({'weight': torch.zeros(2)}, tmp_path / 'b.safetensors')
    with pytest.raises(ValueError, match='none of its 1 tensors is of LoRA'): load_adapter(pipe, tmp_path / 'b.safetensors')
    (tmp_path / 'c.safetensors').write_bytes((tmp_path / 'b.safetensors').read_bytes()[:-3])
    with pytest.raises(ValueError, match='cut off'): load_adapter(pipe, tmp_path / 'c.safetensors')
    for refuse in (lambda: save_adapter(pipe, tmp_path, 'x'), lambda: remove_adapter(pipe, 'x')):
        with pytest.raises(ValueError, match="no adapter 'x'; it has none"): refuse()
    with pytest.raises(ValueError, match='nothing to merge'): merge_adapters({}, tmp_path)
    adapt(pipe, targets, tmp_path / 'dora', LoraSettings(**FEW, dora=True), progress=False)
    with pytest.raises(ValueError, match='DoRA does not'): merge_adapters({tmp_path / 'dora': 1.}, tmp_path)
    with pytest.raises(ValueError, match='already; choose another name'): load_adapter(pipe, tmp_path / 'dora')
    with pytest.raises(ValueError, match='already; choose another name'): add_adapter(pipe, LoraSettings())


def test_an_adapter_of_another_size_is_refused(targets, tmp_path):
    adapt(FAMILIES['sd1'](), targets, tmp_path, LoraSettings(**FEW), progress=False)
    tensors = {name: tensor.repeat(1, 2) if name.endswith('lora_A.weight') else tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='does not fit'): load_adapter(FAMILIES['sd1'](), tmp_path / 'other.safetensors')


# ---- training


def test_the_loss_of_a_unet_is_the_plain_one(targets):
    pipe = FAMILIES['sd1']()
    settings, latents = LoraSettings(gamma=1e9, noise_offset=.1), torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, scheduler = encode_texts(pipe, ['a cat', 'a dog', '']), training_scheduler(pipe)
    found = unet_loss(pipe, scheduler, latents, text, torch.zeros(3, 6, dtype=torch.long), torch.Generator().manual_seed(5), settings)
    generator = torch.Generator().manual_seed(5)
    timesteps = (torch.rand(3, generator=generator) * 1000).long()
    noise = draw_noise(latents, generator, .1)
    signal = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    predicted = pipe.unet(signal.sqrt() * latents + (1 - signal).sqrt() * noise, timesteps, encoder_hidden_states=text.states).sample
    assert torch.allclose(found, (predicted - noise).square().mean(), rtol=1e-4)


@pytest.mark.parametrize('family', ['sd3', 'flux'])
def test_the_loss_of_a_flow_is_the_plain_one(family):
    pipe, generator = FAMILIES[family](), torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = encode_texts(pipe, ['a cat', ''])
    heard = {}
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: heard.update(kwargs | {'hidden_states': kwargs.get('hidden_states', args[0] if args else None)}), with_kwargs=True)
    pipe.transformer.register_forward_hook(lambda module, args, output: heard.update(output=output.sample))
    found = loss_of(pipe)(pipe, training_scheduler(pipe), latents, text, torch.zeros(2, 6, dtype=torch.long), generator, LoraSettings())
    noise = draw_noise(latents, generator := torch.Generator().manual_seed(5))
    level = torch.randn(2, generator=generator).sigmoid()
    if family == 'sd3': level = 3 * level / (1 + 2 * level)
    noisy, flow = latents + level[:, None, None, None] * (noise - latents), noise - latents
    pack = (lambda x: pipe._pack_latents(x, *x.shape)) if family == 'flux' else (lambda x: x)
    assert torch.allclose(heard['hidden_states'], pack(noisy), atol=1e-6)
    assert torch.allclose(heard['timestep'], level * (1000 if family == 'sd3' else 1), rtol=1e-5)
    assert torch.allclose(found, (heard['output'] - pack(flow)).square().mean(), rtol=1e-5)


@pytest.mark.parametrize('family', TRAINED)
def test_training_lowers_the_loss_and_reaches_every_weight(family, targets, tmp_path):
    pipe, losses = FAMILIES[family](), []
    settings = LoraSettings(**FEW | dict(steps=12, learning_rate=5e-3), preset='blocks' if family == 'sd1' else 'all')
    cache = encode_views(pipe, targets, progress=False)

    def measure():
        with torch.no_grad():
            text = encode_texts(pipe, [cache.texts[row] for row in cache.rows])
            return float(loss_of(pipe)(pipe, training_scheduler(pipe), cache.latents.float(), text, cache.sizes, torch.Generator().manual_seed(1), settings))

    losses = [measure(), adapt(pipe, targets, tmp_path, settings, progress=False) and measure()]
    assert losses[1] < losses[0]
    ups = [tensor for name, tensor in load_file(tmp_path / WEIGHTS).items() if 'lora_B' in name]
    moved = sum(bool(tensor.any()) for tensor in ups)
    assert moved >= len(ups) - 2 * (family in ('sd3', 'sd35'))  # the text's last outputs lead nowhere


class Stop(Exception): pass


@pytest.mark.parametrize('changes', [{}, dict(dropout=.4, text_encoder=True), dict(prior=True, gradient_checkpointing=True)])
def test_stopped_and_started_again_it_is_the_same_adapter(changes, targets, tmp_path):
    changes = dict(changes)
    more = dict(prior=targets) if changes.pop('prior', False) else {}
    settings = LoraSettings(**FEW, **changes)
    adapt(FAMILIES['sd1'](), targets, tmp_path / 'whole', settings, progress=False, **more)
    pipe = FAMILIES['sd1']()

    def stop(step, seen): raise Stop
    with pytest.raises(Stop): adapt(pipe, targets, tmp_path / 'killed', settings, watch=stop, progress=False, **more)
    assert adapter_names(pipe) == [] and not (tmp_path / 'killed' / WEIGHTS).exists()
    seen = []
    adapt(pipe, targets, tmp_path / 'killed', settings, watch=lambda step, pipe: seen.append(step), progress=False, **more)
    assert seen == [2, 4]
    assert same(*(load_file(tmp_path / name / WEIGHTS) for name in ('whole', 'killed')))


def test_another_training_is_not_continued(targets, folder, tmp_path):
    adapt(FAMILIES['sd1'](), targets, tmp_path, LoraSettings(**FEW), progress=False)
    with pytest.raises(FileExistsError, match='rank'): adapt(FAMILIES['sd1'](), targets, tmp_path, LoraSettings(**FEW | dict(rank=5)), progress=False)
    with pytest.raises(FileExistsError, match='base'): adapt(FAMILIES['sd1'](seed=1), targets, tmp_path, LoraSettings(**FEW), progress=False)
    fewer = read_targets(folder, PETS, (64, 64), scene=('cat', 'dog'), templates=TEMPLATES)
    with pytest.raises(FileExistsError, match='another training'): adapt(FAMILIES['sd1'](), fewer, tmp_path, LoraSettings(**FEW), progress=False)


def test_watching_sees_the_average_and_may_end_it(targets, tmp_path):
    pipe, seen = FAMILIES['sd1'](), []

    def watch(step, pipe):
        assert not pipe.unet.training
        seen.append((step, paint('sd1', pipe)))
        return step == 2

    adapt(pipe, targets, tmp_path, LoraSettings(**FEW), watch=watch, progress=False)
    assert [step for step, _ in seen] == [2] and torch.equal(paint('sd1', pipe), seen[0][1])
    other = FAMILIES['sd1']()
    load_adapter(other, tmp_path / 'step-000002')
    assert torch.equal(paint('sd1', other), seen[0][1])


def test_gradient_checkpointing_changes_no_weight(targets, tmp_path):
    for name in (False, True): adapt(FAMILIES['sd1'](), targets, tmp_path / str(name), LoraSettings(**FEW, gradient_checkpointing=name), progress=False)
    a, b = (load_file(tmp_path / str(name) / WEIGHTS) for name in (False, True))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def test_prior_images_count(targets, tmp_path):
    for name, weight in (('none', None), ('off', 0.), ('on', 2.)):
        options = {} if weight is None else dict(prior=targets)
        adapt(FAMILIES['sd1'](), targets, tmp_path / name, LoraSettings(**FEW, prior_weight=weight or 0.), progress=False, **options)
    none, off, on = (load_file(tmp_path / name / WEIGHTS) for name in ('none', 'off', 'on'))
    assert same(none, off) and not same(none, on)


def test_a_prior_is_painted_by_the_base_and_once(targets, tmp_path):
    pipe = FAMILIES['sd1']()
    adapt(pipe, targets, tmp_path / 'a', LoraSettings(**FEW), progress=False)
    options = dict(num_inference_steps=1, height=64, width=64)
    paint_prior(pipe, ['a cat', 'a dog'], tmp_path / 'prior', **options)
    before = {file.name: file.read_bytes() for file in (tmp_path / 'prior').iterdir()}
    paint_prior(FAMILIES['sd1'](), ['a cat', 'a dog'], tmp_path / 'again', **options)
    assert {file.name: file.read_bytes() for file in (tmp_path / 'again').iterdir()} == before and len(before) == 4
    found = read_targets(tmp_path / 'prior', PETS, (64, 64), captions=read_image_captions(tmp_path / 'prior'))
    assert [prompt.text for prompt in found.prompts] == ['a cat', 'a dog']


def test_mixed_precision_trains_a_base_in_bfloat16(targets, tmp_path):
    pipe = FAMILIES['sd1'](dtype=torch.bfloat16)
    adapt(pipe, targets, tmp_path, LoraSettings(**FEW | dict(precision='bf16')), progress=False)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in load_file(tmp_path / WEIGHTS).values())
    assert not torch.equal(paint('sd1', pipe), paint('sd1', FAMILIES['sd1'](dtype=torch.bfloat16)))
    with pytest.raises(ValueError, match='bfloat16 with precision'): adapt(FAMILIES['sd1'](dtype=torch.float16), targets, tmp_path / 'b', LoraSettings(**FEW), progress=False)


@pytest.mark.parametrize('family', ['pixart', 'sana', 'qwen'])
def test_families_without_a_loss_are_refused(family, targets, tmp_path):
    with pytest.raises(TypeError, match='adapters are trained for UNet2DConditionModel'): adapt(FAMILIES[family](), targets, tmp_path, progress=False)


def test_captions_that_are_cut_off_are_refused(folder, tmp_path):
    long = read_targets(folder, PETS, (64, 64), captions={'0.png': 'a photo of a ' + 'red ' * 12 + 'cat', '1.png': 'a cat'})
    with pytest.raises(ValueError, match="caption of 0.png: .*'cat'"): adapt(FAMILIES['sd1'](), long, tmp_path, LoraSettings(**FEW), progress=False)


def test_sdxl_is_told_what_was_cut():
    view = View(Path('a.png'), (100, 50, 300, 250), False, Prompt(''), (300, 500))  # 200 pixels become 64
    assert size_numbers(view, (64, 64)) == (96, 160, 16, 32, 64, 64)


# ---- does it still point


PROMPTS = tuple(find_mentions(text, PETS) for text in ('a photo of a cat and a dog', 'a ball', 'the dog on grass', 'a red ball and a cat'))


def brightness(images):
    "Features so plain that they can be checked by hand: mean and spread of each channel."
    arrays = [np.asarray(image, float) / 255 for image in images]
    return torch.tensor(np.array([[*array.mean((0, 1)), *array.std((0, 1))] for array in arrays]), dtype=torch.float32)


def examiner(pipe, targets, folder, **options):
    return Examiner(pipe, PROMPTS, targets, PETS, brightness, folder, num_inference_steps=2, height=64, width=64, **options)


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (4, 6))
    kernel = lambda x, y: (float(x.double() @ y.double()) / 5 + 1) ** 3
    pairs = lambda x: np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    expected = pairs(a) + pairs(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match='2 images in each; got 1 and 6'): kernel_distance(a[:1], b)


def test_kernel_distance_is_unbiased():
    found = [kernel_distance(*torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed))) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20 and min(found) < 0 < max(found)


def test_copies_are_nearer_than_is_usual():
    trained = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    others = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(1)))
    made = torch.cat([trained[:5] + .02 * others[:5], others])
    found = find_copies(made, trained)
    assert found[:5].all() and found[5:].float().mean() < .1
    assert not find_copies(made, trained, ratio=0.).any()
    assert torch.allclose(nearest(made[:1], trained), 1 - F.cosine_similarity(made[:1], trained).max(), atol=1e-6)
    with pytest.raises(ValueError, match='needed are 2'): find_copies(made, trained[:1])


def test_drift_is_nothing_for_the_base_and_grows_with_strength(targets, tmp_path):
    pipe = FAMILIES['sd1']()
    images, prompts = [targets[i] for i in range(4)], targets.prompts[:4]
    base = word_maps(pipe, images, prompts)
    adapt(pipe, targets, tmp_path, LoraSettings(**FEW | dict(steps=8, learning_rate=.1), preset='keys'), progress=False)
    drifts = []
    for strength in (0., .3, 1.):
        set_strength(pipe, {'adapted': strength})
        drifts.append(attention_drift(base, word_maps(pipe, images, prompts)))
    assert drifts[0] == pytest.approx(0, abs=1e-5) and 1e-4 < drifts[1] < drifts[2] <= 2


def test_an_examiner_writes_rows_and_sheets_and_remembers(targets, tmp_path):
    pipe = FAMILIES['sd1']()
    kind = dict(rule=StopRule(most_drift=2., most_copies=1.))
    first = examiner(pipe, targets, tmp_path, **kind)
    assert first.examine(0, pipe).drift == pytest.approx(0, abs=1e-5)
    adapt(pipe, targets, tmp_path, LoraSettings(**FEW), watch=first, progress=False)
    assert [row.step for row in first.history] == [2, 4] and all(row.fidelity is None and row.drift > 0 for row in first.history)
    assert sorted(file.name for file in (tmp_path / 'sheets').iterdir()) == ['000000.png', '000002.png', '000004.png']
    assert Image.open(tmp_path / 'sheets/000004.png').width > 200
    remove_adapter(pipe)
    again = examiner(pipe, targets, tmp_path, **kind)
    assert again.history == first.history and again.best in (tmp_path / 'step-000002', tmp_path / 'step-000004') and (again.best / WEIGHTS).is_file()
    again(4, None)  # was examined before, so the pipeline is not looked at
    assert again.show().axes


def test_training_ends_by_the_rule_and_stays_ended(targets, tmp_path):
    settings = LoraSettings(**FEW | dict(steps=8))
    strict = StopRule(most_drift=-1.)
    pipe = FAMILIES['sd1']()
    first = examiner(pipe, targets, tmp_path, rule=strict)
    adapt(pipe, targets, tmp_path, settings, watch=first, progress=False)
    assert [row.step for row in first.history] == [2, 4] and 'drift' in first.reason and first.best is None
    ended = load_file(tmp_path / WEIGHTS)
    pipe = FAMILIES['sd1']()
    adapt(pipe, targets, tmp_path, settings, watch=examiner(pipe, targets, tmp_path, rule=strict), progress=False)
    assert same(load_file(tmp_path / WEIGHTS), ended) and not (tmp_path / 'step-000006').exists()


def test_a_rule_waits_chooses_and_gives_reasons():
    rows = [Health(step, .1, distance, .2, copies, .9) for step, distance, copies in ((1, 5., 0.), (2, 3., 0.), (3, 2., .5), (4, 3.5, 0.), (5, 3.1, 0.))]
    rule = StopRule(patience=2)
    assert rule.best(rows).step == 2 and rule.faults(rows[2]) == ['copies 0.500 is above 0.1']
    assert [rule.reason(rows[:n]) for n in range(5)] == [None] * 5 and 'not fallen for 2' in rule.reason(rows)
    assert StopRule(patience=0).reason(rows) is None and StopRule(least_fidelity=.95).reason(rows[:2]) == 'fidelity 0.900 is below 0.95'
    assert StopRule().best([]) is None and StopRule().reason([]) is None


def test_fidelity_comes_from_a_scoring_network(targets, tmp_path):
    class Judge:
        def predict(self, images): return [np.full((64, 64), 2, np.uint8) for _ in images]

    pipe = FAMILIES['sd1']()
    judged = examiner(pipe, targets, tmp_path)
    judged.scoring = Judge()
    assert judged.examine(0, pipe).fidelity == .25  # of the four prompts one asks for a ball and nothing else


@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224'])
def test_features_of_networks_of_timm(name, targets):
    model = timm.create_model(name, pretrained=False).eval()
    features = features_of(model, side=224, batch_size=3)
    found = features([targets[i] for i in range(4)])
    assert found.shape == (4, model.num_features) and found.dtype == torch.float32
    assert torch.allclose(found[3:], features([targets[3]]), atol=1e-4)
    with pytest.raises(TypeError, match='forward_features'): features_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(('short_side', 'seen'), [(None, 128), (64, 64)])
def test_features_are_of_images_as_large_as_a_segmenter_wants_them(short_side, seen, targets):
    settings = SegmenterSettings(encoder='tu-mobilenetv3_small_050', precision='fp32', short_side=short_side)
    segmenter, images = Segmenter(build_segmenter(settings, 3), ClassSet('shapes', ('square', 'disc')), settings), [targets[0], targets[1]]
    assert torch.equal(features_of(segmenter)(images), features_of(segmenter, seen)(images))
    assert not torch.allclose(features_of(segmenter)(images), features_of(segmenter, 96)(images))


# ---- the loop


def test_the_loop_names_a_loss_that_is_no_number(tmp_path):
    network = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match='step 2; lower learning_rate'):
        run_steps(network, adamw(network, DenoisingSettings()), lambda step: torch.tensor(float('nan')), DenoisingSettings(steps=4, checkpoint_every=2), tmp_path, {}, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_loop_keeps_its_looks_and_goes_on_with_them(tmp_path):
    def run(folder, **more):
        torch.manual_seed(0)
        network, settings = torch.nn.Linear(2, 1), DenoisingSettings(steps=50, checkpoint_every=15, batch_size=2)
        run_steps(network, adamw(network, settings), lambda step: torch.tensor(float(step)), settings, folder, {}, progress=False, **more)
    seen = []
    run(tmp_path / 'whole', log=seen.append)
    assert read_history(tmp_path / 'whole') == seen and [look['step'] for look in seen] == [15, 20, 30, 40, 45, 50]
    assert [look['loss'] for look in seen] == [7., 17., 24.5, 34.5, 42., 47.]  # means of the steps since the look before
    assert [look['learning_rate'] for look in seen] == [DenoisingSettings(steps=50).rate(look['step'] - 1) for look in seen]
    run(tmp_path / 'broken', watch=lambda step, average: step == 30)
    assert [look['step'] for look in read_history(tmp_path / 'broken')] == [15, 20, 30]
    run(tmp_path / 'broken')
    assert [(look['step'], look['loss']) for look in read_history(tmp_path / 'broken')] == [(look['step'], look['loss']) for look in seen]


def test_an_adapter_keeps_its_looks(targets, tmp_path):
    seen = []
    adapt(FAMILIES['sd1'](), targets, tmp_path, LoraSettings(**FEW), log=seen.append, progress=False)
    assert read_history(tmp_path) == seen and [look['step'] for look in seen] == [2, 4] and all(look['loss'] > 0 for look in seen)


def test_random_numbers_of_steps_differ():
    assert len({float(torch.rand((), generator=generator_of(step, seed))) for step in range(20) for seed in range(3)}) == 60


def test_a_model_of_noise_is_refused_on_a_schedule_that_ends_in_pure_noise():
    "Its weight would be no number at the last step."
    steps, straight = torch.tensor([10, 999]), dict(beta_schedule='scaled_linear')
    for kind in ('epsilon', 'v_prediction', 'sample'):
        assert loss_weight(DDPMScheduler(prediction_type=kind, **straight), steps).isfinite().all()
    for kind in ('v_prediction', 'sample'):
        assert loss_weight(DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True, **straight), steps).isfinite().all()
    with pytest.raises(ValueError, match='ends in pure noise'):
        loss_weight(DDPMScheduler(prediction_type='epsilon', rescale_betas_zero_snr=True, **straight), steps)
