"""Training: the same weights whatever happens on the way, and a segmenter that takes images as they come."""
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.optim import Muon
from torch.nn import functional as F

from synseg_kit import robust, training
from synseg_kit.classes import ClassSet
from synseg_kit.datasets import NO_AUGMENTATION, Augmentation, Example
from synseg_kit.history import HISTORY, read_history, write_history
from synseg_kit.robust import ADELE, OBJECTIVES, CoTraining, Objective, Plain
from synseg_kit.training import (CHECKPOINT, OPTIMISERS, Segmenter, SegmenterSettings, adamw, build_optimiser, build_segmenter, follow, learning_rate_at, load_batches, load_segmenter, log_to, make_learners,
                                 muon, state_of, together, train, training_state)

SHAPES = ClassSet('shapes', ('square', 'stripe'))
SMALL = SegmenterSettings(encoder='tu-mobilenetv3_small_050', decoder_channels=(32, 24, 16, 12, 8), augmentation=Augmentation(crop=32, hue=0., blur=0.), steps=14, batch_size=4,
                          checkpoint_every=5)


def examples(count=6, size=32):
    """Make squares and stripes on noise."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        image, labels = rng.integers(90, size=(size, size, 3), dtype=np.uint8), np.zeros((size, size), np.uint8)
        row, column = rng.integers(size // 2, size=2)
        labels[row:row + size // 3, column:column + size // 3] = 1
        labels[-4:] = 2
        image[labels == 1] += np.uint8([150, 0, 0])
        image[labels == 2] += np.uint8([0, 0, 150])
        made.append(Example(Image.fromarray(image), labels, np.full((size, size), .5, np.float32), f'{number}'))
    return made


def weights(segmenter): return segmenter.network.state_dict()


def assert_same(a, b):
    """Compare two state dictionaries bit for bit."""
    assert a.keys() == b.keys()
    for name in a: assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of a training without a break."""
    return tmp_path_factory.mktemp('whole')


@pytest.fixture(scope='module')
def unbroken(whole):
    """Train once without a break."""
    return train(examples(), SHAPES, SMALL, whole, progress=False)


class Stopped(Exception):
    """Raised in the middle of a training."""


def stop(entry):
    if entry['step'] >= 12: raise Stopped


# ---------- the same weights, whatever happens

def test_one_seed_gives_one_training(unbroken):
    assert_same(weights(unbroken), weights(train(examples(), SHAPES, SMALL, progress=False)))
    other = weights(train(examples(), SHAPES, replace(SMALL, seed=1, steps=2), progress=False))
    assert not torch.equal(other['segmentation_head.0.weight'], weights(unbroken)['segmentation_head.0.weight'])


@pytest.mark.parametrize('changes', [{}, {'channels_last': False}, {'ema_decay': 0.}, {'precision': 'fp32', 'schedule': 'cosine'}, {'optimiser': 'muon'}], ids=str)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, unbroken, changes):
    settings = replace(SMALL, **changes)
    whole = train(examples(), SHAPES, settings, progress=False) if changes else unbroken
    with pytest.raises(Stopped): train(examples(), SHAPES, replace(settings, checkpoint_every=6), tmp_path, log=stop, progress=False)
    assert not (tmp_path / 'segmenter.json').exists()
    resumed = train(examples(), SHAPES, settings, tmp_path, progress=False)
    assert_same(weights(whole), weights(resumed))
    if settings.ema_decay: assert_same(whole.raw.state_dict(), resumed.raw.state_dict())


SCRIPT = '''
import os
import signal
import sys
import time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_training import CHECKPOINT, SHAPES, SMALL, examples
from synseg_kit.training import train

def start():
    if child := os.fork(): return child
    status = 1
    try:
        train(examples(), SHAPES, SMALL, sys.argv[2], progress=False)
        status = 0
    finally: os._exit(status)

killed = start()
while not Path(sys.argv[2], CHECKPOINT).exists() and os.waitid(os.P_PID, killed, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.005)
os.kill(killed, signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL, 'the training ended before it could be killed'
sys.exit(os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]))
'''


def test_a_killed_training_goes_on(tmp_path, whole, unbroken):
    """Both processes, the killed one and the one that goes on, come from a third, which has imported what takes seconds."""
    assert subprocess.run([sys.executable, '-c', SCRIPT, str(Path(__file__).parent), str(tmp_path)]).returncode == 0
    assert (tmp_path / 'model.safetensors').read_bytes() == (whole / 'model.safetensors').read_bytes()
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, HISTORY, 'model.safetensors', 'segmenter.json']
    assert [look['step'] for look in read_history(tmp_path)] == [look['step'] for look in read_history(whole)] == [5, 10, 14]


def test_how_samples_are_loaded_changes_nothing(unbroken):
    assert_same(weights(unbroken), weights(train(examples(), SHAPES, replace(SMALL, cache_gb=0., num_workers=2), progress=False)))


