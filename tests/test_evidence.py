"""Evidence: sentences differ in one word, errors are those of a velocity, places stay where they are, and bad input is refused."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synseg_kit.classes import ClassSet, toy_objects
from synseg_kit.evaluation import pointing_auc
from synseg_kit.evidence import Asked, EvidenceSettings, evidence, evidence_masks, gains, in_place, label_targets, sentences, stretched, windows_of
from synseg_kit.prompts import Prompt
from synseg_kit.targets import View, read_targets
from synseg_kit.toyworld import held_out_seeds, load_toy_pipeline, render
from tiny import tiny_pipeline, tiny_xl_pipeline
from tqdm.auto import tqdm

PETS = ClassSet('pets', ('cat', 'dog', 'ball', 'grass'), background=None)
QUICK = EvidenceSettings(timesteps=(300, 700), draws=1, windows=0, precision='fp32')


def pictures(count=2, side=64, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_sentences_differ_in_one_word():
    names = ['cat', 'dog', 'ball']
    for seed in range(20):
        whole, *without = sentences(names, EvidenceSettings(), np.random.default_rng(seed))
        assert len(without) == 3 and all(name in whole for name in names)
        for name, text in zip(names, without, strict=True):
            assert name not in text and all(other in text for other in names if other != name)
            assert [word for word in whole.replace(',', '').split() if word in names and word != name] == [word for word in text.replace(',', '').split() if word in names]
    assert sentences(['cat'], EvidenceSettings(templates=('{objects}',)), np.random.default_rng(0)) == ['a cat', '']
    assert sentences(['cat'], EvidenceSettings(templates=('{words}',)), np.random.default_rng(0)) == ['cat', '']


@pytest.mark.parametrize('per_side', [2, 3])
def test_windows_cover_an_image_and_know_their_place(per_side):
    pixels = pictures(side=64)
    seen, count = [*windows_of(pixels, per_side)], torch.zeros(64, 64)
    assert len(seen) == per_side ** 2
    for place, view in seen:
        count[place] += 1
        assert view.shape == pixels.shape
        assert torch.allclose(torch.nn.functional.avg_pool2d(view, 2).mean(), pixels[..., *place].mean(), atol=.01)
    assert count.min() >= 1 and not [*windows_of(pixels, 0)]


def test_contrast_is_stretched_for_each_colour_of_each_image():
    pixels = torch.linspace(.2, .4, 64 * 64).view(1, 1, 64, 64) * torch.tensor([1., .5, 2.])[:, None, None]
    seen = stretched(pixels, .01)
    assert torch.allclose(seen.amin((2, 3)), torch.zeros(1, 3)) and torch.allclose(seen.amax((2, 3)), torch.ones(1, 3))
    assert torch.allclose(seen[0, 0], seen[0, 2], atol=1e-4) and torch.allclose(seen.median(), torch.tensor(.5), atol=.01)
    assert (seen[0, 0] == 0).float().mean().item() == pytest.approx(.01, abs=.002)
    assert stretched(torch.full((1, 3, 8, 8), .3), .01).isfinite().all()


def test_every_second_draw_sees_more_contrast(monkeypatch):
    asked_with = []
    def errors(self, latents, timestep, which, text, seed):
        asked_with.append(latents)
        return torch.zeros(len(which), *latents.shape[-2:])
    monkeypatch.setattr(Asked, 'errors', errors)
    pipe, faint = tiny_pipeline(), pictures(1) * .2 + .4
    evidence(pipe, faint, [['cat']], PETS, EvidenceSettings((500,), 4, windows=0), progress=False)
    first, second, third, fourth = asked_with
    assert torch.equal(first, third) and torch.equal(second, fourth) and not torch.equal(first, second)
    asked_with.clear()
    evidence(pipe, faint, [['cat']], PETS, EvidenceSettings((500,), 2, windows=0, stretch=0.), progress=False)
    assert torch.equal(*asked_with)
    with pytest.raises(ValueError, match='below 0.5'): EvidenceSettings(stretch=.5)


@pytest.mark.parametrize('kind', ['epsilon', 'sample', 'v_prediction'])
def test_errors_are_those_of_a_velocity_whatever_is_predicted(kind):
    pipe = tiny_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    asked, timestep = Asked(pipe, QUICK), 400
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn(1, 4, 16, 16, generator=generator) for _ in range(3))
    share = asked.scheduler.alphas_cumprod[timestep]
    noisy = share.sqrt()*clean + (1 - share).sqrt()*noise
    guess = {'epsilon': (noisy - share.sqrt()*wrong)/(1 - share).sqrt(), 'sample': wrong}                    # of an image `wrong`, in each way
    guess['v_prediction'] = share.sqrt()*guess['epsilon'] - (1 - share).sqrt()*wrong
    truth = {'epsilon': noise, 'sample': clean, 'v_prediction': share.sqrt()*noise - (1 - share).sqrt()*clean}
    found = (guess[kind] - truth[kind]).square().sum() * asked.weight[timestep]
    wanted = (guess['v_prediction'] - truth['v_prediction']).square().sum()
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_a_word_that_helps_somewhere_is_found_there():
    class Half(Asked):
        "Predicts the left half better where the text names a cat, and everything worse where it names a dog."
        def errors(self, latents, timestep, which, text, seed):
            out = torch.ones(len(which), *latents.shape[-2:])
            for number, states in enumerate(text.states):
                out[number, :, :8] -= .5 * float((states == cat).all(1).any())
                out[number] += .25 * float((states == dog).all(1).any())
            return out
    pipe = tiny_pipeline()
    asked = Half(pipe, QUICK)
    words = {}
    def encode(pipe, texts):
        from synseg_kit.lora import Encoded
        return Encoded(torch.stack([torch.stack([words.setdefault(word, torch.full((1,), float(len(words)))) for word in (*text.replace(',', '').split(), *[''] * 12)[:12]]) for text in texts]), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('synseg_kit.evidence.encode_all', encode)
        encode(pipe, ['cat dog'])
        cat, dog = words['cat'], words['dog']
        (found,) = gains(asked, [torch.zeros(1, 4, 16, 16)], [['cat', 'dog', 'ball']], tqdm(disable=True))
    assert torch.allclose(found[0, :, :8], torch.tensor(.5)) and not found[0, :, 8:].any()
    assert torch.allclose(found[1], torch.tensor(-.25)) and not found[2].any()


@pytest.mark.parametrize('build', [tiny_pipeline, tiny_xl_pipeline])
def test_it_does_not_matter_how_many_predictions_are_made_at_once(build):
    pipe, names = build(), [['cat', 'dog'], ['ball', 'grass', 'cat']]
    alone = evidence(pipe, pictures(), names, PETS, EvidenceSettings((500,), 2, windows=2, batch_size=1, precision='fp32'), progress=False)
    together = evidence(pipe, pictures(), names, PETS, EvidenceSettings((500,), 2, windows=2, batch_size=64, precision='fp32'), progress=False)
    assert [one.shape for one in alone] == [(2, 32, 32), (3, 32, 32)]
    for a, b in zip(alone, together, strict=True):
        assert a.abs().max() > 0 and torch.allclose(a, b, atol=1e-4 * float(a.abs().max()) + 1e-6)


def test_the_same_seed_finds_the_same_and_another_one_does_not():
    pipe = tiny_pipeline()
    ask = lambda seed: evidence(pipe, pictures(), [['cat', 'dog']] * 2, PETS, EvidenceSettings((500,), 1, windows=0, precision='fp32', seed=seed), progress=False)[0]
    assert torch.equal(ask(1), ask(1)) and not torch.equal(ask(1), ask(2))
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_every_pixel_gets_the_class_that_explains_it():
    found = [torch.zeros(2, 16, 16)]
    found[0][0, :, :8], found[0][1, :, 8:] = 1, 1
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    (mask,), (turned,) = evidence_masks(found, image, [['dog', 'cat']], PETS), evidence_masks([found[0].flip(0)], image, [['cat', 'dog']], PETS)
    assert mask.labels.shape == (64, 64) and (mask.labels[:, :31] == PETS.id_of('dog')).all() and (mask.labels[:, 33:] == PETS.id_of('cat')).all()
    assert (mask.labels == turned.labels).all()
    (single,) = evidence_masks([torch.rand(1, 16, 16)], image, [['grass']], PETS)
    assert (single.labels == PETS.id_of('grass')).all()


def test_the_toy_generator_explains_its_things():
    scenes = [render(seed, count=2) for seed in held_out_seeds(6, 4_000)]
    names = [[toy_objects().labels[i] for i in scene.prompt.class_ids] for scene in scenes]
    settings = EvidenceSettings((500, 700), draws=2, windows=0)
    found = evidence(load_toy_pipeline(), [scene.image for scene in scenes], names, toy_objects(), settings, progress=False)
    scores = [pointing_auc(heat, scene.labels == toy_objects().id_of(name)) for scene, said, maps in zip(scenes, names, found) for name, heat in zip(said, maps)]
    assert np.mean(scores) > .75, scores


@pytest.mark.parametrize('box', [(0, 0, 64, 64), (32, 0, 96, 64), (64, 0, 128, 64)])
def test_labels_of_a_view_lie_where_it_was_cut(box):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16) % 4
    whole = in_place(View(Path('a.png'), box, False, Prompt('a cat'), (64, 128)), labels, 255)
    assert whole.shape == (16, 32) and (whole[:, box[0] // 4:box[2] // 4] == labels).all()
    assert (whole != 255).sum() == 256


def test_targets_are_asked_and_their_pieces_named(tmp_path, monkeypatch):
    "A cat at the left of what the generator sees, a dog at the right; sides of a wide image that it does not see are void."
    def found(pipe, pictures, names, class_set, settings, progress):
        asked.append(len(pictures))
        maps = torch.zeros(2, 16, 16)
        maps[0, :, :8], maps[1, :, 8:] = 1, 1
        return [maps if said == ['cat', 'dog'] else maps.flip(0) for said in names]
    asked = []
    monkeypatch.setattr('synseg_kit.evidence.evidence', found)
    for number, (height, width) in enumerate([(64, 64), (64, 128), (128, 64)]):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, width // 2:] = 255
        Image.fromarray(picture).save(tmp_path / f'{number}.png')
    options = dict(scene=('cat', 'dog'), templates=('{objects}',), pieces=20, piece_size=(.2, .25))
    targets = read_targets(tmp_path, PETS, (64, 64), **options)
    labels = label_targets(tiny_pipeline(), targets, PETS, at_once=2)
    assert asked == [2, 1] and [labels[tmp_path / f'{number}.png'].shape for number in range(3)] == [(16, 16), (16, 32), (32, 16)]
    assert (labels[tmp_path / '1.png'][:, :8] == 255).all() and (labels[tmp_path / '1.png'][:, 24:] == 255).all()
    seen = set()
    for view in read_targets(tmp_path, PETS, (64, 64), labels=labels, least=.3, **options).views:
        left, right, middle = view.box[0], view.box[2], view.image_size[1] / 2
        if view.file.name == '0.png' and (right < middle - 4 or left > middle + 4):
            assert view.prompt.class_ids == ((0,) if right < middle else (1,))
            seen.add(view.prompt.class_ids)
    assert len(seen) == 2


def test_a_tiny_generator_labels_targets(tmp_path):
    for number in range(3): Image.fromarray((255 * pictures(1, seed=number)[0].permute(1, 2, 0)).byte().numpy()).save(tmp_path / f'{number}.png')
    targets = read_targets(tmp_path, PETS, (64, 64), scene=('cat', 'grass'), templates=('{words}',))
    for labels in label_targets(tiny_pipeline(), targets, PETS, QUICK, progress=False).values(): assert labels.shape == (16, 16) and set(np.unique(labels)) <= {0, 3}


def test_bad_input_is_refused():
    pipe = tiny_pipeline()
    def ask(names): return evidence(pipe, pictures(), names, PETS, QUICK, progress=False)
    with pytest.raises(ValueError, match='2 images and names for 1'): ask((('cat',),))
    with pytest.raises(ValueError, match='image 1 has no names'): ask((('cat',), ()))
    with pytest.raises(ValueError, match='horse'): ask((('cat',), ('horse',)))
    with pytest.raises(ValueError, match='twice'): ask((('cat', 'cat'), ('dog',)))
    with pytest.raises(ValueError, match='fills the image'): evidence_masks([torch.zeros(1, 8, 8)], pictures(1), [['cat']], toy_objects())
    for wrong, why in (({'timesteps': ()}, 'timesteps'), ({'timesteps': (0,)}, 'timesteps'), ({'draws': 0}, 'draws'), ({'windows': 1}, 'windows'), ({'precision': 'fp8'}, 'precision'),
                       ({'templates': ('a photo',)}, 'template'), ({'batch_size': 0}, 'batch_size')):
        with pytest.raises(ValueError, match=why): EvidenceSettings(**wrong)


def test_only_u_nets_are_asked():
    from families import tiny_sd3
    with pytest.raises(TypeError, match='U-Nets'): evidence(tiny_sd3(), pictures(), [['cat']] * 2, PETS, QUICK, progress=False)
