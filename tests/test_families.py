"""Capture in every family of models: the same bits, the softmax's own columns, the right words, and nothing left behind."""
from collections import defaultdict

import pytest
import torch
from diffusers import (ControlNetModel, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, FluxTransformer2DModel, HeunDiscreteScheduler, PNDMScheduler,
                       StableDiffusionControlNetPipeline, StableDiffusionInpaintPipeline)
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from families import CALLS, FAMILIES, guided
from peft import LoraConfig
from synseg_kit import families as kit
from synseg_kit import softmax
from synseg_kit.attention import capture, load_trace, look, noised_latents
from synseg_kit.families import FAMILIES as ADAPTERS
from synseg_kit.families import Span, family_of, find_sites, place_tokens, track_tokens
from synseg_kit.prompts import PromptTooLong
from tiny import generators, tiny_pipeline, tiny_prompt, tiny_tokenizer
from torch.nn import functional as F

PROMPTS = tuple(map(tiny_prompt, ('a cat and a mushroom on grass', 'the red ball')))
EVEN = tuple(map(tiny_prompt, ('the blue cat', 'the red ball')))  # of one length: diffusers 0.42 mixes up the masks of Sana's and Qwen's several images
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
JOINT = {'sd3': 'image first', 'sd35': 'image first', 'flux': 'text first', 'qwen': 'text first'}
GRIDS = {'sd1': (16, 16), 'sd2': (16, 16), 'sdxl': (8, 8)}  # finest with text; 8x8 for all others


@pytest.fixture(scope='module', params=FAMILIES)
def family(request): return request.param


@pytest.fixture(scope='module')
def pipe(family): return FAMILIES[family]()


def paint(family, pipe, prompts=PROMPTS, steps=2, images=1, seed=0, guidance=True, **options):
    "Run a pipeline to its latents."
    call = guided(family, len(prompts)) if guidance else CALLS[family] | ({} if family in ('flux', 'qwen') else dict(guidance_scale=1.0))
    return pipe([prompt.text for prompt in prompts], generator=generators(images * len(prompts), seed), num_inference_steps=steps, num_images_per_prompt=images,
                **call | options).images


@pytest.fixture
def heard(monkeypatch):
    "The float64 attention of every layer that is listened to: site name -> list of [row, head, query, key]."
    seen, attend = defaultdict(list), softmax.attend

    def spy(query, key, value, mask=None, dropout_p=0.0, is_causal=False, scale=None, *rest):
        scores = query.double() @ key.double().mT * (query.shape[-1] ** -.5 if scale is None else scale)
        if mask is not None: scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        (visit,) = softmax.visits().values()
        seen[visit.site.name].append(scores.softmax(-1))
        return attend(query, key, value, mask, dropout_p, is_causal, scale, *rest)
    monkeypatch.setattr(softmax, 'attend', spy)
    return seen


def cut(family, shares, tokens, places):
    "The part of a joint attention where image places ask: text columns, image columns."
    if family not in JOINT: return shares, None
    if JOINT[family] == 'image first': return shares[..., :places, -tokens:], shares[..., :places, :places]
    return shares[..., -places:, :tokens], shares[..., -places:, -places:]


def expected(family, trace, seen, image, tokens):
    "The mean map of each kept token of one image at the finest grid, from float64 attention."
    rows, columns = GRIDS.get(family, (8, 8))
    layers = []
    for name in trace.sites:
        for shares in seen[name]:
            text, _ = cut(family, shares, tokens, rows * columns)
            if text.shape[-2] == rows * columns: layers.append(text[len(text) - trace.num_images + image].mean(0))  # the prompt's part is the last
    mean = torch.stack(layers).mean(0)
    positions = trace.tracks[image // trace.images_per_prompt].positions
    return torch.stack([mean[:, list(p)].mean(1) for p in positions]).unflatten(1, (rows, columns))


def text_length(family, prompts=PROMPTS): return {'sd3': 40, 'sd35': 40, 'flux': 24, 'pixart': 24, 'sana': 24, 'qwen': 13 if prompts is PROMPTS else 8}.get(family, 16)


def nothing_left(pipe):
    denoiser, _ = find_sites(pipe)
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())
    table = softmax._backend_table()
    return (not hooks and not {'check_inputs', 'encode_prompt'} & set(vars(pipe)) and 'cache_context' not in vars(denoiser) and not softmax.visits()
            and F.scaled_dot_product_attention is softmax._BUILTIN and not any(hasattr(run, '__wrapped__') and 'synseg' in run.__code__.co_filename for run in table.values()))