def test_a_finished_training_is_not_trained_again(whole, unbroken):
    steps = []
    again = train(examples(), SHAPES, SMALL, whole, log=steps.append, progress=False)
    assert steps == []
    assert_same(weights(unbroken), weights(again))


def test_another_training_in_the_folder_is_refused(tmp_path):
    short = replace(SMALL, steps=2)
    train(examples(), SHAPES, short, tmp_path, progress=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FileExistsError, match='steps is 2 there, 3 here'): train(examples(), SHAPES, replace(short, steps=3), tmp_path, progress=False)
    with pytest.raises(FileExistsError, match='examples is 6 there, 5 here'): train(examples(5), SHAPES, short, tmp_path, progress=False)
    with pytest.raises(FileExistsError, match='objective is "Plain" there, "Weighted" here'): train(examples(), SHAPES, short, tmp_path, objective='weighted', progress=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    train(examples(), SHAPES, replace(short, steps=3), tmp_path, resume=False, progress=False)


def test_the_callers_random_numbers_stay(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(examples(), SHAPES, replace(SMALL, steps=1), progress=False)
    assert torch.equal(torch.rand(3), expected)


IN_PARALLEL = replace(SMALL, steps=3, precision='fp32', augmentation=replace(NO_AUGMENTATION, crop=32))
PAIR = CoTraining(alone=0.)  # not mixed: mixing has partners within a process, so other ones than in a single process


OF_TWO = {'plain': 'plain', 'co_training': PAIR}
LAUNCHED = """
import json
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_training import IN_PARALLEL, OF_TWO, SHAPES, examples
from synseg_kit.training import log_to, train

class Tracker:
    def log(self, values, step): looks.append({'step': step, **values})

rank = os.environ['RANK']
for name, objective in OF_TWO.items():
    looks, folder = [], f'{sys.argv[2]}/{name}'
    train(examples(), SHAPES, IN_PARALLEL, folder + '/out', objective=objective, log=log_to(Tracker()), progress=False).save(f'{folder}/rank{rank}')
    Path(folder, 'looks' + rank).write_text(json.dumps(looks))
"""


@pytest.fixture(scope='module')
def launched(tmp_path_factory):
    """What two processes of a script left that only trains, one training after another; `--multi_gpu` is what starts several, with or without a GPU."""
    folder = tmp_path_factory.mktemp('launched')
    (folder / 'script.py').write_text(LAUNCHED)
    command = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0',
               str(folder / 'script.py'), str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'HF_HOME': str(folder), 'CUDA_VISIBLE_DEVICES': ''})  # no configuration of the machine's
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize('name', OF_TWO)
def test_two_processes_train_as_one(launched, name):
    folder, objective = launched / name, OF_TWO[name]
    first, second = (load_file(folder / f'rank{rank}/model.safetensors') for rank in (0, 1))
    assert_same(first, second)
    assert_same(first, load_file(folder / 'out/model.safetensors'))
    one = train(examples(), SHAPES, IN_PARALLEL, objective=objective, progress=False)
    begin = together([build_segmenter(IN_PARALLEL, 3, member) for member in range(1 if name == 'plain' else 2)]).state_dict()
    moved, apart = 0., 0.
    for key, tensor in weights(one).items():
        if not tensor.is_floating_point(): continue
        moved, apart = moved + (tensor - begin[key]).square().sum().item(), apart + (tensor - first[key]).square().sum().item()
    assert apart < 1e-4 * moved  # squares: one per cent of the way
    images = [example.image for example in examples()]
    for a, b in zip(one.probabilities(images), load_segmenter(folder / 'out').probabilities(images)): torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


@pytest.mark.parametrize('name', OF_TWO)
def test_of_two_processes_one_tells(launched, name):
    told = [json.loads((launched / name / f'looks{rank}').read_text()) for rank in (0, 1)]
    assert told[1] == [] and told[0] == read_history(launched / name / 'out') and [look['step'] for look in told[0]] == [3]


def test_a_batch_must_be_shared_evenly():
    with pytest.raises(ValueError, match='cannot be parted in accumulate=4'): load_batches(examples(), SHAPES, replace(SMALL, accumulate=4), world=2)


def plain_network(settings, num_classes, member=0):
    "A network without batch statistics."
    torch.manual_seed(member)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.ReLU(), torch.nn.Conv2d(8, num_classes, 1))


def test_parts_of_a_batch_add_up(monkeypatch):
    monkeypatch.setattr(training, 'build_segmenter', plain_network)
    settings = replace(SMALL, precision='fp32', augmentation=replace(NO_AUGMENTATION, crop=32), steps=6)
    seen = []

    @dataclass(frozen=True)
    class Counting(Plain):
        def __call__(self, networks, lesson):
            seen.append(len(lesson.images))
            return super().__call__(networks, lesson)
    whole, parts = (weights(train(examples(), SHAPES, replace(settings, accumulate=n), objective=Counting(), progress=False)) for n in (1, 4))
    assert seen == [4] * 6 + [1] * 24
    for name in whole: torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-4)


