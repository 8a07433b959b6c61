"""The run notebooks of the benchmarks: from class names to a table, on folders of each benchmark's own layout."""
import json

import numpy as np
import pytest
from peft import LoraConfig
from PIL import Image

from synseg_kit import runs, toyworld
from synseg_kit.lora import save_adapter

WRITERS = {'voc': toyworld.write_voc, 'imagenet_s': toyworld.write_imagenet_s, 'cityscapes': toyworld.write_cityscapes}
PROTOCOLS = {'voc': 'voc', 'imagenet_s': 'imagenet-s', 'cityscapes': 'cityscapes'}
SPLITS = {'voc': 'val', 'imagenet_s': 'validation', 'cityscapes': 'val'}
LEAST = {'images': 2, 'block_size': 2, 'inference_steps': 2, 'train_steps': 1, 'batch_size': 2}


@pytest.mark.parametrize('name', WRITERS)
def test_sets_go_from_toys_to_the_real_benchmark(name):
    job = runs.read_run(name)
    smoke, small, paper = (job.resolve(set_name) for set_name in ('smoke', 'small', 'paper'))
    assert (smoke['model'], smoke['data'], smoke['device']) == ('toy', '', 'cpu') and small['model'] == 'toy'
    assert paper['model'] != 'toy' and paper['data'] and paper['device'] == 'cuda' and paper['encoder_weights'] == 'imagenet'
    assert smoke['objective'] == 'plain' and paper['objective'] == 'co_training'
    assert smoke['images'] < small['images'] < paper['images'] and all(parameter.help for parameter in job.parameters)


@pytest.fixture(scope='module', params=WRITERS)
def done(request, tmp_path_factory):
    """A run at its smallest, on a folder that was there before."""
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder / 'real', toyworld.held_out_seeds(3), split=SPLITS[request.param])
    WRITERS[request.param](folder / 'real', toyworld.held_out_seeds(2, offset=3), split='test')
    if request.param == 'cityscapes':
        pipe = toyworld.load_toy_pipeline(name='toy-sd-towns')
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=['to_k'], init_lora_weights=False), 'adapted')
        save_adapter(pipe, folder / 'adapter')
    changes = {'voc': {'objective': 'co_training'}, 'cityscapes': {'model': 'toy-towns', 'adapter': str(folder / 'adapter'), 'test_scales': (.5, 1.), 'test_flip': True, 'test_window': 64}}.get(request.param, {})
    return request.param, folder / 'out', runs.run(request.param, folder / 'out', 'smoke', {**LEAST, 'data': str(folder / 'real'), 'server_split': 'test', **changes}, progress=False)


def test_a_run_ends_in_the_benchmarks_table(done):
    name, out, result = done
    metrics = result['metrics']
    assert metrics['protocol'] == PROTOCOLS[name] and metrics['n_images'] == 2 and metrics['n_test_images'] == 3 and 0 <= metrics['miou'] <= 1
    assert len(metrics['iou']) == (8 if name == 'cityscapes' else 13)
    page = (out / 'report.html').read_text()
    low, high = metrics['miou_interval']
    assert low <= metrics['miou'] <= high and f'{low:.3f} to {high:.3f}' in page
    figures = {'voc': (), 'imagenet_s': ('image_accuracy', 'f_measure', 'boundary_miou'), 'cityscapes': ('category_miou', 'iou_flat', 'iou_vehicle')}[name]
    assert all(figure in metrics and figure.replace('_', ' ') in page for figure in figures)
    assert f'{metrics["miou"]:.3f}' in page and PROTOCOLS[name] in page and page.count('src="data:image/png') == 2


def test_predictions_wait_for_the_server(done):
    """Counted by hand from the files: what is scored is what is handed in, and the part without labels is there as well."""
    name, out, result = done
    patterns = {'voc': 'results/VOC2012/Segmentation/comp6_{}_cls/*.png', 'imagenet_s': '{}/*/*.png', 'cityscapes': '{}/*_pred_labelIds.png'}
    found = {split: sorted((out / 'predictions').glob(patterns[name].format(split))) for split in (SPLITS[name], 'test')}
    assert [len(files) for files in found.values()] == [3, 2] and len([path for path in (out / 'predictions').rglob('*') if path.is_file()]) == 5
    truth = {'voc': 'VOCdevkit/VOC2012/SegmentationClass/{}.png', 'imagenet_s': 'validation-segmentation/*/{}.png', 'cityscapes': 'gtFine/val/*/{}_gtFine_labelIds.png'}[name]
    right, known = 0, 0
    for path in found[SPLITS[name]]:
        said = np.array(Image.open(path)).astype(int)
        there, = (out.parent / 'real').glob(truth.format(path.stem.removesuffix('_leftImg8bit').removesuffix('_pred_labelIds')))
        there = np.array(Image.open(there)).astype(int)
        if name == 'imagenet_s': said, there = (ids[..., 0] + 256 * ids[..., 1] for ids in (said, there))
        scored = {'voc': there != 255, 'imagenet_s': there != 1000, 'cityscapes': np.isin(there, [*toyworld.STREET_LABEL_IDS.values()])}[name]
        right, known = right + (said == there)[scored].sum(), known + scored.sum()
    assert right / known == pytest.approx(result['metrics']['pixel_accuracy'])


def test_networks_of_a_pair_answer_together(done):
    name, out, _ = done
    assert json.loads((out / 'segmenter/segmenter.json').read_text())['networks'] == (2 if name == 'voc' else 1)


def test_the_score_is_that_of_the_segmenter_it_leaves(done):
    """Scored once more, from the files that the run left, by the command line."""
    from contextlib import redirect_stdout
    from io import StringIO

    from synseg_kit import cli
    name, out, result = done
    extra = ['--short-side', '80', *(['--scales', '0.5,1', '--flip', '--window', '64'] if name == 'cityscapes' else [])]
    with redirect_stdout(StringIO()) as said:
        assert cli.main(['evaluate', '--model', str(out / 'segmenter'), '--data', result['parameters']['data'], '--protocol', PROTOCOLS[name], '--json', '--device', 'cpu', *extra]) == 0
    assert json.loads(said.getvalue())['miou'] == result['metrics']['miou']


def test_a_real_model_without_a_benchmark_is_refused_before_it_is_loaded(tmp_path):
    with pytest.raises(runs.RunFailed, match='under “The benchmark” raised ValueError: data is empty, and some/model does not know toys'):
        runs.run('voc', tmp_path / 'out', 'smoke', {'model': 'some/model'}, progress=False)
