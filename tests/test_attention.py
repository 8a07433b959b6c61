"""Capture: the image keeps its bits, the maps are the softmax's own columns, and nothing stays behind."""
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPAGPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from synseg_kit import softmax
from synseg_kit.attention import capture, look, noised_latents, select_steps
from synseg_kit.families import find_sites, grid_of, load_pipeline
from synseg_kit.prompts import Mention, Prompt, PromptTooLong
from synseg_kit.softmax import attend, attention_columns
from tiny import generators, tiny_pipeline, tiny_prompt, tiny_xl_pipeline
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PROMPTS = tuple(map(tiny_prompt, ('a cat and a mushroom on grass', 'the red ball', 'a dog and a dog')))
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}


@pytest.fixture(scope='module')
def pipe(): return tiny_pipeline()


def paint(pipe, prompts=PROMPTS, steps=2, images=1, seed=0, **options):
    "Run a pipeline to its latents."
    options = dict(height=64, width=64, guidance_scale=5.0) | options
    return pipe([prompt.text for prompt in prompts], generator=generators(images * len(prompts), seed), num_inference_steps=steps, num_images_per_prompt=images,
                output_type='latent', **options).images


@contextmanager
def oracle(pipe, parts=2, part=1):
    "Gather float64 attention of every cross-attention layer from the hidden states it gets: [(name, [image, place, token])]."
    seen, handles = [], []
    for name, module in pipe.unet.named_modules():
        if name.endswith('attn2'):
            def gather(module, args, kwargs, name=name):
                q, k = module.to_q(args[0] if args else kwargs['hidden_states']), module.to_k(kwargs['encoder_hidden_states'])
                q, k = (x.double().unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in (q, k))
                seen.append((name, (q @ k.mT / q.shape[-1] ** .5).softmax(-1).mean(1).chunk(parts)[part]))
            handles.append(module.register_forward_pre_hook(gather, with_kwargs=True))
    try: yield seen
    finally:
        for handle in handles: handle.remove()


def expected_maps(seen, row, positions, grid):
    "The mean map of some tokens at one grid."
    layers = [shares[row] for _, shares in seen if shares.shape[1] == grid[0] * grid[1]]
    return torch.stack(layers).mean(0)[:, positions].mT.unflatten(1, grid)


def nothing_left(pipe):
    "Whether a pipeline and this thread hold nothing of a capture."
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
    return not hooks and 'check_inputs' not in vars(pipe) and F.scaled_dot_product_attention is softmax._BUILTIN and not softmax.visits()