# ---------- two networks

def test_two_networks_start_with_one_encoder_and_end_as_one_segmenter(tmp_path):
    source = build_segmenter(replace(SMALL, seed=3), 3).encoder.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / 'backbone.safetensors')
    settings = replace(SMALL, encoder_weights=str(tmp_path / 'backbone.safetensors'), optimiser='muon', steps=2)
    learners = make_learners(settings, 3, 2)
    for learner in learners:
        assert_same(learner.network.encoder.state_dict(), source)
        inner = [name for name, weight in learner.network.named_parameters() if learner.optimiser.state[weight]['use_muon']]
        assert inner and not any(name.startswith('encoder.') for name in inner)
    heads = [learner.network.segmentation_head[0].weight for learner in learners]
    assert not torch.equal(*heads)
    assert {name.split('.')[0] for name in state_of(learners)} == {'0', '1'}
    segmenter = train(examples(), SHAPES, settings, tmp_path / 'pair', objective=CoTraining(), progress=False)
    images = [example.image for example in examples()]
    apart = [Segmenter(member, SHAPES, settings) for member in segmenter.network.members]
    for both, one, other in zip(segmenter.probabilities(images), *(member.probabilities(images) for member in apart)):
        torch.testing.assert_close(both, torch.softmax((one.log() + other.log()) / 2, 0), atol=1e-4, rtol=1e-4)
    assert not torch.equal(weights(apart[0])['segmentation_head.0.weight'], weights(apart[1])['segmentation_head.0.weight'])
    again = load_segmenter(tmp_path / 'pair')
    assert_same(weights(again), weights(segmenter))
    assert again.objective == segmenter.objective == repr(CoTraining())
    assert again.predict(images, short_side=64)[0].shape == (32, 32)
    assert segmenter.last.network.state_dict().keys() == weights(segmenter).keys()
    assert sorted(os.listdir(tmp_path / 'pair')) == [CHECKPOINT, HISTORY, 'model.safetensors', 'segmenter.json']


@pytest.mark.parametrize('name', OBJECTIVES)
def test_every_objective_trains_and_resumes(tmp_path, name):
    settings = replace(SMALL, steps=6, checkpoint_every=3, ema_decay=0. if name == 'self_training' else .98)
    made = robust.objective(name, **{'co_training': {'alone': 0., 'warm_up': 0., 'mix': .5}, 'self_training': {'warm_up': 0.}}.get(name, {}))
    whole = train(examples(), SHAPES, settings, objective=made, progress=False)
    def stop_early(entry):
        if entry['step'] >= 3: raise Stopped
    with pytest.raises(Stopped): train(examples(), SHAPES, settings, tmp_path, objective=made, log=stop_early, progress=False)
    train(examples(), SHAPES, replace(settings, steps=6), tmp_path, objective=made, progress=False)
    assert_same(weights(load_segmenter(tmp_path)), weights(whole))


def test_labels_are_corrected_after_each_pass(tmp_path):
    """Corrections start from the original labels, and a training that was stopped goes on with the labels it had."""
    settings = replace(SMALL, steps=12, checkpoint_every=100, learning_rate=5e-3, precision='fp32', augmentation=replace(NO_AUGMENTATION, crop=32))
    made = ADELE(ratio=0., confidence=0.)
    whole = train(examples(), SHAPES, settings, tmp_path / 'whole', objective=made, progress=False)
    assert sorted(os.listdir(tmp_path / 'whole/corrections')) == ['pass-000004.safetensors', 'pass-000005.safetensors']  # of 6 passes; the last changes nothing any more
    labels = load_file(tmp_path / 'whole/corrections/pass-000005.safetensors')
    originals = examples()
    assert {int(i) for i in labels} == set(range(6)) and any((labels[str(i)].numpy() != one.labels).any() for i, one in enumerate(originals))
    def stop_after(step):
        def log(entry):
            if entry['step'] >= step: raise Stopped
        return log
    for step in (6, 10):
        with pytest.raises(Stopped): train(examples(), SHAPES, settings, tmp_path / 'broken', objective=made, log=stop_after(step), progress=False)
    resumed = train(examples(), SHAPES, settings, tmp_path / 'broken', objective=made, progress=False)
    assert_same(weights(whole), weights(resumed))
    plain = train(examples(), SHAPES, settings, objective=replace(made, ratio=1.), progress=False)
    assert any(not torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(whole).items())
    again = train(examples(), SHAPES, settings, tmp_path / 'broken', objective=made, progress=False)
    assert_same(weights(again), weights(whole))