# ---- exact, in every family


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_latents_are_bit_identical_and_nothing_is_left(family, dtype):
    pipe = FAMILIES[family](dtype)
    plain = paint(family, pipe)
    everything = dict(keep=('layer', 'head', 'step'), tokens='all', special=True, self_attention=(8,), replay=(8,), variance=True)
    with capture(pipe, PROMPTS, **everything) as trace: captured = paint(family, pipe)
    assert plain.isfinite().all() and torch.equal(plain, captured) and trace.steps == [0, 1]
    assert torch.equal(plain, paint(family, pipe)) and nothing_left(pipe)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('guidance', [True, False])
def test_maps_equal_a_float64_softmax(family, dtype, guidance, heard):
    pipe = FAMILIES[family](dtype)
    with capture(pipe, PROMPTS, tokens='all', special=True) as trace: paint(family, pipe, guidance=guidance)
    assert trace.num_images == 2 and trace.resolutions[0] == GRIDS.get(family, (8, 8)) and not nothing_heard_twice(trace)
    for image in range(2):
        maps = trace.token_maps(image)[1]
        assert torch.allclose(maps.double(), expected(family, trace, heard, image, text_length(family)), atol=TOLERANCE[dtype])
        assert family == 'sdxl' or maps.amax() > 2 * maps.mean()  # maps that are all alike would prove nothing


@pytest.mark.parametrize('family', ['sd1', 'sd2', 'sdxl', 'pixart', 'sana'])
def test_maps_equal_the_scores_of_diffusers(family):
    "diffusers' own get_attention_scores, where a family has it, fed the very hidden states and masks of the run."
    pipe = FAMILIES[family]()
    denoiser, sites = find_sites(pipe)
    seen, handles = defaultdict(list), []
    for site in sites:
        def gather(module, args, kwargs, name=site.name):
            text, mask = kwargs['encoder_hidden_states'], kwargs.get('attention_mask')
            query, key = module.head_to_batch_dim(module.to_q(args[0])), module.head_to_batch_dim(module.to_k(text))
            if mask is not None: mask = module.prepare_attention_mask(mask, text.shape[1], len(text))
            seen[name].append(module.get_attention_scores(query, key, mask).unflatten(0, (-1, module.heads)))
        if site.kind == 'cross': handles.append(site.module.register_forward_pre_hook(gather, with_kwargs=True))
    with capture(pipe, PROMPTS, tokens='all') as trace: paint(family, pipe)
    for handle in handles: handle.remove()
    for image in range(2): assert torch.allclose(trace.token_maps(image)[1], expected(family, trace, seen, image, text_length(family)), atol=2e-6)


def nothing_heard_twice(trace): return [name for name, times in trace.sites.items() if times != len(trace.steps)]


def test_all_keys_sum_to_one(family, pipe):
    with capture(pipe, PROMPTS, tokens='all', special=True, self_attention=(8,) if family in JOINT else ()) as trace: paint(family, pipe)
    for image in range(2):
        names, maps = trace.token_maps(image)
        amounts = torch.tensor([float(len(p)) for p in trace.tracks[image].positions])
        total = (maps * amounts[:, None, None]).sum(0)
        assert sorted(key for p in trace.tracks[image].positions for key in p) == list(range(text_length(family)))
        if family in JOINT:
            assert .05 < total.mean() < .95
            joint = 3 / 4 if family == 'sd35' else 1  # one of its four layers is for the image alone
            total = joint * total + trace.self_attention(image).sum(1).unflatten(0, (8, 8))
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_the_text_share_leaves_the_image_out(family, pipe):
    with capture(pipe, PROMPTS, tokens='all', special=True, share='text', keep='layer') as trace: paint(family, pipe)
    with capture(pipe, PROMPTS, tokens='all', special=True, keep='layer') as whole: paint(family, pipe)
    amounts = torch.tensor([float(len(p)) for p in trace.tracks[0].positions])[:, None, None]
    maps = trace.token_maps(0)[1]
    assert torch.allclose((maps * amounts).sum(0), torch.ones(maps.shape[1:]), atol=1e-5)
    if family not in JOINT: assert torch.allclose(maps, whole.token_maps(0)[1], atol=1e-6)


def test_a_batch_equals_its_images_alone(family, pipe):
    with capture(pipe, EVEN) as batch: paint(family, pipe, EVEN)
    for image, prompt in enumerate(EVEN):
        with capture(pipe, [prompt]) as alone: paint(family, pipe, [prompt], seed=image)
        ids, maps = alone.class_maps(0)
        assert batch.class_maps(image)[0] == ids and torch.allclose(batch.class_maps(image)[1], maps, atol=1e-4)


