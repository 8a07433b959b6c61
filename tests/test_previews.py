"""What a model expects at each step: against diffusers' own figures, on every family of models, and without a trace of the listening."""
import numpy as np
import pytest
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
                       FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler)
from families import CALLS, FAMILIES
from synseg_kit.atlas import PREVIEW, film_part, unpack
from synseg_kit.previews import Foresight, check_scheduler, clean_latents, decode_latents, foresee, shares_of_step
from tiny import generators, tiny_pipeline

TEXT = 'a photo of a cat on grass'


def walk(scheduler, model, steps=6):
    """Denoise with a function; give for each step what the scheduler was told and what it made of it."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 6, 5, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(sample, t) if hasattr(scheduler, 'scale_model_input') else sample, t)
        made = scheduler.step(output, t, sample)
        yield output, t, sample, made
        sample = made.prev_sample


@pytest.mark.parametrize(('Scheduler', 'kind'), [*((Scheduler, kind) for Scheduler in (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler) for kind in ('epsilon', 'v_prediction', 'sample')),
                                                 *((EulerAncestralDiscreteScheduler, kind) for kind in ('epsilon', 'v_prediction'))])
def test_it_is_what_diffusers_says(Scheduler, kind):
    scheduler = Scheduler(prediction_type=kind, **({'clip_sample': False} if Scheduler in (DDIMScheduler, DDPMScheduler) else {}))
    for output, t, sample, made in walk(scheduler, lambda x, t: torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))):
        torch.testing.assert_close(clean_latents(scheduler, output, t, sample), made.pred_original_sample, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('options', [{}, {'algorithm_type': 'sde-dpmsolver++'}, {'use_karras_sigmas': True}, {'prediction_type': 'v_prediction'}])
def test_dpm_solver_agrees(options):
    scheduler = DPMSolverMultistepScheduler(**options)
    for output, t, sample, _ in walk(scheduler, lambda x, t: torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))):
        torch.testing.assert_close(clean_latents(scheduler, output, t, sample), scheduler.model_outputs[-1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('Scheduler', [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler])
def test_a_model_that_knows_the_truth_expects_it_at_every_step(Scheduler):
    """Noise is what remains when the truth is taken out of the input, whatever the scheduler calls its shares."""
    truth = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(7))
    scheduler = Scheduler(**({'skip_prk_steps': True} if Scheduler is PNDMScheduler else {}))

    def knows(x, t):
        kept = scheduler.alphas_cumprod[int(t)] if not hasattr(scheduler, 'sigmas') else 1 / (1 + scheduler.sigmas[scheduler.step_index or 0] ** 2)
        return (x - kept ** .5 * truth) / (1 - kept) ** .5
    for output, t, sample, _ in walk(scheduler, knows): torch.testing.assert_close(clean_latents(scheduler, output, t, sample), truth, rtol=5e-3, atol=5e-3)


def test_a_flow_is_straight():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.)
    truth, noise = torch.randn(2, 1, 4, 6, 5, generator=torch.Generator().manual_seed(7))
    scheduler.set_timesteps(5)
    sample = noise
    for t in scheduler.timesteps:
        sample, before = scheduler.step(noise - truth, t, sample, return_dict=False)[0], sample
        torch.testing.assert_close(clean_latents(scheduler, noise - truth, t, before), truth, rtol=1e-4, atol=1e-4)
        assert sum(shares_of_step(scheduler, t)) == pytest.approx(1)


def test_learned_variances_are_left_out():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    sample, output = torch.randn(2, 1, 4, 6, 6)
    assert torch.equal(clean_latents(scheduler, torch.cat([output, output + 9], 1), 500, sample), clean_latents(scheduler, output, 500, sample))


@pytest.mark.parametrize(('scheduler', 'message'), [(HeunDiscreteScheduler(), '2 times a step'), (EDMEulerScheduler(), 'is not known here')])
def test_schedulers_that_cannot_be_read_are_refused(scheduler, message):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=message), foresee(pipe): pass
    with pytest.raises(ValueError, match=message): check_scheduler(scheduler)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_last_expectation_is_the_image(family):
    """With schedulers whose last step ends where the model points; so decoding is held as well, for every family."""
    pipe = FAMILIES[family]()
    if isinstance(pipe.scheduler, DDIMScheduler): pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    call = {**CALLS[family], 'output_type': 'np', 'num_inference_steps': 3}
    plain = pipe(TEXT, generator=generators(1), **call).images
    with foresee(pipe) as seen: images = pipe(TEXT, generator=generators(1), **call).images
    assert (images == plain).all() and len(seen) == 3
    made = seen.pictures(size=(64, 64))
    assert [picture.shape for picture in made] == [(64, 64, 3)] * 3
    first, last = (abs(made[k] / 255 - images[0]).max() for k in (0, -1))
    assert last < .006 and last < .7 * first  # 16 bits, and then 8


@pytest.mark.parametrize('scheduler', [DDIMScheduler(clip_sample=False), EulerAncestralDiscreteScheduler(), DDPMScheduler(clip_sample=False)])
def test_the_image_and_its_randomness_stay(scheduler):
    """A pipeline looks into `step` for what it takes: eta, a generator."""
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    def paint(): return pipe([TEXT, 'a dog'], generator=generators(2), num_inference_steps=3, output_type='latent', eta=.7 if isinstance(scheduler, DDIMScheduler) else 0).images
    plain = paint()
    with foresee(pipe) as seen: assert torch.equal(paint(), plain)
    assert len(seen) == 3 and seen.latents[0].shape[0] == 2 and not torch.equal(seen.latents[2][0], seen.latents[2][1])


def test_nothing_is_left_behind_also_after_an_error():
    pipe = tiny_pipeline()
    with pytest.raises(RuntimeError, match='stop'), foresee(pipe), foresee(pipe) as inner:
        pipe(TEXT, num_inference_steps=1, output_type='latent')
        assert len(inner) == 1
        raise RuntimeError('stop')
    assert 'step' not in vars(pipe.scheduler)


def test_two_listeners_hear_the_same():
    pipe = tiny_pipeline()
    with foresee(pipe) as one, foresee(pipe) as other: pipe(TEXT, num_inference_steps=2, output_type='latent')
    assert 'step' not in vars(pipe.scheduler) and all(torch.equal(a, b) for a, b in zip(one.latents, other.latents, strict=True))


def test_pictures_are_small_when_asked_and_errors_tell():
    pipe = tiny_pipeline()
    with foresee(pipe) as seen: pipe(TEXT, num_inference_steps=3, output_type='latent')
    assert [picture.shape for picture in seen.pictures(steps=(0, 2), side=16)] == [(16, 16, 3)] * 2
    assert seen.nbytes == 3 * 4 * 16 * 16 * 2 and repr(seen) == 'Foresight of 3 steps, 6 KB'
    with pytest.raises(IndexError, match='there is no image 1: 1 were made'): seen.pictures(1)
    with pytest.raises(ValueError, match='nothing was heard yet'): Foresight(pipe).pictures()
    flux = FAMILIES['flux']()
    with pytest.raises(ValueError, match='a list of patches; give the size'): decode_latents(flux, torch.zeros(1, 64, 16))


def test_a_film_is_one_jpeg_of_whole_blocks():
    import io

    from PIL import Image
    pictures = [np.full((100, 52, 3), value, np.uint8) for value in (20, 120, 220)]
    about, tensors = unpack(film_part(pictures, (0, 4, 9)))
    film = np.asarray(Image.open(io.BytesIO(tensors['film'].tobytes())))
    assert about == {'part': 'previews', 'steps': [0, 4, 9], 'size': [96, 48]} and film.shape == (288, 48, 3)
    for k, value in enumerate((20, 120, 220)): assert abs(film[96 * k:96 * (k + 1)].astype(int) - value).max() <= 2  # no picture shines into the next
    about, _ = unpack(film_part([np.zeros((300, 600, 3), np.uint8)], [0]))
    assert about['size'] == [64, PREVIEW]
    with pytest.raises(ValueError, match='got 3 pictures and 2 steps'): film_part(pictures, (0, 1))