def test_an_average_teaches(unbroken):
    """Teachers are the averages, at rest; a lesson says how much of the training is behind."""
    gone = []

    @dataclass(frozen=True)
    class Asking(Plain):
        def __call__(self, networks, lesson):
            gone.append(lesson.gone)
            with torch.no_grad(): first, second = lesson.teachers[0](lesson.images), lesson.teachers[0](lesson.images[:2])
            torch.testing.assert_close(first[:2], second, atol=.05, rtol=.05)  # no batch statistics: the others in the batch do not matter
            assert len(lesson.teachers) == 1 and lesson.num_classes == 3
            return super().__call__(networks, lesson)
    for decay in (.9, 0.): train(examples(), SHAPES, replace(SMALL, steps=4, ema_decay=decay), objective=Asking(), progress=False)
    assert gone == [0., .25, .5, .75] * 2


# ---------- starting from a whole segmenter

def test_a_whole_segmenter_can_be_gone_on_with(tmp_path, unbroken):
    unbroken.save(tmp_path)
    start = replace(SMALL, weights=str(tmp_path))
    assert_same(build_segmenter(start, 3).state_dict(), weights(unbroken))
    more, fresh = build_segmenter(start, 5).state_dict(), build_segmenter(SMALL, 5).state_dict()
    for name, tensor in more.items():
        assert torch.equal(tensor, (fresh if name.startswith('segmentation_head') else weights(unbroken))[name]), name
    second = build_segmenter(start, 3, member=1).state_dict()
    assert torch.equal(second['encoder.model.conv_stem.weight'], weights(unbroken)['encoder.model.conv_stem.weight'])
    assert not torch.equal(second['segmentation_head.0.weight'], weights(unbroken)['segmentation_head.0.weight'])  # a pair must not start as twins
    with pytest.raises(ValueError, match='another architecture: decoder_channels.*is absent|another architecture: encoder is "tu-mobilenetv3_small_050" there, "tu-regnetx_002" here'):
        build_segmenter(replace(start, encoder='tu-regnetx_002'), 3)
    with pytest.raises(ValueError, match='decoder_channels'): build_segmenter(replace(start, decoder_channels=(32, 24, 16, 12, 16)), 3)
    with pytest.raises(ValueError, match='weights=.*None beside encoder_weights'): replace(start, encoder_weights='x')
    with pytest.raises(FileNotFoundError, match='not a saved segmenter'): build_segmenter(replace(start, weights=str(tmp_path / 'no')), 3)
    trained = train(examples(), SHAPES, replace(start, steps=1), tmp_path / 'next', objective='co_training', progress=False)
    pair = replace(start, weights=str(tmp_path / 'next'))
    for member in (0, 1): assert_same(build_segmenter(pair, 3, member).state_dict(), trained.network.members[member].state_dict())
    for tensor in load_segmenter(tmp_path / 'next').network.state_dict().values(): assert tensor.isfinite().all()


# ---------- Mask2Former

@pytest.fixture(scope='module')
def mask2former(tmp_path_factory):
    """The folder of a tiny configuration."""
    from transformers import Mask2FormerConfig, SwinConfig
    swin = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    config = Mask2FormerConfig(backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
                               num_attention_heads=2, num_queries=8)
    folder = tmp_path_factory.mktemp('mask2former')
    config.save_pretrained(folder)
    return folder


def test_mask2former_trains_is_saved_and_goes_on(tmp_path, mask2former):
    settings = replace(SMALL, architecture='mask2former', encoder=str(mask2former), steps=40, learning_rate=3e-3, augmentation=replace(NO_AUGMENTATION, crop=32), checkpoint_every=10)
    history = []
    segmenter = train(examples(), SHAPES, settings, tmp_path / 'first', log=history.append, progress=False)
    assert history[-1]['loss'] < .7 * history[0]['loss']
    images = [example.image for example in examples()]
    for a, b in zip(segmenter.probabilities(images), load_segmenter(tmp_path / 'first').probabilities(images)): torch.testing.assert_close(a, b)
    start = build_segmenter(replace(settings, weights=str(tmp_path / 'first')), 7).state_dict()
    same = [name for name, tensor in start.items() if tensor.shape == weights(segmenter)[name].shape and torch.equal(tensor, weights(segmenter)[name])]
    assert {name for name in start if name not in same} == {'class_predictor.weight', 'class_predictor.bias'}