# ---- kernels


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(1, 1, 4, 2, 3), (2, 8, 256, 77, 40), (3, 5, 1, 16, 7)])
def test_kernel_contract(dtype, shape):
    "The inner kernel of this release of PyTorch makes the public function's bits and the exact log-sum-exp."
    b, h, n, t, d = shape
    torch.manual_seed(0)
    q, k, v = torch.randn(b, h, n, d).to(dtype), torch.randn(b, h, t, d).to(dtype), torch.randn(b, h, t, d).to(dtype)
    output, lse = attend(q, k, v)
    assert torch.equal(output, F.scaled_dot_product_attention(q, k, v))
    scores = q.double() @ k.double().mT / d ** .5
    assert lse is not None and torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-4)
    columns = attention_columns(q, k, lse, torch.arange(t).expand(b, t))
    assert torch.allclose(columns.double(), scores.softmax(-1), atol=TOLERANCE.get(dtype, 1e-12))
    assert torch.allclose(columns.sum(-1), torch.ones(()).to(columns), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize('backend', [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize('width', [40, 64, 36])
def test_kernel_contract_cuda(backend, width):
    "The same on CUDA, for each kernel that takes these shapes."
    q, k, v = (torch.randn(2, 8, n, width, device='cuda', dtype=torch.float16) for n in (250, 77, 77))
    with sdpa_kernel(backend):
        try: expected = F.scaled_dot_product_attention(q, k, v)
        except RuntimeError: pytest.skip('this kernel does not take these shapes here')
        output, lse = attend(q, k, v)
    assert torch.equal(output, expected)
    columns = attention_columns(q, k, lse, torch.arange(77, device='cuda').expand(2, 77))
    assert torch.allclose(columns.double(), (q.double() @ k.double().mT / width ** .5).softmax(-1), atol=1e-4)


def test_masks_and_the_math_path_are_exact():
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    index = torch.tensor([[0, 3], [2, 2]])
    with sdpa_kernel(SDPBackend.MATH): assert attend(q, k, v)[1] is None
    seen = torch.rand(2, 1, 1, 5) > .3
    seen[..., :3] = True
    added = torch.randn(4, 9, 5)
    for mask in (seen, added):
        output, lse = attend(q, k, v, attn_mask=mask)
        assert torch.equal(output, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) and lse is None
        scores = q.double() @ k.double().mT / 8 ** .5
        shares = (scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask).softmax(-1)
        columns = attention_columns(q, k, None, index, mask=mask)
        assert torch.allclose(columns.double(), torch.stack([s[..., i] for s, i in zip(shares, index)]), atol=1e-6)


# ---- the image keeps its bits


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('build', [tiny_pipeline, tiny_xl_pipeline])
def test_images_are_bit_identical(build, dtype):
    pipe = build(dtype)
    plain = paint(pipe)
    with capture(pipe, PROMPTS, keep=('layer', 'step'), tokens='all', special=True, self_attention=(16, 8)): captured = paint(pipe)
    assert plain.dtype == dtype and plain.isfinite().all() and torch.equal(plain, captured)
    assert torch.equal(plain, paint(pipe)) and nothing_left(pipe)


def test_images_are_bit_identical_under_autocast(pipe):
    with torch.autocast('cpu', torch.bfloat16):
        plain = paint(pipe)
        with capture(pipe, PROMPTS) as trace, oracle(pipe) as seen: captured = paint(pipe)
    assert torch.equal(plain, captured) and not torch.equal(plain, paint(pipe))
    assert torch.allclose(trace.token_maps(1)[1].double(), expected_maps(seen, 1, [3], (16, 16)), atol=2e-3)


def test_a_replaced_attention_function_stays_in_charge(pipe, monkeypatch):
    calls = []

    def own(*args, **kwargs):
        calls.append(1)
        return softmax._BUILTIN(*args, **kwargs)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', own)
    with capture(pipe, PROMPTS) as trace, oracle(pipe) as seen: paint(pipe)
    assert len(calls) >= sum(trace.sites.values()) and F.scaled_dot_product_attention is own
    assert torch.allclose(trace.token_maps(1)[1].double(), expected_maps(seen, 1, [3], (16, 16)), atol=1e-6)


# ---- the maps are the softmax's own


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('guidance, parts', [(5.0, 2), (1.0, 1)])
def test_maps_equal_a_float64_softmax(dtype, guidance, parts):
    pipe = tiny_pipeline(dtype)
    with capture(pipe, PROMPTS) as trace, oracle(pipe, parts, parts - 1) as seen: paint(pipe, guidance_scale=guidance)
    assert trace.resolutions == ((16, 16), (8, 8)) and trace.steps == [0, 1] and trace.num_images == 3
    for row, positions in enumerate(([2, 5, 6, 8], [3], [2, 5])):
        for grid in trace.resolutions:
            maps = trace.token_maps(row, grid)[1]
            assert maps.dtype == torch.float32
            assert torch.allclose(maps.double(), expected_maps(seen, row, positions, grid), atol=TOLERANCE[dtype])


def test_maps_equal_the_scores_of_diffusers(pipe):
    "diffusers' own get_attention_scores, fed the very hidden states of the run."
    total, handles = [], []
    for name, module in pipe.unet.named_modules():
        if name.endswith('attn2'):
            def gather(module, args, kwargs):
                q, k = module.head_to_batch_dim(module.to_q(args[0])), module.head_to_batch_dim(module.to_k(kwargs['encoder_hidden_states']))
                shares = module.get_attention_scores(q, k).unflatten(0, (-1, module.heads)).mean(1).chunk(2)[1]
                if shares.shape[1] == 64: total.append(shares)
            handles.append(module.register_forward_pre_hook(gather, with_kwargs=True))
    with capture(pipe, PROMPTS) as trace: paint(pipe)
    for handle in handles: handle.remove()
    expected = torch.stack(total).mean(0)[0][:, [5, 6]].mean(1).unflatten(0, (8, 8))  # the two pieces of "mushroom"
    assert torch.allclose(trace.mention_maps(0, resolution=8)[1], expected, atol=1e-6)


def test_all_columns_sum_to_one(pipe):
    with capture(pipe, PROMPTS, tokens='all', special=True, self_attention=(8,)) as trace: paint(pipe)
    for row in range(3):
        names, maps = trace.token_maps(row)
        weights = torch.tensor([float(len(positions)) for positions in trace.tracks[row].positions])
        assert torch.allclose((maps * weights[:, None, None]).sum(0), torch.ones(16, 16), atol=1e-5)
        assert list(trace.special_maps(row)) == ['start', 'end', 'padding'] and names[-3:] == ('<start>', '<end>', '<padding>')
        assert torch.allclose(trace.self_attention(row).sum(1), torch.ones(64), atol=1e-5)


def test_self_attention_equals_a_float64_softmax(pipe):
    seen, handles = [], []
    for name, module in pipe.unet.named_modules():
        if name.endswith('attn1'):
            def gather(module, args, kwargs):
                q, k = ((layer(args[0])).double().unflatten(-1, (module.heads, -1)).transpose(1, 2) for layer in (module.to_q, module.to_k))
                if q.shape[2] == 64: seen.append((q @ k.mT / q.shape[-1] ** .5).softmax(-1).mean(1).chunk(2)[1])
            handles.append(module.register_forward_pre_hook(gather, with_kwargs=True))
    with capture(pipe, PROMPTS, self_attention=((8, 8),)) as trace: paint(pipe)
    for handle in handles: handle.remove()
    assert torch.allclose(trace.self_attention(2).double(), torch.stack(seen).mean(0)[2], atol=1e-6)
    with pytest.raises(ValueError, match='no map of resolution 16'): trace.self_attention(0, 16)


def test_self_attention_of_one_step_among_several(pipe):
    single = []
    for index in range(5):
        with capture(pipe, PROMPTS, steps=[index], self_attention=(8,)) as trace: paint(pipe, steps=5)
        single.append(trace.self_attention(1))
    for every, options, heard in ((1, {}, range(5)), (2, {}, (1, 3)), (4, {}, (2,)), (50, {}, (4,)), (2, {'steps': [0, 3, 4]}, (3,)), (3, {'steps': [4]}, (4,))):
        with capture(pipe, PROMPTS, self_attention=(8,), self_every=every, **options) as trace: paint(pipe, steps=5)
        assert torch.allclose(trace.self_attention(1), torch.stack([single[i] for i in heard]).mean(0), atol=1e-6), every
        assert len(trace.steps) == len(options.get('steps', range(5)))  # words are heard at all of them
    with pytest.raises(ValueError, match='self_every is a whole number of steps from 1, got 0'), capture(pipe, PROMPTS, self_attention=(8,), self_every=0): pass


def test_stable_diffusion_xl(pipe):
    xl = tiny_xl_pipeline()
    with capture(xl, PROMPTS) as trace, oracle(xl) as seen: paint(xl)
    assert trace.resolutions == ((8, 8),) and len(trace.layers) == 8
    assert torch.allclose(trace.token_maps(0)[1].double(), expected_maps(seen, 0, [2, 5, 6, 8], (8, 8)), atol=1e-6)


def test_text_mask_is_respected(pipe):
    "Tokens that a mask hides take no share: the same as a text without them."
    text, latent = torch.randn(1, 16, 32), torch.randn(1, 4, 16, 16)
    seen = torch.arange(16)[None] < 9
    with capture(pipe, PROMPTS[:1]) as masked: pipe.unet(latent, 500, text, encoder_attention_mask=seen)
    with capture(pipe, PROMPTS[:1]) as short: pipe.unet(latent, 500, text[:, :9])
    assert torch.allclose(masked.class_maps(0)[1], short.class_maps(0)[1], atol=1e-5)


# ---- batches, parts, sizes, steps


def test_a_batch_equals_its_images_alone(pipe):
    with capture(pipe, PROMPTS) as batch: paint(pipe)
    for row, prompt in enumerate(PROMPTS):
        with capture(pipe, [prompt]) as alone: paint(pipe, [prompt], seed=row)
        ids, maps = alone.class_maps(0)
        assert batch.class_maps(row)[0] == ids and torch.allclose(batch.class_maps(row)[1], maps, atol=1e-4)


@pytest.mark.parametrize('told', [None, 2])
@pytest.mark.parametrize('guidance', [5.0, 1.0])
def test_several_images_per_prompt_stand_in_the_pipelines_order(pipe, guidance, told):
    with capture(pipe, PROMPTS, images_per_prompt=told) as trace: paint(pipe, images=2, guidance_scale=guidance)
    assert trace.num_images == 6
    for image in range(6):
        prompt = PROMPTS[image // 2]
        assert trace.prompt_of(image) is prompt
        with capture(pipe, [prompt]) as alone: paint(pipe, [prompt], seed=image, guidance_scale=guidance)
        assert torch.allclose(trace.class_maps(image)[1], alone.class_maps(0)[1], atol=1e-4)


@pytest.mark.parametrize('height, width, grids', [(64, 96, ((16, 24), (8, 12))), (96, 32, ((24, 8), (12, 4))), (40, 56, ((10, 14), (5, 7)))])
def test_images_that_are_not_square(pipe, height, width, grids):
    with capture(pipe, PROMPTS, self_attention=(min(grids[1]),)) as trace, oracle(pipe) as seen: paint(pipe, height=height, width=width)
    assert trace.resolutions == grids and set(trace.by_resolution(0)) == set(grids)
    for grid in grids: assert torch.allclose(trace.token_maps(0, grid)[1].double(), expected_maps(seen, 0, [2, 5, 6, 8], grid), atol=1e-6)
    assert len(trace.self_attention(0)) == grids[1][0] * grids[1][1]


def test_perturbed_attention_guidance_has_three_parts(pipe):
    pag = StableDiffusionPAGPipeline(**pipe.components, pag_applied_layers=['mid'], requires_safety_checker=False)
    pag.set_progress_bar_config(disable=True)
    before = dict(pag.unet.attn_processors)
    plain = paint(pag, pag_scale=2.0)
    with capture(pag, PROMPTS) as trace, oracle(pag, 3, 1) as seen: captured = paint(pag, pag_scale=2.0)
    assert torch.equal(plain, captured)
    assert torch.allclose(trace.token_maps(0)[1].double(), expected_maps(seen, 0, [2, 5, 6, 8], (16, 16)), atol=1e-6)
    with capture(pag, PROMPTS) as trace, oracle(pag, 2, 0) as seen: paint(pag, pag_scale=2.0, guidance_scale=1.0)
    assert torch.allclose(trace.token_maps(0)[1].double(), expected_maps(seen, 0, [2, 5, 6, 8], (16, 16)), atol=1e-6)
    pag.unet.set_attn_processor(before)


def test_image_to_image_counts_its_own_steps(pipe):
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)

    def repaint(): return img2img([p.text for p in PROMPTS], image=torch.rand(3, 3, 64, 64, generator=generators(1)[0]), strength=.5, num_inference_steps=8, output_type='latent', generator=generators(3)).images
    plain = repaint()
    with capture(img2img, PROMPTS, steps=slice(-1, None)) as trace: captured = repaint()
    assert torch.equal(plain, captured) and trace.steps == [3]


def test_kept_steps_and_layers_average_to_the_whole(pipe):
    with capture(pipe, PROMPTS, keep=('layer', 'step')) as fine: paint(pipe, steps=4)
    with capture(pipe, PROMPTS) as coarse: paint(pipe, steps=4)
    with capture(pipe, PROMPTS, steps=(.5, 1.0)) as late: paint(pipe, steps=4)
    assert torch.allclose(fine.class_maps(0)[1], coarse.class_maps(0)[1], atol=1e-6)
    by_step = torch.stack([fine.class_maps(0, step=step)[1] for step in range(4)])
    assert torch.allclose(by_step.mean(0), coarse.class_maps(0)[1], atol=1e-6)
    assert late.steps == [2, 3] and torch.allclose(late.class_maps(0)[1], by_step[2:].mean(0), atol=1e-6)
    finest = [layer for layer in fine.layers if fine.class_maps(0, layer=layer)[1].shape[-1] == 16]
    assert len(finest) == 3 and torch.allclose(torch.stack([fine.class_maps(0, layer=layer)[1] for layer in finest]).mean(0), coarse.class_maps(0)[1], atol=1e-6)
    assert fine.class_maps(0, layer='mid_block.attentions.0.transformer_blocks.0.attn2', step=2)[1].shape == (3, 8, 8)
    with pytest.raises(ValueError, match="keep='layer'"): coarse.class_maps(0, layer=finest[0])


@pytest.mark.parametrize('steps, count, expected', [
    (None, 5, None), (2, 5, {2}), (-1, 5, {4}), (range(0, 5, 2), 5, {0, 2, 4}), (slice(1, 3), 5, {1, 2}), ([0, -1], 5, {0, 4}), ((0.0, 1.0), 5, set(range(5))),
    ((0.0, .5), 4, {0, 1}), ((.5, 1.0), 4, {2, 3}), ([1, 3], None, {1, 3}), (50, 100, {50})])
def test_select_steps(steps, count, expected): assert select_steps(steps, count) == expected


@pytest.mark.parametrize('steps, count, message', [([7], 5, 'no step 7'), ((.5, .51), 4, 'selects none'), (slice(9, None), 5, 'selects none'), (slice(1, 2), None, 'number of steps'), (-1, None, 'number of steps')])
def test_select_steps_refuses(steps, count, message):
    with pytest.raises(ValueError, match=message): select_steps(steps, count)


@pytest.mark.parametrize('count', [3, 7, 50])
def test_windows_tile_a_run(count):
    windows = [select_steps((a, b), count) for a, b in ((0.0, .4), (.4, .6), (.6, 1.0))]
    assert frozenset().union(*windows) == frozenset(range(count)) and sum(map(len, windows)) == count


def test_grid_of_every_level():
    for latent in ((16, 16), (96, 64), (10, 14), (5, 7), (1, 9)):
        rows, columns = latent
        for _ in range(4):
            assert grid_of(rows * columns, latent) == (rows, columns)
            rows, columns = -(-rows // 2), -(-columns // 2)
    with pytest.raises(ValueError, match='no level'): grid_of(0, (4, 4))


# ---- words


def test_reading_pieces_mentions_and_classes(pipe):
    with capture(pipe, PROMPTS) as trace: paint(pipe)
    names, tokens = trace.token_maps(0)
    assert names == ('cat</w>', 'mush', 'room</w>', 'grass</w>')
    mentions = trace.mention_maps(0)
    assert torch.equal(mentions[1], tokens[1:3].mean(0)) and torch.equal(mentions[2], tokens[3])
    ids, maps = trace.class_maps(0)
    assert ids == (1, 4, 300) and torch.equal(maps, mentions)
    twice = trace.mention_maps(2)
    assert torch.equal(trace.class_maps(2)[1][0], twice.mean(0)) and torch.equal(trace.class_maps(2, reduce='max')[1][0], twice.amax(0))


def test_weights_mix_resolutions(pipe):
    with capture(pipe, PROMPTS) as trace: paint(pipe)
    fine, coarse = trace.class_maps(0, 16)[1], trace.class_maps(0, 8)[1]
    enlarged = F.interpolate(coarse[None], (16, 16), mode='bilinear')[0]
    assert torch.allclose(trace.class_maps(0, weights={8: 3, (16, 16): 1})[1], .25 * fine + .75 * enlarged, atol=1e-6)
    assert torch.equal(trace.class_maps(0, weights={8: .2})[1], coarse)
    for options, message in ((dict(resolution=8, weights={8: 1}), 'not both'), (dict(weights={8: -1}), 'positive'), (dict(weights={32: 1}), '32'), (dict(reduce='sum'), 'reduce')):
        with pytest.raises(ValueError, match=message): trace.class_maps(0, **options)


def test_a_prompt_without_mentions_beside_others(pipe):
    prompts = [PROMPTS[1], Prompt('the red grass', ())]
    with capture(pipe, prompts) as trace: paint(pipe, prompts)
    assert trace.class_maps(1)[0] == () and trace.class_maps(1)[1].shape == (0, 16, 16)
    with pytest.raises(ValueError, match='nothing to capture'), capture(pipe, prompts[1:]): pass
    with capture(pipe, prompts[1:], self_attention=(8,)) as trace: paint(pipe, prompts[1:])
    assert trace.self_attention(0).shape == (64, 64)


def test_long_prompts(pipe):
    "16 tokens fit: 14 words between start and end. A mention that is cut is refused before anything runs; other words may be cut."
    longest = tiny_prompt('the ' * 13 + 'cat')
    with capture(pipe, [longest], special=True) as trace, oracle(pipe) as seen: paint(pipe, [longest])
    assert list(trace.special_maps(0)) == ['start', 'end']
    assert torch.allclose(trace.class_maps(0)[1].double(), expected_maps(seen, 0, [14], (16, 16)), atol=1e-6)
    overfull = tiny_prompt('a cat ' + 'the ' * 20)
    with capture(pipe, [overfull]): paint(pipe, [overfull])
    for text in ('the ' * 14 + 'cat', 'the ' * 13 + 'mushroom'):
        with pytest.raises(PromptTooLong, match='cat|mushroom'), capture(pipe, [tiny_prompt(text)]) as trace: paint(pipe, [tiny_prompt(text)])
        assert trace.steps == []
    assert nothing_left(pipe)


# ---- the trace


def test_reading_errors_and_repr(pipe):
    with capture(pipe, PROMPTS) as trace:
        assert 'nothing captured' in repr(trace) and trace.num_images == 0
        with pytest.raises(ValueError, match='nothing was captured'): trace.class_maps(0)
        paint(pipe)
        assert trace.class_maps(0)[1].shape == (3, 16, 16)  # readable while still open
    assert all(part in repr(trace) for part in ('3 images', 'mush', '16x16', '7 layers', '2 steps', 'KB'))
    for image in (3, -1):
        with pytest.raises(IndexError, match='the trace holds 3'): trace.class_maps(image)
    with pytest.raises(ValueError, match='there are 16x16, 8x8'): trace.class_maps(0, 32)
    with pytest.raises(ValueError, match='special=True'): trace.special_maps(0)
    with pytest.raises(ValueError, match='self_attention='): trace.self_attention(0)


def test_only_wanted_columns_are_kept(pipe):
    with capture(pipe, PROMPTS) as trace: paint(pipe)
    assert sorted(t.shape for t in trace._sums.values()) == [(3, 64, 4), (3, 256, 4)]


def test_inference_mode_leaves_ordinary_tensors(pipe):
    with torch.inference_mode(), capture(pipe, PROMPTS) as trace: paint(pipe)
    maps = trace.class_maps(0)[1]
    assert not maps.is_inference() and not maps.requires_grad
    latent = torch.randn(1, 4, 16, 16, requires_grad=True)
    with capture(pipe, PROMPTS[:1]) as trace: pipe.unet(latent, 500, torch.randn(1, 16, 32)).sample.sum().backward()
    assert latent.grad.abs().sum() > 0 and not trace.class_maps(0)[1].requires_grad  # gradients pass through the model, not into the trace


# ---- everything is taken back


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_error(pipe, error):
    def fail(*_): raise error('stop')
    hook = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0].register_forward_hook(fail)
    with pytest.raises(error, match='stop'), capture(pipe, PROMPTS, self_attention=(8,)): paint(pipe)
    hook.remove()
    assert nothing_left(pipe)
    with pytest.raises(error, match='stop'), capture(pipe, PROMPTS): fail()
    assert nothing_left(pipe)


def test_a_caught_error_leaves_the_open_capture_silent_between_layers(pipe):
    def fail(*_): raise RuntimeError('stop')
    with capture(pipe, PROMPTS):
        hook = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match='stop'): paint(pipe)
        hook.remove()
        assert not softmax.visits()
    assert nothing_left(pipe)


def test_two_captures_of_one_run_and_another_thread(pipe):
    other, results = tiny_pipeline(seed=1), {}
    expected = paint(other)

    def elsewhere(): results['images'] = paint(other)
    with capture(pipe, PROMPTS) as one, capture(pipe, PROMPTS, keep='step') as two:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        paint(pipe)
        thread.join()
    assert torch.equal(one.class_maps(0)[1], one.class_maps(0)[1]) and torch.allclose(one.class_maps(0)[1], two.class_maps(0)[1], atol=1e-6)
    assert torch.equal(results['images'], expected) and nothing_left(pipe) and nothing_left(other)


# ---- refusals


def test_prompts_that_differ_from_the_captures(pipe):
    for prompts, message in ((PROMPTS[:2], 'given 3 prompts, the capture 2'), (PROMPTS[::-1], 'in the same order')):
        with pytest.raises(ValueError, match=message), capture(pipe, prompts): paint(pipe)
    with pytest.raises(ValueError, match='given 1 prompt, the capture 3'), capture(pipe, PROMPTS): pipe('a cat', num_inference_steps=1)
    with pytest.raises(ValueError, match='one run'), capture(pipe, PROMPTS):
        paint(pipe)
        paint(pipe)
    with pytest.raises(ValueError, match='batch of 12'), capture(pipe, PROMPTS, images_per_prompt=1): paint(pipe, images=2)
    embeds = torch.randn(4, 16, 32)
    for prompts, message in ((PROMPTS, 'batch of 8'), (PROMPTS[:2], 'different texts')):
        with pytest.raises(ValueError, match=message), capture(pipe, prompts):
            pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=1, height=64, width=64, output_type='latent')
    assert nothing_left(pipe)


def test_arguments_are_checked(pipe):
    for arguments, message in ((dict(keep='heads'), 'keep is'), (dict(tokens='some'), 'tokens is'), (dict(prompts=()), 'at least one'), (dict(prompts=[7]), 'find_mentions|Prompt'), (dict(share='image'), 'share is')):
        with pytest.raises((ValueError, TypeError), match=message), capture(pipe, **dict(prompts=PROMPTS) | arguments): pass
    for steps in ([7], slice(9, None)):
        with pytest.raises(ValueError, match='2 steps'), capture(pipe, PROMPTS, steps=steps): paint(pipe)
    assert nothing_left(pipe)


def test_attention_that_cannot_be_heard(pipe):
    class Twice(AttnProcessor2_0):
        def __call__(self, *args, **kwargs): return (super().__call__(*args, **kwargs) + super().__call__(*args, **kwargs)) / 2
    class Deaf:
        def __call__(self, attn, hidden_states, **kwargs): return hidden_states
    for processor, times in ((Deaf(), 0), (Twice(), 2)):
        pipe.unet.set_attn_processor(processor)
        try:
            with pytest.raises(ValueError, match=rf'down_blocks.0.attentions.0.transformer_blocks.0.attn2 called .* {times} times'), capture(pipe, PROMPTS): paint(pipe)
        finally: pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert nothing_left(pipe)


def test_denoisers_that_cannot_be_captured(pipe):
    compiled = tiny_pipeline()
    compiled.unet = torch.compile(compiled.unet)
    with pytest.raises(ValueError, match='compiled'): find_sites(compiled)
    in_place = tiny_pipeline()
    in_place.unet.mid_block.compile()
    with pytest.raises(ValueError, match='compiled'): find_sites(in_place)

    class Bare(DiffusionPipeline): pass
    with pytest.raises(TypeError, match='Bare has neither a unet nor a transformer'): find_sites(Bare())
    other = tiny_pipeline()
    other.unet = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match='no adapter for a Linear; capture knows UNet2DConditionModel'): find_sites(other)
    plain = tiny_pipeline()
    plain.unet = UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=8, down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',), mid_block_type='UNetMidBlock2D', cross_attention_dim=32)
    with pytest.raises(ValueError, match='no cross-attention'): find_sites(plain)