@pytest.mark.parametrize('guidance', [True, False])
def test_several_images_per_prompt(family, pipe, guidance):
    with capture(pipe, EVEN) as trace: paint(family, pipe, EVEN, images=2, guidance=guidance)
    assert trace.num_images == 4
    for image in range(4):
        assert trace.prompt_of(image) is EVEN[image // 2]
        with capture(pipe, [EVEN[image // 2]]) as alone: paint(family, pipe, [EVEN[image // 2]], seed=image, guidance=guidance)
        assert torch.allclose(trace.class_maps(image)[1], alone.class_maps(0)[1], atol=1e-4)


def test_images_that_are_not_square(family, pipe, heard):
    with capture(pipe, PROMPTS, keep='layer') as trace: paint(family, pipe, height=64, width=128)
    rows, columns = GRIDS.get(family, (8, 8))
    assert trace.resolutions[0] == (rows, 2 * columns)
    name = trace.layers[-1]
    text = cut(family, heard[name][-1], text_length(family), rows * columns * 2)[0]
    grid = trace.token_maps(1, layer=name)[1].shape[1:]
    exact = torch.stack([cut(family, shares, text_length(family), rows * columns * 2)[0][-1].mean(0) for shares in heard[name]]).mean(0)
    keys = [key for positions in trace.tracks[1].positions for key in positions]
    assert text.shape[-2] == grid[0] * grid[1] and grid[1] == 2 * grid[0]
    assert torch.allclose(trace.token_maps(1, layer=name)[1].double(), exact[:, keys].mT.unflatten(1, grid), atol=1e-6)


def test_self_attention_and_its_replay(family, pipe, heard):
    if family == 'sana':  # linear self-attention has no softmax
        with capture(pipe, PROMPTS, self_attention=(8,)) as trace: paint(family, pipe)
        with pytest.raises(ValueError, match='self-attention was not kept'): trace.self_attention(0)
        return
    with capture(pipe, PROMPTS, self_attention=(8,), replay=(8,), steps=-1) as trace: paint(family, pipe)
    exact = []
    for (site, shares) in ((site, shares) for name, heads in heard.items() for shares in heads for site in [name]):
        if family in JOINT and not site.endswith('attn2'): shares = cut(family, shares, text_length(family), 64)[1]
        if shares.shape[-2:] == (64, 64): exact.append(shares[-1].mean(0))
    matrix = torch.stack(exact).mean(0)
    assert torch.allclose(trace.self_attention(1).double(), matrix, atol=1e-6)
    maps = torch.rand(3, 8, 8)
    assert torch.allclose(trace.propagate(1, maps, power=3).flatten(1).mT.double(), torch.linalg.matrix_power(matrix / matrix.sum(1, keepdim=True), 3) @ maps.flatten(1).mT.double(), atol=1e-5)
    if family in JOINT: return  # layers differ in the image's share, so their mean differs from the mean of what each passes on
    flowed = trace.propagate(1, maps, power=3)
    trace._self_sums.clear()
    assert torch.allclose(trace.propagate(1, maps, power=3), flowed, atol=1e-5)


# ---- the right words


def test_a_mention_has_its_own_pieces(family, pipe):
    with capture(pipe, PROMPTS) as trace: paint(family, pipe, steps=1)
    spans = 2 if family in ('sd3', 'sd35') else 1
    for prompt, track in zip(PROMPTS, trace.tracks):
        for word, maps in zip(prompt.words, track.mentions):
            pieces = ''.join(track.names[i].removesuffix('</w>').strip('▁Ġ') for i in maps)
            assert pieces == word * spans and len(maps) == spans * (2 if word == 'mushroom' else 1)


@pytest.mark.parametrize('family, first', [('sd1', 0), ('sdxl', 0), ('sana', 0), ('qwen', 0)])
def test_positions_are_those_where_the_text_changes(family, first):
    "With an encoder that reads from left to right, another word changes the text's states from its own first key on."
    pipe = FAMILIES[family]()
    denoiser, _ = find_sites(pipe)
    states = []
    handle = denoiser.register_forward_pre_hook(lambda module, args, kwargs: states.append(kwargs['encoder_hidden_states'][-1]), with_kwargs=True)
    for text in ('a red cat and a blue dog on grass', 'a red cat and a blue ball on grass'):
        prompt = tiny_prompt(text)
        with capture(pipe, [prompt]) as trace: paint(family, pipe, [prompt], steps=1, guidance=False)
    handle.remove()
    changed = (states[0] - states[1]).abs().amax(-1) > 1e-6
    assert trace.tracks[0].positions[trace.tracks[0].mentions[1][0]] == (int(changed.nonzero()[0]),)


def test_a_word_that_one_of_two_encoders_cuts_off():
    "Stable Diffusion 3: CLIP reads 16 tokens here, T5 24."
    pipe = FAMILIES['sd3']()
    late, too_late = tiny_prompt('the ' * 15 + 'cat'), tiny_prompt('the ' * 30 + 'cat')
    with capture(pipe, [late]) as trace: paint('sd3', pipe, [late], steps=1)
    assert trace.tracks[0].positions == ((16 + 15,),)
    with pytest.raises(PromptTooLong, match='too far back'), capture(pipe, [too_late]): paint('sd3', pipe, [too_late], steps=1)


def test_spans_and_special_tokens(family, pipe):
    with capture(pipe, PROMPTS, special=True) as trace: paint(family, pipe, steps=1)
    kinds = {'sd1': 'start end padding', 'sd2': 'start end padding', 'sdxl': 'start end padding', 'sd3': 'start end padding', 'sd35': 'start end padding',
             'flux': 'end padding', 'pixart': 'end padding', 'sana': 'start padding', 'qwen': 'end'}[family]
    assert list(trace.special_maps(0)) == kinds.split()
    if family in ('pixart', 'sana'): assert trace.special_maps(1)['padding'].abs().max() == 0  # the mask hides it


def test_texts_in_upper_case_and_with_spaces():
    text = '  A Cat'
    places = place_tokens(Span(tiny_tokenizer(), 16, lower=True), text, [(text.index('Cat'), len(text))])
    assert places.stretches == ((2,),) and places.words == {1: 'a</w>', 2: 'cat</w>'}
    with pytest.raises(ValueError, match='lower case'): place_tokens(Span(tiny_tokenizer(), 16, lower=True), 'İ cat')


def test_long_texts_in_pieces():
    "A text encoded in pieces of 16 tokens, each with a start and an end, as prompt-weighting libraries hand it over."
    pipe = tiny_pipeline()
    prompt = tiny_prompt('a cat ' + 'the ' * 14 + 'mushroom on grass')
    ids = pipe.tokenizer(prompt.text, truncation=False, verbose=False).input_ids[1:-1]
    start, end = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id
    pieces = [[start, *ids[i:i + 14], end] for i in range(0, len(ids), 14)]
    pieces[-1] += [end] * (16 - len(pieces[-1]))
    states = torch.cat([pipe.text_encoder(torch.tensor([piece]))[0] for piece in pieces], 1).detach()
    with capture(pipe, [prompt]) as trace:
        pipe(prompt_embeds=states, negative_prompt_embeds=states, num_inference_steps=1, height=64, width=64, output_type='latent')
    flat = [i for piece in pieces for i in piece]
    tokens = [[flat[key] for i in maps for key in trace.tracks[0].positions[i]] for maps in trace.tracks[0].mentions]
    assert [''.join(pipe.tokenizer.convert_ids_to_tokens(word)).removesuffix('</w>') for word in tokens] == ['cat', 'mushroom', 'grass']
    with pytest.raises(PromptTooLong, match='mushroom'), capture(pipe, [prompt]): paint('sd1', pipe, [prompt])


def test_words_are_found_by_name(pipe, family):
    texts = [prompt.text for prompt in PROMPTS]
    with capture(pipe, texts) as trace: paint(family, pipe)
    with capture(pipe, PROMPTS) as mentions: paint(family, pipe)
    for image, prompt in enumerate(PROMPTS):
        for word, heat in zip(prompt.words, mentions.mention_maps(image)): assert torch.allclose(trace.word_map(word.upper(), image), heat, atol=1e-6)
    with pytest.raises(ValueError, match="tokens='all'"): mentions.word_map('red', 1)
    with pytest.raises(ValueError, match='does not occur'): trace.word_map('dog')


# ---- words outside the prompt


def test_side_texts(family, pipe):
    if family in JOINT:
        with pytest.raises(TypeError, match='every layer'), capture(pipe, PROMPTS, side=['a dog']): pass
        return assert_nothing(pipe)
    side = ['a dog on grass', *PROMPTS]
    with capture(pipe, PROMPTS, side=side, keep='layer') as trace: plain = paint(family, pipe)
    with capture(pipe, PROMPTS) as alone: assert torch.equal(plain, paint(family, pipe))
    for image in range(2):
        assert torch.equal(trace.token_maps(image)[1], alone.token_maps(image)[1]) or torch.allclose(trace.token_maps(image)[1], alone.token_maps(image)[1], atol=1e-6)
        names, maps = trace.side_maps(image, 1 + image)
        assert names == trace.token_maps(image)[0] and torch.allclose(maps, trace.token_maps(image)[1], atol=1e-5)  # asked about the prompt itself
    assert torch.equal(trace.word_map('dog'), trace.side_maps(0, 0)[1][1]) and trace.word_map('dog', layer=trace.layers[0]).shape
    with pytest.raises(ValueError, match='no side text'): alone.side_maps(0)


def assert_nothing(pipe): assert nothing_left(pipe)


# ---- images that exist


def test_look(family, pipe):
    images = torch.rand(2, 3, 64, 64, generator=generators(1)[0])
    trace = look(pipe, images, EVEN, 500, seed=7)
    assert trace.num_images == 2 and trace.resolutions[0] == GRIDS.get(family, (8, 8)) and trace.steps == [0]
    alone = look(pipe, images[1:], EVEN[1:], 500, seed=8)
    assert torch.allclose(trace.class_maps(1)[1], alone.class_maps(0)[1], atol=1e-5)
    assert not torch.allclose(trace.class_maps(1)[1], look(pipe, images[1:], EVEN[1:], 100, seed=8).class_maps(0)[1], atol=1e-5)
    assert nothing_left(pipe) and type(pipe.scheduler).__name__ != 'OneStep' and '_progress_bar_config' in vars(pipe)
    with pytest.raises(ValueError, match='0 to 999'): look(pipe, images, EVEN, 1000)
    with pytest.raises(ValueError, match='divisible'): look(pipe, images[..., :36], EVEN, 500)


def test_noise_follows_the_models_training(family, pipe):
    "A flow mixes straight, a diffusion keeps the variance; without noise it is the code of the autoencoder."
    images = torch.rand(1, 3, 64, 64, generator=generators(1)[0])
    clean, half = (noised_latents(pipe, images, timestep, seed=3) for timestep in (0, 500))
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(3))[None]
    if family in ('sd3', 'sd35', 'flux', 'sana', 'qwen'): assert torch.allclose(half, .5 * clean + .5 * noise, atol=1e-5)
    else:
        kept = pipe.scheduler.alphas_cumprod[[0, 500]]
        code = (clean - (1 - kept[0]).sqrt() * noise) / kept[0].sqrt()
        assert torch.allclose(half, kept[1].sqrt() * code + (1 - kept[1]).sqrt() * noise, atol=1e-4)


# ---- other pipelines, adapters, schedulers, processors


def test_inpainting_and_controlnet():
    base = tiny_pipeline()
    inpaint = StableDiffusionInpaintPipeline(**base.components, requires_safety_checker=False)
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 32))
    with_control = StableDiffusionControlNetPipeline(**base.components, controlnet=control, requires_safety_checker=False)
    picture = torch.rand(2, 3, 64, 64, generator=generators(1)[0])
    texts = [prompt.text for prompt in PROMPTS]
    common = dict(num_inference_steps=2, output_type='latent', height=64, width=64)
    runs = {inpaint: lambda: inpaint(texts, image=picture, mask_image=(picture[:, :1] > .5).float(), generator=generators(2), strength=1.0, **common).images,
            with_control: lambda: with_control(texts, image=picture, generator=generators(2), **common).images}
    for pipe, run in runs.items():
        pipe.set_progress_bar_config(disable=True)
        plain = run()
        with capture(pipe, PROMPTS) as trace: captured = run()
        assert torch.equal(plain, captured) and trace.num_images == 2 and len(trace.layers) == 7 and nothing_left(pipe)
    with pytest.raises(TypeError, match='from_pipe') as error: look(_without_latents(base), picture, PROMPTS, 500)
    assert 'text-to-image' in str(error.value)


def _without_latents(pipe):
    class Bare(type(pipe)):
        def __call__(self, prompt): return super().__call__(prompt)
    return Bare(**pipe.components, requires_safety_checker=False)


def test_a_loaded_lora(heard):
    pipe = tiny_pipeline()
    before = paint('sd1', pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=['to_q', 'to_k', 'to_v'], init_lora_weights=False))
    plain = paint('sd1', pipe)
    with capture(pipe, PROMPTS, side=[PROMPTS[0]]) as trace: captured = paint('sd1', pipe)
    assert torch.equal(plain, captured) and not torch.equal(plain, before)
    exact = expected('sd1', trace, heard, 0, 16)
    assert torch.allclose(trace.token_maps(0)[1].double(), exact, atol=1e-6) and torch.allclose(trace.side_maps(0)[1].double(), exact, atol=1e-5)