def test_mask2former_takes_what_transformers_wrote(tmp_path, mask2former):
    source = build_segmenter(replace(SMALL, architecture='mask2former', encoder=str(mask2former), seed=4), 9)
    source.model.config.save_pretrained(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, tmp_path / 'model.safetensors', {'format': 'pt'})  # named as Mask2FormerForUniversalSegmentation names them
    settings = replace(SMALL, architecture='mask2former', encoder_weights=str(tmp_path))
    network = build_segmenter(settings, 3).eval()
    assert_same(network.model.state_dict(), source.model.state_dict())
    with torch.inference_mode():
        x = torch.randn(1, 3, 64, 64)
        said = network.model(x, output_hidden_states=True)
        classes, masks = network.class_predictor(said.transformer_decoder_intermediate_states[-1][:, 0]).softmax(-1), said.masks_queries_logits[-1][0].sigmoid()
        scores = sum(classes[q, :3, None, None] * masks[q] for q in range(8))
        torch.testing.assert_close(network(x), F.interpolate(scores.clamp(min=1e-6).log()[None], (64, 64), mode='bilinear'), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="encoder='swin-huge': for Mask2Former needed is a folder with config.json, or one of swin-tiny"): build_segmenter(replace(settings, encoder='swin-huge', encoder_weights=None), 3)


# ---------- it learns

def test_it_learns(unbroken):
    history = []
    settings = replace(SMALL, steps=60, learning_rate=5e-3, augmentation=replace(NO_AUGMENTATION, crop=32))
    segmenter = train(examples(), SHAPES, settings, log=history.append, progress=False)
    assert [entry['step'] for entry in history] == [5 * n for n in range(1, 13)]
    assert history[-1]['loss'] < .3 * history[0]['loss']
    right = [np.mean(labels == example.labels) for labels, example in zip(segmenter.predict([e.image for e in examples()]), examples())]
    assert np.mean(right) > .9


def test_numbers_go_to_trackers(tmp_path):
    """Accelerate makes the trackers, from its own base class, and each hears every look with the very numbers that were recorded."""
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Notebook(GeneralTracker):
        name, requires_logging_directory, main_process_only = 'notebook', False, False

        def __init__(self):
            super().__init__()
            self.lines = []

        @property
        def tracker(self): return self.lines
        def store_init_configuration(self, values): self.settings = values
        def log(self, values, step=None, **kwargs): self.lines.append({'step': step, **values})
    accelerator = Accelerator(cpu=True, log_with=[Notebook(), Notebook()])
    accelerator.init_trackers('toys', config={'steps': 6})
    trackers = accelerator.trackers
    assert len(trackers) == 2 and all(type(one) is Notebook and one.settings == {'steps': 6} for one in trackers)
    told = []
    class Told:
        def log(self, values, step): told.append({'step': step, **values})
    settings = replace(SMALL, steps=6)
    train(examples(), SHAPES, settings, tmp_path, log=log_to(*trackers, Told()), validate=lambda segmenter: {'miou': .25}, progress=False)
    assert [look['step'] for look in told] == [5, 6]
    assert trackers[0].lines == trackers[1].lines == told == read_history(tmp_path)
    assert [look['learning_rate'] for look in told] == [learning_rate_at(step, settings) for step in (4, 5)]
    assert all(list(look) == ['step', 'loss', 'learning_rate', 'images_per_second', 'miou'] and look['loss'] > 0 and look['images_per_second'] > 0 for look in told)


def test_a_history_goes_on_where_the_checkpoint_ends(tmp_path):
    settings = replace(SMALL, checkpoint_every=3)
    def stop_late(entry):
        if entry['step'] >= 9: raise Stopped  # after looks at 3, 6 and 9; the checkpoint is of step 6
    with pytest.raises(Stopped): train(examples(), SHAPES, settings, tmp_path / 'broken', log=stop_late, progress=False)
    assert [look['step'] for look in read_history(tmp_path / 'broken')] == [3, 6]
    write_history(tmp_path / 'broken', [*read_history(tmp_path / 'broken'), {'step': 9, 'loss': 99.}])  # killed between the history and its checkpoint
    seen = []
    train(examples(), SHAPES, settings, tmp_path / 'broken', log=seen.append, progress=False)
    train(examples(), SHAPES, settings, tmp_path / 'whole', progress=False)
    def plain(looks): return [(look['step'], look['loss'], look['learning_rate']) for look in looks]
    assert plain(read_history(tmp_path / 'broken')) == plain(read_history(tmp_path / 'whole')) and len(seen) == 3
    (tmp_path / 'broken' / HISTORY).unlink()  # a checkpoint of an older version has none
    (tmp_path / 'broken' / 'segmenter.json').unlink()
    train(examples(), SHAPES, settings, tmp_path / 'broken', progress=False)
    train(examples(), SHAPES, replace(settings, seed=1), tmp_path / 'broken', resume=False, progress=False)
    assert [look['step'] for look in read_history(tmp_path / 'broken')] == [3, 6, 9, 12, 14]


