"""What a generator and a segmenter say together, of one image or of a folder of them."""
import json

import numpy as np
import pytest
import torch

from PIL import Image
from synseg_kit import runs
from synseg_kit.agreement import COUNTED, agree, agree_on_targets, ask_targets, class_shares, match_shares
from synseg_kit.classes import ClassSet, toy_streets
from synseg_kit.datasets import Augmentation, VOCFolder
from synseg_kit.evidence import EvidenceSettings
from synseg_kit.targets import read_targets
from synseg_kit.toyworld import held_out_seeds, render
from synseg_kit.training import Segmenter, SegmenterSettings, build_segmenter
from tiny import tiny_pipeline

PETS = ClassSet('pets', ('cat', 'dog', 'grass'), None)
QUICK = EvidenceSettings(timesteps=(500,), draws=1, templates=('{words}',), windows=0, precision='fp32')


def chances(count=4, side=32, seed=0, classes=3):
    return [*(2 * torch.randn(count, classes, side, side, generator=torch.Generator().manual_seed(seed))).softmax(1)]


def test_shares_are_those_of_the_most_probable_class():
    maps = torch.zeros(3, 10, 10)
    maps[0, :2], maps[1, 2:5], maps[2, 5:] = 1, 1, 1
    assert torch.allclose(class_shares([maps]), torch.tensor([.2, .3, .5]))
    assert torch.allclose(class_shares([maps, torch.ones(3, 10, 10) * torch.tensor([0, 1, 0])[:, None, None]]), torch.tensor([.1, .65, .25]))


def test_large_images_are_counted_in_part_and_rightly():
    maps = torch.zeros(2, 300, 500)
    maps[0, :, :100], maps[1, :, 100:] = 1, 1
    assert maps[0].numel() > 2 * COUNTED
    assert torch.allclose(class_shares([maps]), torch.tensor([.2, .8]), atol=.01)


@pytest.mark.parametrize('wanted', [(1 / 3, 1 / 3, 1 / 3), (.05, .9, .05), (.6, .3, .1)])
def test_a_set_gets_the_shares_it_should_have(wanted):
    matched = match_shares(chances(), torch.tensor(wanted))
    assert torch.allclose(torch.stack(matched).mean((0, 2, 3)), torch.tensor(wanted), atol=2e-3)
    assert torch.allclose(torch.stack(matched).sum(1), torch.ones(4, 32, 32), atol=1e-5)


def test_each_class_is_weighed_by_one_number_for_all_images():
    before, after = torch.stack(chances()), torch.stack(match_shares(chances(), torch.tensor([.2, .5, .3])))
    odds = (after[:, 0] / after[:, 1]) / (before[:, 0] / before[:, 1])
    assert torch.allclose(odds, odds.mean(), rtol=1e-3)


def test_what_cannot_be_stays_impossible_and_what_nobody_knows_is_not_weighed():
    some = chances()
    some[0][2] = 0
    matched = match_shares(some, torch.tensor([.2, .2, .6]))
    assert not matched[0][2].any() and all(one.isfinite().all() for one in matched)
    nowhere = [one * torch.tensor([1., 1., 0.])[:, None, None] for one in chances()]
    assert all(one.isfinite().all() and not one[2].any() for one in match_shares(nowhere, torch.tensor([.2, .2, .6])))
    assert torch.allclose(torch.stack(match_shares(chances(), torch.zeros(3))), torch.stack(chances()), atol=1e-6)


def test_what_a_segmenter_expects_of_all_images_alike_changes_nothing():
    images, told = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(seed=2)
    bias = torch.tensor([20., 1., .1])[:, None, None]
    fair, biased = agree(chances(), told, images, PETS, None), agree([one * bias for one in chances()], told, images, PETS, None)
    assert np.mean([(a.labels == b.labels).mean() for a, b in zip(fair, biased)]) > .999


@pytest.mark.parametrize('borders', [True, False])
def test_no_class_is_given_where_it_cannot_be(borders):
    images, told = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(2, seed=2)
    told[0][1], told[1][[0, 1]] = 0, 0
    masks = agree(chances(2), told, images, PETS, **({} if borders else {'crf': None}))
    assert set(np.unique(masks[0].labels)) == {0, 2} and set(np.unique(masks[1].labels)) == {2}
    assert masks[0].labels.dtype == PETS.dtype
    for mask in masks: assert mask.reliability.shape == (32, 32) and 0 <= mask.reliability.min() and mask.reliability.max() <= 1


def test_it_does_not_matter_how_many_images_are_refined_at_once(monkeypatch):
    images, told = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), chances(5, seed=2)
    together = agree(chances(5), told, images, PETS)
    monkeypatch.setattr('synseg_kit.agreement.AT_ONCE', 2)
    for a, b in zip(together, agree(chances(5), told, images, PETS), strict=True): assert np.array_equal(a.labels, b.labels)


def test_bad_input_is_told_what_is_needed():
    images = torch.rand(4, 3, 32, 32)
    with pytest.raises(ValueError, match='each image needs both'): agree(chances(3), chances(), images, PETS)
    with pytest.raises(ValueError, match=r'needed is \[3, 32, 32\]'): agree(chances(side=16), chances(side=16), images, PETS)
    with pytest.raises(ValueError, match='at least one image'): class_shares([])
    with pytest.raises(ValueError, match='image 1: the generator holds no class'): agree(chances(2), [chances()[0], torch.zeros(3, 32, 32)], images[:2], PETS)
    with pytest.raises(ValueError, match='at least one image'): match_shares([], torch.ones(3) / 3)