@pytest.mark.parametrize('scheduler', [EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler, HeunDiscreteScheduler])
def test_schedulers(scheduler):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler(num_train_timesteps=1000)
    plain = paint('sd1', pipe, steps=4)
    with capture(pipe, PROMPTS, keep='step') as trace: captured = paint('sd1', pipe, steps=4)
    assert torch.equal(plain, captured) and trace.steps == list(range(len(pipe.scheduler.timesteps)))


@pytest.mark.parametrize('processor', [AttnProcessor, lambda: SlicedAttnProcessor(2)])
def test_processors_without_a_kernel_are_heard_at_their_linear_maps(processor):
    pipe = tiny_pipeline()
    with capture(pipe, PROMPTS, self_attention=(8,)) as kernel: paint('sd1', pipe)
    pipe.unet.set_attn_processor(processor())
    plain = paint('sd1', pipe)
    with capture(pipe, PROMPTS, self_attention=(8,)) as trace: captured = paint('sd1', pipe)
    assert torch.equal(plain, captured) and nothing_left(pipe)
    for image in range(2):
        assert torch.allclose(trace.token_maps(image)[1], kernel.token_maps(image)[1], atol=1e-4)
        assert torch.allclose(trace.self_attention(image), kernel.self_attention(image), atol=1e-4)