@pytest.mark.parametrize('changes', [{}, {'ema_decay': 0.}], ids=str)
def test_validation_sees_the_segmenter_so_far_and_changes_nothing(unbroken, changes):
    settings, seen, looks = replace(SMALL, **changes), [], []
    def validate(segmenter):
        assert not any(module.training for module in segmenter.network.modules())
        torch.rand(7), segmenter.predict([example.image for example in examples()])
        seen.append({name: tensor.clone() for name, tensor in weights(segmenter).items()})
        return {'miou': len(seen) / 10, 'loss': -1.}
    watched = train(examples(), SHAPES, settings, validate=validate, log=looks.append, progress=False)
    plain = unbroken if not changes else train(examples(), SHAPES, settings, progress=False)
    assert_same(weights(plain), weights(watched))
    assert [(look['step'], look['miou']) for look in looks] == [(5, .1), (10, .2), (14, .3)] and all(look['loss'] > 0 for look in looks)
    assert_same(seen[2], weights(watched))
    assert not torch.equal(seen[0]['segmentation_head.0.weight'], seen[1]['segmentation_head.0.weight'])


def test_an_objective_of_ones_own_sees_reliability():
    seen = []

    class Own(Objective):
        def __call__(self, networks, lesson):
            logits = networks[0](lesson.images)
            seen.append((logits.dtype, lesson.labels.dtype, sorted(set(lesson.reliability.unique().tolist()))))
            return F.cross_entropy(logits, lesson.labels)
    train(examples(), SHAPES, replace(SMALL, steps=1), objective=Own(), progress=False)
    assert seen[0][:2] == (torch.float32, torch.int64)
    assert set(seen[0][2]) <= {0, .5}  # what the crop adds is not to be trusted
    with pytest.raises(ValueError, match='co_training'): train(examples(), SHAPES, SMALL, objective='cotraining', progress=False)


@pytest.mark.parametrize('name', ['co_training', 'adele'])
def test_id_0_is_background_only_where_there_is_one(name):
    streets = ClassSet('streets', ('floor', 'square', 'stripe'), background=None)
    for classes, says in ((SHAPES, 'background=0'), (streets, 'background=None')):
        assert says in train(examples(), classes, replace(SMALL, steps=1), objective=name, progress=False).objective


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    class Broken(Objective):
        def __call__(self, networks, lesson): return networks[0](lesson.images).sum() * float('nan')
    with pytest.raises(FloatingPointError, match='lower learning_rate'):
        train(examples(), SHAPES, replace(SMALL, checkpoint_every=1), tmp_path, objective=Broken(), progress=False)
    assert not (tmp_path / CHECKPOINT).exists()


def test_labels_are_checked():
    wrong = examples()
    wrong[3].labels[0, 0] = 9
    with pytest.raises(ValueError, match='3: unknown id 9'): train(wrong, SHAPES, SMALL, progress=False)
    with pytest.raises(ValueError, match='is empty'): train([], SHAPES, SMALL, progress=False)


# ---------- parts

def test_the_learning_rate_rises_and_falls():
    for schedule in ('poly', 'cosine'):
        rates = [learning_rate_at(step, SegmenterSettings(steps=200, schedule=schedule, warmup=.1)) for step in range(200)]
        top = int(np.argmax(rates))
        assert top == 20 and rates[top] == SegmenterSettings().learning_rate
        assert all(np.diff(rates[:top]) > 0) and all(np.diff(rates[top:]) < 0) and min(rates) > 0


def test_the_average_is_the_sum_written_out():
    network, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    expected = average.weight.detach().clone()
    for step in range(30):
        network.weight.data.normal_()
        network.num_batches_tracked += 1
        follow(average, network, step, .6)
        past = min(.6, (1 + step) / (10 + step))
        expected = past * expected + (1 - past) * network.weight.detach()
    torch.testing.assert_close(average.weight.detach(), expected)
    assert average.num_batches_tracked == 30


def test_the_state_starts_where_adamw_would(tmp_path):
    """Making AdamW's state early must not change what it does."""
    torch.manual_seed(0)
    ours, plain = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
    plain.load_state_dict(ours.state_dict())
    optimisers = adamw(ours, SMALL), torch.optim.AdamW(plain.parameters(), SMALL.learning_rate, weight_decay=SMALL.weight_decay)
    for _ in range(5):
        x = torch.randn(2, 3, 8, 8)
        for network, optimiser in zip((ours, plain), optimisers):
            optimiser.zero_grad()
            network(x).square().mean().backward()
            optimiser.step()
    for a, b in zip(ours.parameters(), plain.parameters()): torch.testing.assert_close(a, b)
    assert len(training_state(ours, None, optimisers[0])) == 2 + 2 * 3


