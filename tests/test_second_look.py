"""A second look: a segmenter corrects the masks of a synthetic dataset."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synseg_kit import cli
from synseg_kit.classes import ClassSet, toy_objects
from synseg_kit.datasets import Sample, SampleWriter, SyntheticFolder
from synseg_kit.evaluation import load_oracle, score_pseudo_masks
from synseg_kit.inference import Inference
from synseg_kit.masks import PseudoMask
from synseg_kit.prompts import find_mentions
from synseg_kit.second_look import relabel, second_opinion
from synseg_kit.toyworld import render, shipped

TOYS = toy_objects()


def beside(labels, far):
    """A mask that lies beside its object, with a void corner."""
    moved = np.roll(labels, far, 1)
    moved[:8, :8] = TOYS.void
    return PseudoMask(moved, np.full(labels.shape, .5, np.float32))


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """A dataset of seven samples in blocks of three, of which one was rejected, with masks beside the truth."""
    folder, scenes = tmp_path_factory.mktemp('first') / 'data', [render(seed) for seed in range(40, 47)]
    with SampleWriter(folder, TOYS, len(scenes), 3, {'settings': {'recipe': 'synseg', 'seed': 5}}) as writer:
        for block in writer.missing:
            samples = [Sample(Image.fromarray(scenes[n].image), beside(scenes[n].labels, 5), find_mentions(scenes[n].prompt.text, TOYS), n) for n in writer.numbers(block)]
            writer.write(block, [None if sample.seed == 4 else sample for sample in samples])
        return writer.finish()


@pytest.fixture(scope='module')
def segmenter(): return load_oracle('objects')


def test_masks_come_nearer_to_the_truth(first, segmenter, tmp_path):
    second = relabel(first, segmenter, tmp_path / 'second', progress=False)
    truths = [render(40 + line['seed']).labels for line in first.metadata]
    before, after = (score_pseudo_masks([example.labels for example in data], truths, TOYS).miou for data in (first, second))
    assert before < .8 and after > before + .1
    for example, line in zip(second, second.metadata, strict=True):
        assert {*np.unique(example.labels)} <= {0, *line['class_ids']}  # nothing is void, nothing unnamed
        assert 0 <= example.reliability.min() and example.reliability.max() <= 1


def test_all_but_the_masks_stays(first, segmenter, tmp_path):
    second = relabel(first, segmenter, tmp_path / 'second', progress=False)
    assert second.names == first.names and second.metadata == first.metadata and second.prompts == first.prompts
    assert [Path(file).read_bytes() for file in second.images] == [Path(file).read_bytes() for file in first.images]
    assert second.about['settings'] == first.about['settings'] and second.about['second_look']['segmenter'] == segmenter.fingerprint
    assert cli.main(['check', str(second.root)]) == 0


def test_an_interrupted_one_goes_on_and_a_different_one_is_refused(first, segmenter, tmp_path):
    whole = relabel(first, segmenter, tmp_path / 'whole', progress=False)
    half = relabel(first, segmenter, tmp_path / 'half', progress=False).root
    kept = (half / 'SegmentationClass/000000.png').stat().st_mtime_ns
    for file in ('blocks/000001.json', 'metadata.jsonl', 'ImageSets/Segmentation/train.txt', 'SegmentationClass/000003.png'): (half / file).unlink()
    again = relabel(first, segmenter, half, progress=False)
    assert [example.labels.tobytes() for example in again] == [example.labels.tobytes() for example in whole]
    assert (half / 'SegmentationClass/000000.png').stat().st_mtime_ns == kept
    with pytest.raises(FileExistsError, match='weight'): relabel(first, segmenter, half, weight=.5, progress=False)
    with pytest.raises(FileExistsError, match='flip'): relabel(first, segmenter, half, Inference(flip=True), progress=False)


def test_a_segmenter_of_other_classes_is_refused(first, tmp_path):
    with pytest.raises(ValueError, match='take one that was trained on these classes'): relabel(first, load_oracle('streets'), tmp_path / 'x', progress=False)
    assert not (tmp_path / 'x').exists()


def test_fingerprints_tell_weights_apart(segmenter):
    other = load_oracle('objects')
    assert other.fingerprint == segmenter.fingerprint
    with torch.no_grad(): next(other.network.parameters()).add_(1)
    assert other.fingerprint != segmenter.fingerprint


def test_opinions_do_not_depend_on_the_order_of_classes():
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(4, 9, 11, generator=generator).softmax(0)
    few, first = ClassSet('few', ('a', 'b', 'c')), PseudoMask(torch.randint(0, 4, (9, 11), generator=generator).numpy().astype(np.uint8), torch.rand(9, 11, generator=generator).numpy())
    made = second_opinion(chances, first, (1, 3), few)
    order = np.array([0, 3, 1, 2])  # old id -> new id
    turned = torch.empty_like(chances)
    turned[torch.from_numpy(order)] = chances
    moved = second_opinion(turned, PseudoMask(order[first.labels].astype(np.uint8), first.reliability), (2, 3), few)
    assert np.array_equal(moved.labels, order[made.labels]) and np.allclose(moved.reliability, made.reliability)


def test_hundreds_of_classes_and_no_background():
    many = ClassSet('many', tuple(f'class{i}' for i in range(300)), None, void=65535)
    chances = torch.full((300, 2, 2), 1e-4)
    chances[299, 0], chances[7, 1] = .9, .9
    made = second_opinion(chances, PseudoMask(np.full((2, 2), many.void, np.uint16), np.zeros((2, 2), np.float32)), (7, 299), many)
    assert made.labels.dtype == np.uint16 and made.labels.tolist() == [[299, 299], [7, 7]]


def test_the_command_line_does_the_same(first, segmenter, tmp_path, capsys):
    arguments = ['relabel', str(first.root), str(shipped('toy-oracle/objects')), '--out', str(tmp_path / 'second'), '--weight', '0.2', '--flip', '--device', 'cpu']
    assert cli.main(arguments) == 0 and '6 images with second opinions' in capsys.readouterr().out
    same = relabel(first, segmenter, tmp_path / 'same', Inference(flip=True), weight=.2, progress=False)
    assert [example.labels.tobytes() for example in SyntheticFolder(tmp_path / 'second')] == [example.labels.tobytes() for example in same]