def test_masks_at_the_linear_maps():
    "PixArt hides padding by a mask; a processor without a kernel gets it in another form."
    pipe = FAMILIES['pixart']()
    with capture(pipe, PROMPTS, tokens='all') as kernel: paint('pixart', pipe, steps=1)
    for block in pipe.transformer.transformer_blocks: block.attn2.set_processor(AttnProcessor())
    with capture(pipe, PROMPTS, tokens='all') as trace: paint('pixart', pipe, steps=1)
    for image in range(2): assert torch.allclose(trace.token_maps(image)[1], kernel.token_maps(image)[1], atol=1e-5)


@pytest.mark.parametrize('family', ['flux', 'qwen'])
def test_attention_back_ends_that_never_reach_pytorch(family, monkeypatch):
    "A back end of its own (flash-attention, sage and the like) is heard at diffusers' table."
    pipe = FAMILIES[family]()
    with capture(pipe, PROMPTS) as kernel: paint(family, pipe)

    def own(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False, _parallel_config=None):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = query @ key.mT / query.shape[-1] ** .5
        if attn_mask is not None: scores = scores.masked_fill(~attn_mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2)
    table = softmax._backend_table()
    for name in table: monkeypatch.setitem(table, name, own)
    with capture(pipe, PROMPTS) as trace: paint(family, pipe)
    assert table[name] is own
    for image in range(2): assert torch.allclose(trace.token_maps(image)[1], kernel.token_maps(image)[1], atol=1e-5)


