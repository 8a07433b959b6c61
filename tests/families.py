"Tiny pipelines with random weights of the families of text-to-image models, built offline, for tests of attention capture."
import torch
from diffusers import (AutoencoderDC, AutoencoderKLQwenImage, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel,
                       PixArtSigmaPipeline, PixArtTransformer2DModel, QwenImagePipeline, QwenImageTransformer2DModel, SanaPipeline, SanaTransformer2DModel,
                       SD3Transformer2DModel, StableDiffusion3Pipeline)
from tiny import PIECES, WORDS, _autoencoder, _quiet, _sharpen, _text_config, stable_diffusion, tiny_pipeline, tiny_tokenizer, tiny_xl_pipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (CLIPTextModel, CLIPTextModelWithProjection, Gemma2Config, Gemma2Model, GemmaTokenizer, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, T5Config, T5EncoderModel, T5Tokenizer)

HEADS, TAILS = zip(*(tuple(piece.removesuffix('</w>') for piece in pieces) for pieces in PIECES.values()))
ASCII = [chr(c) for c in range(33, 127)]
TEMPLATE = ('the image by detailing color shape size texture quantity text spatial relationships of objects and background', 'system Describe user assistant')


# ---- tokenizers


def tiny_t5_tokenizer(max_length=64):
    "T5's unigram tokenizer: words with a mark in front, two of them split in two, any other word in letters."
    words = [('▁' + word, -2.0) for word in [*WORDS, *HEADS]] + [(tail, -2.0) for tail in TAILS]
    letters = [(letter, -10.0) for letter in ASCII]
    return T5Tokenizer(vocab=[('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('▁', -4.0), *words, *letters], extra_ids=0, model_max_length=max_length)


def _merges(words):
    "Merges that make each of some words one token, starting from what the words before it make of it."
    merges = []
    for word in words:
        symbols = f' {" ".join(word)} '
        for left, right in merges: symbols = symbols.replace(f' {left} {right} ', f' {left}{right} ')
        symbols = symbols.split()
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols[:2] = [''.join(symbols[:2])]
    return merges


def tiny_gemma_tokenizer():
    "Gemma's byte-pair tokenizer: a space is part of the word behind it, unknown letters fall back to bytes."
    merges = _merges(['▁' + word for word in [*WORDS, *HEADS]] + [*WORDS, *HEADS, *TAILS])
    tokens = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', *(f'<0x{byte:02X}>' for byte in range(256)), '\n', '▁', *ASCII, *map(''.join, merges)]
    return GemmaTokenizer(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=merges, add_bos_token=True)


def tiny_qwen_tokenizer():
    "Qwen's byte-level byte-pair tokenizer: the words of the pipeline's template are whole, so its prefix has the 34 tokens that the pipeline drops."
    inner, first = (words.split() for words in TEMPLATE)
    merges = _merges(['Ġ' + word for word in [*WORDS, *HEADS, *inner]] + [*WORDS, *HEADS, *TAILS, *first])
    tokens = dict.fromkeys([*sorted(ByteLevel.alphabet()), *map(''.join, merges), '<|endoftext|>', '<|im_start|>', '<|im_end|>'])
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, extra_special_tokens=['<|im_start|>', '<|im_end|>'])


# ---- parts


def _t5(tokenizer, width=32):
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0,
                                   feed_forward_proj='gated-gelu'))


def _shifted_autoencoder(channels):
    "An autoencoder with the shift that the flow pipelines undo before they decode."
    vae = _autoencoder(channels)
    vae.register_to_config(shift_factor=.1)
    return vae


def _sharpen_transformer(transformer):
    "Enlarge the query weights, or where queries are normalized the weights of the norm, so that the maps of a random network are far from flat."
    for name, parameter in _sharpen(transformer).named_parameters():
        if name.endswith('add_q_proj.weight'): parameter.data.mul_(6)
        if name.endswith('attn2.to_q.weight'): parameter.data.mul_(3)
        if name.endswith(('norm_q.weight', 'norm_added_q.weight')): parameter.data.mul_(3)
    return transformer


def _ready(pipe, dtype):
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module): part.eval()
    return _quiet(pipe, dtype)


# ---- pipelines


def tiny_sd2(dtype=torch.float32, seed=0):
    "A Stable Diffusion 2.1 pipeline: linear projections, heads given by level, upcast attention, prediction of the velocity."
    pipe = stable_diffusion(seed, text=dict(hidden_act='gelu'), scheduler=dict(prediction_type='v_prediction'), down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
                            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True)
    return _ready(pipe, dtype)


def _sd3(dtype, seed, **options):
    torch.manual_seed(seed)
    tokenizer, tokenizer_3 = tiny_tokenizer(), tiny_t5_tokenizer()
    transformer = SD3Transformer2DModel(sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
                                        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=16, **options)
    pipe = StableDiffusion3Pipeline(transformer=_sharpen_transformer(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                                    vae=_shifted_autoencoder(4), tokenizer=tokenizer, tokenizer_2=tiny_tokenizer(), tokenizer_3=tokenizer_3,
                                    text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer)),
                                    text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, hidden_act='gelu')), text_encoder_3=_t5(tokenizer_3, 64))
    return _ready(pipe, dtype)