# ---- looking at images


@pytest.mark.parametrize('build', [tiny_pipeline, tiny_xl_pipeline])
def test_look_equals_one_step_by_hand(build):
    pipe = build()
    images = torch.rand(3, 3, 64, 96, generator=generators(1)[0])
    with oracle(pipe, 1, 0) as seen: trace = look(pipe, images, PROMPTS, 500, seed=7, keep='layer')
    assert trace.num_images == 3 and torch.allclose(trace.token_maps(0, 8)[1].double(), expected_maps(seen, 0, [2, 5, 6, 8], (8, 12)), atol=1e-6)
    alone = look(pipe, images[2:], PROMPTS[2:], 500, seed=9)
    assert torch.allclose(trace.class_maps(2)[1], alone.class_maps(0)[1], atol=1e-5)
    assert not torch.allclose(trace.class_maps(2)[1], look(pipe, images[2:], PROMPTS[2:], 100, seed=9).class_maps(0)[1], atol=1e-4)
    assert nothing_left(pipe)


def test_images_of_every_form_give_the_same_latents(pipe):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    forms = [list(arrays), [Image.fromarray(a) for a in arrays], torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255]
    first, *others = (noised_latents(pipe, form, 300) for form in forms)
    assert first.shape == (2, 4, 16, 16) and all(torch.equal(first, other) for other in others)
    clean = noised_latents(pipe, forms[0], 0)
    expected = pipe.vae.encode(2 * forms[2] - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(clean, expected, atol=.2) and not torch.allclose(first, expected, atol=.2)


def test_look_refuses(pipe):
    image = np.zeros((64, 64, 3), np.uint8)
    for images, timestep, message in (([image] * 2, 500, 'one prompt per image'), ([image], 1000, '0 to 999'), ([image[:50]], 500, 'divisible by 4'), ([image[..., 0]], 500, r'\[h, w, 3\]'), (torch.zeros(1, 64, 64, 3), 500, r'\[b, 3, h, w\]')):
        with pytest.raises(ValueError, match=message): look(pipe, images, PROMPTS[:1], timestep)
    with pytest.raises(ValueError, match='one size'): look(pipe, [image, image[:32]], PROMPTS[:2], 500)


# ---- loading


@pytest.fixture(scope='module')
def folder(pipe, tmp_path_factory):
    where = tmp_path_factory.mktemp('models') / 'tiny'
    pipe.save_pretrained(where)
    return where


def test_load_pipeline(pipe, folder):
    loaded = load_pipeline(str(folder), dtype=torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16 and type(loaded) is type(pipe)
    again = load_pipeline(folder)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(paint(again), paint(pipe))


def test_load_pipeline_refuses(folder, tmp_path):
    for model in (tmp_path / 'missing', str(tmp_path / 'missing'), 'not a name'):
        with pytest.raises(FileNotFoundError, match='no folder'): load_pipeline(model)
    with pytest.raises(ValueError, match='no model_index.json'): load_pipeline(tmp_path)
    (tmp_path / 'model_index.json').write_text('{')
    with pytest.raises(ValueError, match='not JSON'): load_pipeline(tmp_path)
    (tmp_path / 'model_index.json').write_text(json.dumps({'_class_name': ['own', 'Pipeline']}))
    with pytest.raises(ValueError, match='own code'): load_pipeline(tmp_path)


def test_load_pipeline_refuses_pickled_weights(folder, tmp_path):
    import shutil
    where = shutil.copytree(folder, tmp_path / 'pickled')
    (where / 'unet' / 'diffusion_pytorch_model.safetensors').rename(where / 'unet' / 'diffusion_pytorch_model.bin')
    with pytest.raises(ValueError, match='pickled weights'): load_pipeline(where)


def test_load_pipeline_from_the_hub_without_network(monkeypatch):
    with pytest.raises(ValueError, match='nobody/nothing could not be loaded'): load_pipeline('nobody/nothing')


def test_mention_and_prompt_contract(pipe):
    "A phrase of two words is one mention with the pieces of both."
    prompt = Prompt('a red mushroom', (Mention(4, 2, 14),))
    with capture(pipe, [prompt]) as trace: paint(pipe, [prompt])
    names, maps = trace.token_maps(0)
    assert names == ('red</w>', 'mush', 'room</w>') and torch.allclose(trace.mention_maps(0)[0], maps.mean(0))