def test_a_kernel_that_breaks_its_word_is_passed_over(family, pipe, monkeypatch):
    with capture(pipe, PROMPTS) as trusted: plain = paint(family, pipe)
    for broken in (lambda *a: (a[2], None), lambda q, k, v, p, s: (torch.zeros_like(q), torch.zeros(q.shape[:-1]))):
        monkeypatch.setattr(softmax, 'KERNELS', dict.fromkeys(softmax.KERNELS, broken))
        softmax.keeps_its_word.cache_clear()
        try:
            with capture(pipe, PROMPTS) as trace: captured = paint(family, pipe)
        finally: softmax.keeps_its_word.cache_clear()
        assert torch.equal(plain, captured) and torch.allclose(trace.class_maps(0)[1], trusted.class_maps(0)[1], atol=1e-6)


def test_sums_of_large_score_matrices_go_head_by_head():
    query, key, mask = torch.randn(2, 4, 32, 8), torch.randn(2, 4, 16, 8), torch.rand(2, 1, 1, 16) > .2
    mask[..., 0] = True
    for bias in (None, mask): assert torch.equal(softmax.log_sum_exp(query, key, None, bias), softmax.log_sum_exp(query, key, None, bias, largest=1))


def test_skipped_and_unvisited_layers(monkeypatch):
    pipe = FAMILIES['flux']()
    monkeypatch.setattr(FluxTransformer2DModel, 'forward', lambda self, hidden_states, encoder_hidden_states, img_ids=None, **kwargs: (hidden_states,))
    with pytest.raises(ValueError, match=r'transformer_blocks.0.attn was never visited'), capture(pipe, PROMPTS): paint('flux', pipe)
    assert nothing_left(pipe)


def test_an_error_in_the_middle_leaves_nothing(family, pipe):
    denoiser, sites = find_sites(pipe)
    module = [site.module for site in sites if site.kind != 'self'][-1]

    def fail(*_): raise RuntimeError('stop')
    hook = module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='stop'), capture(pipe, PROMPTS, self_attention=(8,), variance=True): paint(family, pipe)
    hook.remove()
    assert nothing_left(pipe)


def test_compiled_transformers_are_refused(family, pipe):
    denoiser, sites = find_sites(pipe)
    sites[-1].module.compile()
    try:
        with pytest.raises(ValueError, match='compiled'): find_sites(pipe)
    finally: sites[-1].module._compiled_call_impl = None
    assert type(denoiser).__name__ in ADAPTERS and family_of(denoiser) is ADAPTERS[type(denoiser).__name__]


# ---- traces