def tiny_sd3(dtype=torch.float32, seed=0):
    "A Stable Diffusion 3 pipeline: joint attention over the image, then the tokens of CLIP, then those of T5."
    return _sd3(dtype, seed)


def tiny_sd35(dtype=torch.float32, seed=0):
    "A Stable Diffusion 3.5 pipeline: normalized queries and keys, and an attention of the image to itself beside the first joint one."
    return _sd3(dtype, seed, qk_norm='rms_norm', dual_attention_layers=(0,))


def tiny_flux(dtype=torch.float32, seed=0):
    "A FLUX pipeline: two double and two single blocks, the tokens of T5 before the image, guidance as a number given to the network."
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
                                         pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6))
    pipe = FluxPipeline(transformer=_sharpen_transformer(transformer), vae=_shifted_autoencoder(4), text_encoder=CLIPTextModel(_text_config(tokenizer)),
                        tokenizer=tokenizer, text_encoder_2=_t5(tokenizer_2), tokenizer_2=tokenizer_2,
                        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
    return _ready(pipe, dtype)


def tiny_pixart(dtype=torch.float32, seed=0):
    "A PixArt-Sigma pipeline: cross-attention to the tokens of T5, with a mask."
    torch.manual_seed(seed)
    tokenizer = tiny_t5_tokenizer()
    transformer = PixArtTransformer2DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
                                           sample_size=16, patch_size=2, caption_channels=32)
    pipe = PixArtSigmaPipeline(tokenizer=tokenizer, text_encoder=_t5(tokenizer), vae=_autoencoder(4), transformer=_sharpen_transformer(transformer),
                               scheduler=DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_end=.002))
    return _ready(pipe, dtype)


def tiny_sana(dtype=torch.float32, seed=0):
    "A Sana pipeline: linear attention of the image to itself, cross-attention with a mask to the last tokens of Gemma behind an instruction."
    torch.manual_seed(seed)
    tokenizer = tiny_gemma_tokenizer()
    text_encoder = Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                            num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, initializer_range=.2))
    vae = AutoencoderDC(latent_channels=4, encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, encoder_layers_per_block=(1,) * 4,
                        decoder_layers_per_block=(1,) * 4, encoder_qkv_multiscales=((),) * 4, decoder_qkv_multiscales=((),) * 4)
    transformer = SanaTransformer2DModel(in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
                                         cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=32, sample_size=8, patch_size=1)
    pipe = SanaPipeline(tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=_sharpen_transformer(transformer),
                        scheduler=DPMSolverMultistepScheduler(num_train_timesteps=1000, prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0))
    return _ready(pipe, dtype)


def tiny_qwen(dtype=torch.float32, seed=0):
    "A Qwen-Image pipeline: joint attention over as many tokens as the longest prompt has, then the image, with a mask where prompts differ in length."
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[2, 3, 3]), initializer_range=.2)
    vision = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[0])
    special = dict(bos_token_id=None, eos_token_id=tokenizer.convert_tokens_to_ids('<|im_end|>'), pad_token_id=tokenizer.pad_token_id)
    text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text | special, vision_config=vision))
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True], latents_mean=[0.0] * 4,
                                 latents_std=[1.0] * 4)
    transformer = QwenImageTransformer2DModel(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
                                              axes_dims_rope=(4, 6, 6))
    pipe = QwenImagePipeline(transformer=_sharpen_transformer(transformer), vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
                             scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    return _ready(pipe, dtype)


FAMILIES = {'sd1': tiny_pipeline, 'sd2': tiny_sd2, 'sdxl': tiny_xl_pipeline, 'sd3': tiny_sd3, 'sd35': tiny_sd35, 'flux': tiny_flux, 'pixart': tiny_pixart,
            'sana': tiny_sana, 'qwen': tiny_qwen}
_COMMON = dict(height=64, width=64, output_type='latent')
CALLS = {name: _COMMON | dict(guidance_scale=5.0) for name in ('sd1', 'sd2', 'sdxl')}
CALLS |= {name: _COMMON | dict(guidance_scale=5.0, max_sequence_length=24) for name in ('sd3', 'sd35')}
CALLS |= {name: _COMMON | dict(guidance_scale=4.5, max_sequence_length=24, use_resolution_binning=False, clean_caption=False) for name in ('pixart', 'sana')}
CALLS |= {'flux': _COMMON | dict(guidance_scale=3.5, max_sequence_length=24), 'qwen': _COMMON | dict(true_cfg_scale=1.0, max_sequence_length=64)}


def guided(family, prompts):
    "The keyword arguments of a call with classifier-free guidance: FLUX and Qwen-Image want a negative prompt for each prompt."
    return CALLS[family] | (dict(true_cfg_scale=3.0, negative_prompt=[' '] * prompts) if family in ('flux', 'qwen') else {})