@pytest.fixture
def targets(tmp_path):
    "Five images of noise; a caption names two classes."
    rng = np.random.default_rng(0)
    for number in range(5): Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f'{number}.png')
    return read_targets(tmp_path, PETS, (64, 64), scene=('cat', 'grass'), templates=('{words}',), copies=2)


@pytest.fixture(scope='module')
def segmenter():
    settings = SegmenterSettings(encoder='tu-resnet10t', encoder_depth=3, decoder_channels=(32, 16, 16), augmentation=Augmentation(crop=32))
    return Segmenter(build_segmenter(settings, 3), PETS, settings)


def ask(pipe, targets, folder, settings=QUICK): return ask_targets(pipe, targets, PETS, folder, settings, at_once=2, progress=False)


def test_a_generator_is_asked_once_about_each_image(targets, tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    found = ask(pipe, targets, tmp_path / 'evidence')
    assert [one.shape for one in found] == [(2, 16, 16)] * 5 and len([*(tmp_path / 'evidence').iterdir()]) == 3
    (tmp_path / 'evidence/000002.safetensors').unlink()
    monkeypatch.setattr('synseg_kit.agreement.evidence', lambda pipe, pictures, *rest: [torch.ones(2, 16, 16) for _ in pictures])
    again = ask(pipe, targets, tmp_path / 'evidence')
    assert all(torch.equal(a, b) for a, b in zip((*found[:2], found[4]), (*again[:2], again[4]), strict=True)) and all((one == 1).all() for one in again[2:4])


def test_answers_to_another_question_are_refused(targets, tmp_path):
    ask(tiny_pipeline(), targets, tmp_path / 'evidence')
    with pytest.raises(ValueError, match='settings.seed is 0 there, 1 here'): ask(tiny_pipeline(), targets, tmp_path / 'evidence', EvidenceSettings((500,), 1, templates=('{words}',), windows=0, precision='fp32', seed=1))
    with pytest.raises(ValueError, match='names is'): ask(tiny_pipeline(), read_targets(tmp_path, PETS, (64, 64), scene=('dog', 'grass'), templates=('{words}',)), tmp_path / 'evidence')


def test_labels_become_a_dataset_and_go_on_where_they_were(targets, segmenter, tmp_path):
    found = ask(tiny_pipeline(), targets, tmp_path / 'evidence')
    label = lambda **changes: agree_on_targets(segmenter, found, targets, PETS, tmp_path / 'labels', crf=None, progress=False, **{'at_once': 2, **changes})
    labelled = label()
    assert len(labelled) == 5 and {*np.unique([example.labels for example in labelled])} <= {0, 2}
    assert all(example.reliability.max() > 0 for example in labelled)
    files = [file for file in sorted((tmp_path / 'labels').rglob('*')) if file.is_file()]
    first = {file: file.read_bytes() for file in files}
    for file in (tmp_path / 'labels/ImageSets/Segmentation/train.txt', tmp_path / 'labels/JPEGImages/000003.jpg', tmp_path / 'labels/SegmentationClass/000003.png'): file.unlink()
    label()
    assert {file: file.read_bytes() for file in files} == first
    with pytest.raises(ValueError, match='at_once is 2 there, 3 here'): label(at_once=3)
    found[0] = found[0] + 1
    with pytest.raises(ValueError, match='evidence is'): label()


def test_evidence_and_segmenter_must_fit_the_targets(targets, segmenter, tmp_path):
    with pytest.raises(ValueError, match='evidence for 3 images, and there are 5'): agree_on_targets(segmenter, [torch.zeros(2, 16, 16)] * 3, targets, PETS, tmp_path / 'labels')
    with pytest.raises(ValueError, match='the segmenter knows cat, dog, grass'): agree_on_targets(segmenter, [torch.zeros(2, 16, 16)] * 5, targets, ClassSet('others', ('horse', 'grass', 'dog'), None), tmp_path / 'labels')


def test_a_run_labels_a_folder_of_images(tmp_path):
    "Without a score, as nobody knows the truth of a user's own images."
    streets, said = toy_streets(), []
    for number in held_out_seeds(3, 7_000):
        scene = render(number, 'streets')
        Image.fromarray(scene.image).save(tmp_path / f'{number}.png')
        said.append({'file_name': f'{number}.png', 'classes': ['road', 'sky', 'building']})
    (tmp_path / 'said.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in said))
    least = {'folder': str(tmp_path), 'captions': str(tmp_path / 'said.jsonl'), 'images': 2, 'block_size': 2, 'inference_steps': 2, 'train_steps': 1, 'batch_size': 2}
    result = runs.run('domain', tmp_path / 'out', 'smoke', least, progress=False)
    assert result['metrics']['n_images'] == 3 and result['metrics']['painted'] == 2 and 'miou' not in result['metrics']
    labelled = VOCFolder(tmp_path / 'out/labels-1', class_set=streets)
    assert len(labelled) == 3 and {streets.labels[i] for example in labelled for i in np.unique(example.labels)} <= {'road', 'sky', 'building'}
    assert (tmp_path / 'out/segmenter-1/segmenter.json').is_file() and 'Labels' in (tmp_path / 'out/report.html').read_text()