def test_save_and_load(family, pipe, tmp_path):
    options = dict(keep=('layer', 'head', 'step'), special=True, self_attention=(8,), replay=(8,), variance=True)
    if family not in JOINT: options['side'] = ['a dog', PROMPTS[0]]
    with capture(pipe, PROMPTS, **options) as trace: paint(family, pipe)
    again = load_trace(trace.save(tmp_path / 'trace'))
    assert repr(again) == repr(trace) and again.prompts == trace.prompts and again.tracks == trace.tracks and again.nbytes == trace.nbytes
    assert torch.equal(again.token_maps(1, layer=trace.layers[0], head=[0], step=1)[1], trace.token_maps(1, layer=trace.layers[0], head=[0], step=1)[1])
    for over in ('step', 'head'): assert torch.equal(again.class_variance(0, over)[1], trace.class_variance(0, over)[1])
    if family != 'sana': assert torch.equal(again.propagate(0, torch.eye(8)[None], power=2), trace.propagate(0, torch.eye(8)[None], power=2))
    if family not in JOINT: assert torch.equal(again.word_map('dog', 1), trace.word_map('dog', 1))
    with pytest.raises(FileExistsError): trace.save(tmp_path / 'trace')
    with pytest.raises(FileNotFoundError, match='no trace.json'): load_trace(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['trace']


def test_choices_of_layers_heads_and_steps(family, pipe):
    with capture(pipe, PROMPTS, keep=('head', 'step'), variance=True) as fine: paint(family, pipe, steps=3)
    with capture(pipe, PROMPTS, variance=True) as coarse: paint(family, pipe, steps=3)
    whole = coarse.class_maps(0)[1]
    here = [name for name in fine.layers if fine.class_maps(0, layer=name)[1].shape == whole.shape]
    heads = next(iter(fine._sums.values())).shape[1]
    assert torch.allclose(fine.class_maps(0)[1], whole, atol=1e-6)
    assert torch.allclose(torch.stack([fine.class_maps(0, layer=here, step=s)[1] for s in range(3)]).mean(0), whole, atol=1e-6)
    assert torch.allclose(torch.stack([fine.class_maps(0, layer=here[0], head=h)[1] for h in range(heads)]).mean(0), fine.class_maps(0, layer=here[0])[1], atol=1e-6)
    mixed = fine.class_maps(0, layer=here[0], step={0: 3, 2: 1}, head={0: 1., 1: 3.})[1]
    by_hand = sum(w * v * fine.class_maps(0, layer=here[0], step=s, head=h)[1] for s, w in ((0, .75), (2, .25)) for h, v in ((0, .25), (1, .75)))
    assert torch.allclose(mixed, by_hand, atol=1e-6)
    by_step = torch.stack([fine.token_maps(0, step=s)[1] for s in range(3)])
    by_head = torch.stack([torch.stack([fine.token_maps(0, layer=n, step=s, head=h)[1] for h in range(heads)]).var(0, correction=0) for n in here for s in range(3)])
    for over, exact in (('step', by_step.var(0, correction=0)), ('head', by_head.mean(0))):
        assert torch.allclose(coarse.variance(0, over)[1], exact, atol=1e-6) and torch.allclose(fine.variance(0, over)[1], exact, atol=1e-6)
    for options, message in ((dict(layer='attn9'), "no layer 'attn9'"), (dict(step=7), 'no step 7'), (dict(head=99), 'no head 99'), (dict(step={0: 0.}), 'not all of them 0')):
        with pytest.raises(ValueError, match=message): fine.class_maps(0, **options)
    with pytest.raises(ValueError, match="keep='head'"): coarse.class_maps(0, head=0)
    with pytest.raises(ValueError, match="'step' or 'head'"): coarse.variance(0, 'seed')


def test_tracks_without_room():
    with pytest.raises(ValueError, match='different places'): track_tokens(PROMPTS[0], [Span(tiny_tokenizer(), 16), Span(tiny_tokenizer(), 16, prefix='a ')])


# ---- DAAM's numbers


def test_daam_compat():
    "Attention of the layers of down and up blocks, summed over steps, enlarged by bicubic interpolation for each head and clipped: by hand."
    pipe = tiny_pipeline()
    gathered = defaultdict(float)
    handles = []
    for name, module in pipe.unet.named_modules():
        if name.endswith('attn2') and not name.startswith('mid_block'):
            def gather(module, args, kwargs, name=name):
                query, key = module.head_to_batch_dim(module.to_q(args[0])), module.head_to_batch_dim(module.to_k(kwargs['encoder_hidden_states']))
                gathered[name] += module.get_attention_scores(query, key).unflatten(0, (-1, module.heads))[-1]  # the second prompt's
            handles.append(module.register_forward_pre_hook(gather, with_kwargs=True))
    with capture(pipe, PROMPTS, tokens='all', daam_compat=True) as trace: paint('sd1', pipe, steps=3)
    for handle in handles: handle.remove()
    merged = []
    for shares in gathered.values():
        size = int(shares.shape[1] ** .5)
        maps = shares.mT.unflatten(-1, (size, size))  # [head, token, row, column]
        merged += [F.interpolate(head[:, None], (16, 16), mode='bicubic').clamp_(min=0)[:, 0] for head in maps]
    exact = torch.stack(merged).mean(0)
    names, maps = trace.daam_maps(1)
    assert names == ('the</w>', 'red</w>', 'ball</w>') and torch.allclose(maps, exact[1:4], atol=1e-6)
    with pytest.raises(ValueError, match='daam_compat=True'), capture(pipe, PROMPTS) as plain:
        paint('sd1', pipe)
        plain.daam_maps(0)


def test_an_ip_adapter_speaks_after_the_text(heard):
    "An IP-Adapter attends to its image in calls of its own; the text's comes first and is the one that is read."
    pipe = tiny_pipeline()
    cross = [name for name in pipe.unet.attn_processors if 'attn2' in name]
    widths = {name: pipe.unet.get_submodule(name.removesuffix('.processor')).to_k.out_features for name in cross}
    noise = torch.Generator().manual_seed(0)
    weights = {f'{2 * i + 1}.to_{x}_ip.weight': torch.randn(widths[name], 32, generator=noise) for i, name in enumerate(cross) for x in 'kv'}
    projection = {'proj.weight': torch.randn(4 * 32, 8, generator=noise), 'proj.bias': torch.zeros(128), 'norm.weight': torch.ones(32), 'norm.bias': torch.zeros(32)}
    plain = paint('sd1', pipe)
    pipe.unet._load_ip_adapter_weights([{'image_proj': projection, 'ip_adapter': weights}])
    embeds = [torch.randn(4, 1, 8, generator=noise)]
    adapted = paint('sd1', pipe, ip_adapter_image_embeds=embeds)
    with capture(pipe, PROMPTS) as trace: captured = paint('sd1', pipe, ip_adapter_image_embeds=embeds)
    assert torch.equal(adapted, captured) and not torch.equal(plain, captured)
    exact = {name: [shares for shares in found if shares.shape[-1] == 16] for name, found in heard.items()}
    assert torch.allclose(trace.token_maps(1)[1].double(), expected('sd1', trace, exact, 1, 16), atol=1e-6)


# ---- devices and gated models

@pytest.mark.parametrize(('device', 'says'), [('cuda', 'this machine has no CUDA device that torch can use; take the device cpu'), ('mps', 'this machine has no Apple GPU')])
def test_a_device_that_is_not_here_is_refused_before_weights_are_read(monkeypatch, tmp_path, device, says):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    monkeypatch.setattr(kit.DiffusionPipeline, 'from_pretrained', lambda *_, **__: pytest.fail('nothing is to be read'))
    with pytest.raises(ValueError, match=says): kit.load_pipeline('owner/model', device)


def test_a_gpu_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='there is no cuda:3 here; the last one is cuda:1'): kit.check_device('cuda:3')