def test_muon_moves_inner_matrices_and_leaves_the_rest_to_adamw(tmp_path):
    """A matrix moves by an orthogonal step of AdamW's length, whatever the size of its gradient; the network's ends and all vectors move as AdamW moves them."""
    network = build_segmenter(replace(SMALL, channels_last=False), 3)
    settings = replace(SMALL, optimiser='muon', learning_rate=.01, weight_decay=0.)
    optimiser = muon(network, settings)
    inner = {name for name, weight in network.named_parameters() if optimiser.state[weight]['use_muon']}
    matrices = [name for name, module in network.named_modules() if hasattr(module, 'weight') and module.weight.ndim == 4 and module.weight.shape[1] > 1]
    assert inner == {f'{name}.weight' for name in matrices[1:-1]}
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for weight in network.parameters(): weight.grad = 1000 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    name = max(inner, key=lambda name: before[name].numel())
    step = (network.get_parameter(name).detach() - before[name]).flatten(1) / .01
    values = torch.linalg.svdvals(step) / (.2 * max(step.shape) ** .5)
    assert .6 < values.min() and values.max() < 1.3
    assert training_state(network, None, optimiser).keys() >= {f'optimiser.{name}.momentum_buffer', f'optimiser.{matrices[0]}.weight.exp_avg'}


def test_all_at_once_moves_weights_as_timms_muon_moves_them_one_by_one():
    """Step after step; a weight without a gradient stays."""
    ours, theirs = (build_segmenter(replace(SMALL, channels_last=False, seed=4), 3) for _ in range(2))
    settings = replace(SMALL, optimiser='muon', learning_rate=.01, weight_decay=.1)
    optimisers = muon(ours, settings, (.8, .95)), muon(theirs, settings, (.8, .95))
    optimisers[1].__class__ = Muon
    for state in optimisers[1].state.values(): state |= {'step': torch.zeros(())} if 'step' in state else {}  # there each weight counts for itself
    for number in range(3):
        for network in (ours, theirs):
            for i, weight in enumerate(network.parameters()): weight.grad = None if i == 1 else torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * number + i))
        for optimiser in optimisers: optimiser.step()
    left = [name for name, weight in ours.named_parameters() if not optimisers[0].state[weight]['use_muon']]
    assert len(left) > 10
    for (name, a), b, start in zip(ours.named_parameters(), theirs.parameters(), build_segmenter(replace(SMALL, channels_last=False, seed=4), 3).parameters()):
        torch.testing.assert_close(a, b, msg=name)
        assert torch.equal(a, start) == (a.grad is None)
    assert [group.get('use_muon', False) for group in optimisers[0].param_groups] == [True, False]


@pytest.mark.parametrize(('name', 'moved'), [('adamw', set()), ('muon', {'2.weight'})])
def test_the_optimiser_goes_by_its_name(name, moved):
    """Of four matrices Muon moves the one that is neither first nor last nor named as an end; AdamW has no use for names of ends."""
    network = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    optimiser = build_optimiser(network, replace(SMALL, optimiser=name), (.8, .95), outer=('1',))
    assert {key for key, weight in network.named_parameters() if optimiser.state[weight].get('use_muon')} == moved
    assert {group['betas'] for group in optimiser.param_groups} == {(.8, .95)} and {group['lr'] for group in optimiser.param_groups} == {SMALL.learning_rate}


def test_one_list_of_optimisers():
    from synseg_kit.adaptation import DenoisingSettings  # here, since the processes that this file starts import it as well
    for settings in (SegmenterSettings, DenoisingSettings):
        for name in OPTIMISERS: assert settings(optimiser=name).optimiser == name
        with pytest.raises(ValueError, match='adamw.*muon'): settings(optimiser='sgd')
    unchecked = SegmenterSettings()
    object.__setattr__(unchecked, 'optimiser', 'sgd')
    with pytest.raises(ValueError, match="unknown optimiser 'sgd'; there are adamw, muon"): build_optimiser(torch.nn.Linear(1, 1), unchecked)


@pytest.mark.parametrize('encoder, architecture', [('resnet18', 'deeplabv3plus'), ('tu-regnetx_002', 'fpn'), ('mit_b0', 'segformer')])
def test_many_networks_can_be_built(encoder, architecture):
    network = build_segmenter(SegmenterSettings(architecture=architecture, encoder=encoder), 7).eval()
    with torch.inference_mode(): assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7, 64, 64)


@pytest.mark.parametrize('name, value, hint', [('architecture', 'unnet', 'deeplabv3plus'), ('steps', 0, 'at least 1'), ('ema_decay', 1., 'below 1'), ('precision', 'fp16', 'bf16'),
                                               ('warmup', 1., 'below 1'), ('augmentation', Augmentation(crop=70), 'nearest is 64'), ('encoder_depth', 6, '3, 4 or 5')])
def test_settings_are_checked(name, value, hint):
    with pytest.raises(ValueError, match=hint): SegmenterSettings(**{name: value})


def test_unknown_encoders_are_named():
    with pytest.raises(ValueError, match='did you mean .*resnet18'): build_segmenter(SegmenterSettings(encoder='resnet-18'), 3)


