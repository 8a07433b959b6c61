"""Memory by arithmetic: held against true bytes of tiny models, and against what the allocator says."""
import pytest
import torch
from tiny import tiny_pipeline, tiny_xl_pipeline

from synseg_kit.real_models import REAL_MODELS, Memory, RealModel, count_parameters, denoiser_inputs, estimate, latents_of, shrinks_by, working_bytes


def as_model(pipe, side):
    """A pipeline of this process as a model of the table."""
    plain = lambda part: {key: value for key, value in part.config.items() if not key.startswith('_')}
    return RealModel('tiny', side, {name: (type(pipe.components[name]).__name__, plain(pipe.components[name])) for name in ('unet', 'vae')}, tokens=16)


def allocated(call):
    """Peak of what the CPU's allocator gives out during a call, as torch's profiler records it."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile: made = call()
    events = sorted((event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == '[memory]')
    now = most = 0
    for _, size in events: now += size; most = max(most, now)
    assert made is not None
    return most


@pytest.fixture(scope='module', params=[tiny_pipeline, tiny_xl_pipeline])
def pipe(request): return request.param()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_weights_are_right_to_the_byte(pipe, dtype):
    true = sum(p.numel() * p.element_size() for part in (pipe.unet, pipe.vae) for p in (q.to(dtype) for q in part.parameters()))
    assert estimate(as_model(pipe, 64), dtype=dtype).weights == true


def test_work_by_shapes_alone_is_that_of_true_tensors(pipe):
    side = 64 // shrinks_by(pipe.vae)
    found = estimate(as_model(pipe, 64), 3, dtype=torch.float32)
    inputs, latents = denoiser_inputs(pipe.unet, 6, side, 16, torch.float32, 'cpu'), latents_of(pipe.vae, 3, side, torch.float32, 'cpu')
    assert found.denoising == pytest.approx(working_bytes(lambda: pipe.unet(**inputs)), rel=.03)  # a CPU's attention also keeps the sums of its softmax
    assert found.decoding == pytest.approx(working_bytes(lambda: pipe.vae.decode(latents)), rel=.03)


def test_work_is_what_the_allocator_gives_out(pipe):
    """Two counts that share nothing: our meter adds up what operations return, the profiler hears every allocation, workspaces of kernels too."""
    side = 64 // shrinks_by(pipe.vae)
    inputs, latents = denoiser_inputs(pipe.unet, 6, side, 16, torch.float32, 'cpu'), latents_of(pipe.vae, 3, side, torch.float32, 'cpu')
    for call in (lambda: pipe.unet(**inputs), lambda: pipe.vae.decode(latents)):
        call()  # what is kept from the first call on is not work
        assert working_bytes(call) == pytest.approx(allocated(call), rel=.25)


def test_work_grows_with_images_and_slicing_keeps_it(pipe):
    model = as_model(pipe, 64)
    one, four, sliced = (estimate(model, images, sliced=slices) for images, slices in ((1, False), (4, False), (4, True)))
    assert four.denoising > 3.5 * one.denoising and four.decoding > 3.5 * one.decoding
    assert sliced.decoding == one.decoding and sliced.denoising == four.denoising and four.total == four.weights + max(four.denoising, four.decoding)
    assert estimate(model, dtype=torch.bfloat16).working == pytest.approx(estimate(model, dtype=torch.float32).working / 2, rel=.1)
    with pytest.raises(ValueError, match='images=0; needed is at least 1'): estimate(model, 0)


@pytest.mark.parametrize(('name', 'part', 'count'), [
    ('Stable Diffusion 1.5', 'unet', 859_520_964), ('Stable Diffusion 2.1', 'unet', 865_910_724), ('Stable Diffusion XL', 'unet', 2_567_463_684), ('Stable Diffusion XL', 'vae', 83_653_863),
    ('Stable Diffusion XL', 'text_encoder_2', 694_659_840), ('FLUX.1 dev', 'transformer', 11_901_408_320), ('Stable Diffusion 2.1', 'text_encoder', 340_387_840)])
def test_parameters_are_those_of_the_released_weights(name, part, count): assert count_parameters(REAL_MODELS[name])[part] == count


@pytest.mark.parametrize('name', REAL_MODELS)
def test_every_model_of_the_table_is_one_that_capture_knows(name):
    from synseg_kit.families import FAMILIES
    model = REAL_MODELS[name]
    assert model.parts[model.denoiser][0] in FAMILIES and 'vae' in model.parts and model.hub.count('/') == 1


def test_what_is_not_traced_is_not_guessed():
    assert Memory(10, None, None).total == 10 and Memory(10, 5, None).total == 15 and Memory(10, None, None).working == 0


@pytest.mark.gpu
def test_work_on_a_gpu(pipe):
    """Never run by us, who had no GPU; the bound is wide because an allocator rounds."""
    pipe = pipe.to('cuda')
    side = 64 // shrinks_by(pipe.vae)
    latents = latents_of(pipe.vae, 8, side, torch.float32, 'cuda')
    with torch.no_grad():
        pipe.vae.decode(latents)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pipe.vae.decode(latents)
    assert estimate(as_model(pipe, 64), 8, dtype=torch.float32).decoding == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=.5)
    pipe.to('cpu')