@pytest.mark.parametrize('available', [True, False])
def test_an_apple_gpu_is_a_device(monkeypatch, available):
    """A machine with an Apple GPU is played: what it computes is not."""
    tried = []
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: available)
    monkeypatch.setattr(kit, '_try_out', lambda *arguments: tried.append(arguments))
    if available: assert kit.check_device('mps', torch.float16) == torch.device('mps') and tried == [(torch.device('mps'), torch.float16)]
    else:
        with pytest.raises(ValueError, match='no Apple GPU'): kit.check_device('mps', torch.float16)


@pytest.mark.parametrize('error', [TypeError("Trying to convert BFloat16 to the MPS backend but it does not have support for that dtype."), RuntimeError('MPS does not support float64')])
def test_a_number_type_that_a_device_lacks_is_explained(monkeypatch, error):
    def refuse(device, dtype): raise error
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(kit, '_try_out', refuse)
    with pytest.raises(ValueError, match='mps cannot compute in bfloat16 .*bfloat16 from macOS 14 on, and no float64; take float32'): kit.check_device('mps', torch.bfloat16)


def test_no_memory_is_not_called_a_lack_of_the_number_type(monkeypatch):
    def full(device, dtype): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(kit, '_try_out', full)
    with pytest.raises(torch.OutOfMemoryError): kit.check_device('cpu')


def test_a_cpu_has_bfloat16(): assert kit.check_device('cpu', torch.bfloat16).type == 'cpu'


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_gated_model_says_what_to_do(monkeypatch, wrapped):
    class GatedRepoError(OSError): "What the hub's library raises."

    def refuse(*_, **__):
        try: raise GatedRepoError('401 Client Error. Access to model owner/model is restricted')
        except GatedRepoError as error:
            if not wrapped: raise
            raise OSError('owner/model could not be fetched') from error

    monkeypatch.setattr(kit.DiffusionPipeline, 'from_pretrained', refuse)
    with pytest.raises(PermissionError, match='owner/model is a gated model: .*accept its terms.*hf auth login'): kit.load_pipeline('owner/model')