def test_encoder_weights_are_filled_completely_or_not_at_all(tmp_path):
    source = build_segmenter(replace(SMALL, seed=3), 3).encoder.state_dict()
    save_file({name.removeprefix('model.'): tensor.contiguous() for name, tensor in source.items()}, tmp_path / 'backbone.safetensors')
    network = build_segmenter(replace(SMALL, encoder_weights=str(tmp_path / 'backbone.safetensors')), 3)
    assert_same(network.encoder.state_dict(), source)
    assert not torch.equal(weights(Segmenter(network, SHAPES, SMALL))['encoder.model.conv_stem.weight'], build_segmenter(SMALL, 3).state_dict()['encoder.model.conv_stem.weight'])
    save_file({name: tensor.contiguous() for name, tensor in list(source.items())[1:]}, tmp_path / 'backbone.safetensors')
    with pytest.raises(ValueError, match='1 of .* missing or of another shape'): build_segmenter(replace(SMALL, encoder_weights=str(tmp_path / 'backbone.safetensors')), 3)
    with pytest.raises(FileNotFoundError, match='no file'): build_segmenter(replace(SMALL, encoder_weights=str(tmp_path / 'none.safetensors')), 3)
    with pytest.raises(ValueError, match='.safetensors'): build_segmenter(replace(SMALL, encoder_weights='weights.pth'), 3)


# ---------- the segmenter

def test_images_come_back_at_their_own_size(unbroken):
    images = [example.image.resize(size) for example, size in zip(examples(), ((32, 32), (50, 31), (32, 32), (7, 90), (64, 64)))]
    labels, probabilities = unbroken.predict(images, batch_size=2), unbroken.probabilities(images)
    for image, label, probability in zip(images, labels, probabilities):
        assert label.shape == image.size[::-1] and label.dtype == np.uint8
        assert probability.shape == (3, *label.shape)
        torch.testing.assert_close(probability.sum(0), torch.ones(label.shape))
    scaled = unbroken.predict(images[1:2], short_side=64)[0]
    assert scaled.shape == (31, 50)
    assert unbroken.predict([]) == []


def test_all_kinds_of_images_are_one(unbroken):
    image = examples()[0].image
    array = np.array(image)
    a, b, c = (unbroken.predict([kind])[0] for kind in (image, array, torch.from_numpy(array).permute(2, 0, 1)))
    assert (a == b).all() and (a == c).all()
    for wrong in (array.astype(np.float32), array[..., :2], array[0]):
        with pytest.raises(ValueError, match='an image must be'): unbroken.predict([wrong])


def test_a_segmenter_survives_its_folder(tmp_path, unbroken):
    images = [example.image for example in examples()]
    again = load_segmenter(unbroken.save(tmp_path / 'full'))
    assert_same(weights(again), weights(unbroken))
    assert (again.settings, again.class_set) == (SMALL, SHAPES)
    half = load_segmenter(unbroken.save(tmp_path / 'half', torch.float16))
    assert (tmp_path / 'half/model.safetensors').stat().st_size < .55 * (tmp_path / 'full/model.safetensors').stat().st_size
    same = np.mean([(a == b).mean() for a, b in zip(half.predict(images), unbroken.predict(images))])
    assert same > .99
    assert next(half.network.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match='no other weights'): print(again.last)


def test_what_is_no_segmenter_is_refused(tmp_path, unbroken):
    with pytest.raises(FileNotFoundError, match='has no segmenter.json'): load_segmenter(tmp_path)
    unbroken.save(tmp_path)
    about = json.loads((tmp_path / 'segmenter.json').read_text())
    (tmp_path / 'segmenter.json').write_text(json.dumps({**about, 'format': 2}))
    with pytest.raises(ValueError, match='has format 2'): load_segmenter(tmp_path)
    (tmp_path / 'segmenter.json').write_text('not json')
    with pytest.raises(ValueError): load_segmenter(tmp_path)


def test_large_class_sets_need_sixteen_bits():
    many = ClassSet('many', tuple(f'thing {i}' for i in range(300)), void=1000)
    assert Segmenter(build_segmenter(SMALL, 301), many, SMALL).predict([examples()[0].image])[0].dtype == np.uint16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_it_learns_on_a_gpu(tmp_path):
    history = []
    settings = replace(SMALL, steps=60, learning_rate=5e-3, augmentation=replace(NO_AUGMENTATION, crop=32))
    segmenter = train(examples(), SHAPES, settings, tmp_path, device='cuda', log=history.append, progress=False)
    assert history[-1]['loss'] < .3 * history[0]['loss']
    on_gpu, on_cpu = segmenter.predict([e.image for e in examples()]), load_segmenter(tmp_path).predict([e.image for e in examples()])
    assert np.mean([(a == b).mean() for a, b in zip(on_gpu, on_cpu)]) > .98
