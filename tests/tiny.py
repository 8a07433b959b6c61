"""Tiny Stable Diffusion pipelines with random weights, for tests of what does not depend on training."""
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from synseg_kit.prompts import Mention, Prompt
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = 'a the and on of photo red blue cat dog ball grass'.split()
PIECES = {'mushroom': ('mush', 'room</w>'), 'sailboat': ('sail', 'boat</w>')}  # words of two tokens
CLASSES = {'cat': 1, 'dog': 2, 'ball': 3, 'mushroom': 4, 'sailboat': 5, 'grass': 300}


def tiny_tokenizer(max_length=16):
    "CLIP's byte-pair tokenizer on a vocabulary of a few words; two of them split in two."
    letters = [chr(c) for c in range(ord('a'), ord('z') + 1)]
    vocabulary, merges = letters + [c + '</w>' for c in letters], []
    for word in [w + '</w>' for w in WORDS] + [piece for pieces in PIECES.values() for piece in pieces]:
        symbols = [*word.removesuffix('</w>')]
        if word.endswith('</w>'): symbols[-1] += '</w>'
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols[:2] = [''.join(symbols[:2])]
            vocabulary.append(symbols[0])
    tokens = [*dict.fromkeys(vocabulary), '<|startoftext|>', '<|endoftext|>']
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[*dict.fromkeys(merges)], model_max_length=max_length)


def tiny_prompt(text):
    "The prompt of a text: every word of CLASSES in it is a mention."
    mentions, start = [], 0
    for word in text.split(' '):
        if word in CLASSES: mentions.append(Mention(CLASSES[word], start, start + len(word)))
        start += len(word) + 1
    return Prompt(text, tuple(mentions))


def _text_config(tokenizer, **overrides):
    return CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
                          max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                          pad_token_id=tokenizer.pad_token_id, **overrides)


def _autoencoder(channels):
    return AutoencoderKL(block_out_channels=(16, 16, 16), down_block_types=('DownEncoderBlock2D',) * 3, up_block_types=('UpDecoderBlock2D',) * 3,
                         latent_channels=channels, norm_num_groups=8, layers_per_block=1, sample_size=64)


def _sharpen(unet):
    "Enlarge the query weights, so that the maps of a random network are far from flat."
    for name, parameter in unet.named_parameters():
        if name.endswith('to_q.weight'): parameter.data.mul_(6)
    return unet


def _unet(channels=4, **options):
    "A network of two levels on 16x16 latents."
    return _sharpen(UNet2DConditionModel(sample_size=16, in_channels=channels, out_channels=channels, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, **options))


def stable_diffusion(seed, channels=4, max_length=16, text=None, scheduler=None, **network):
    "A pipeline of one text encoder; golden numbers hang on the order in which its parts take random weights: network, autoencoder, text encoder."
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(max_length)
    unet, vae, text_encoder = _unet(channels, cross_attention_dim=32, **network), _autoencoder(channels), CLIPTextModel(_text_config(tokenizer, **text or {}))
    schedule = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **scheduler or {})
    return StableDiffusionPipeline(unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=schedule, safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)


def tiny_pipeline(dtype=torch.float32, channels=4, max_length=16, seed=0):
    "A Stable Diffusion 1 pipeline: 16x16 latents for 64x64 pixels, cross-attention at two resolutions and in the middle block."
    pipe = stable_diffusion(seed, channels, max_length, down_block_types=('CrossAttnDownBlock2D',) * 2, up_block_types=('CrossAttnUpBlock2D',) * 2, attention_head_dim=4)
    return _quiet(pipe, dtype)


def tiny_xl_pipeline(dtype=torch.float32, seed=0):
    "A Stable Diffusion XL pipeline: two text encoders, two transformer layers a block, pooled text and sizes as added conditions."
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    unet = _unet(down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), cross_attention_dim=64,
                 attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type='text_time',
                 addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32)
    pipe = StableDiffusionXLPipeline(vae=_autoencoder(4), text_encoder=CLIPTextModel(_text_config(tokenizer)), tokenizer=tokenizer, tokenizer_2=tiny_tokenizer(),
                                     text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, hidden_act='gelu')), unet=unet,
                                     scheduler=EulerDiscreteScheduler(num_train_timesteps=1000), add_watermarker=False)
    return _quiet(pipe, dtype)


def _quiet(pipe, dtype):
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def generators(count, seed=0):
    "One seeded generator per image."
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
