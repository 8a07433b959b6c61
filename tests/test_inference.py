"""Inference: the same labels whichever way they are computed, at every size, and files that are there entirely or not at all."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from synseg_kit import inference
from synseg_kit.classes import ClassSet
from synseg_kit.datasets import decode_labels, open_picture
from synseg_kit.inference import Inference, find_images, from_pretrained, predict, predict_files, probabilities, save_pretrained, slide, to_onnx, window_starts
from synseg_kit.refinement import CRFSettings
from synseg_kit.training import Segmenter, SegmenterSettings, build_segmenter, load_segmenter, to_bytes, together

CLASSES = ClassSet('four', ('a', 'b', 'c'))
FP32 = SegmenterSettings(precision='fp32', channels_last=False)
HAS_ONNX = all(find_spec(name) for name in ('onnx', 'onnxruntime', 'onnxscript'))


def picture(height, width, seed=0):
    """An image of noise that is smooth enough to be resized."""
    coarse = torch.rand(1, 3, max(1, height // 8), max(1, width // 8), generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (height, width), mode='bilinear')[0]).to(torch.uint8).permute(1, 2, 0).numpy()


def segmenter_of(network, classes=CLASSES, settings=FP32):
    """A segmenter with the given network."""
    return Segmenter(network, classes, settings)


@pytest.fixture(scope='module')
def pointwise():
    """A network that sees one pixel at a time: no window and no mirror can change what it says."""
    torch.manual_seed(0)
    return segmenter_of(nn.Conv2d(3, 4, 1))


@pytest.fixture(scope='module')
def small():
    """A real architecture with random weights, which sees far."""
    settings = SegmenterSettings(encoder='tu-regnetx_002', decoder_channels=(32, 24, 16, 8, 8), precision='fp32')
    return segmenter_of(build_segmenter(settings, 4), settings=settings)


class Counting(nn.Module):
    """Says its class 1 everywhere, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return torch.eye(4)[1][None, :, None, None].expand(len(x), 4, *x.shape[-2:]) + self.weight


@pytest.mark.parametrize(('length', 'window', 'stride'), [(128, 64, 48), (128, 64, 64), (65, 64, 1), (64, 64, 10), (5, 64, 10), (1, 1, 1), (1000, 33, 32)])
def test_windows_cover_an_image_and_stay_within_it(length, window, stride):
    starts = window_starts(length, window, stride)
    covered = set().union(*(range(start, start + min(window, length)) for start in starts))
    assert covered == set(range(length)) and starts == sorted(set(starts))
    assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


def test_without_extras_it_is_the_segmenters_own_way(small):
    images = [picture(64, 96), picture(33, 47, 1), picture(64, 96, 2)]
    for short_side in (None, 48):
        ours, own = Inference(short_side=short_side), small.predict(images, short_side=short_side)
        for a, b in zip(predict(small, images, ours), own, strict=True): np.testing.assert_array_equal(a, b)
        for a, b in zip(probabilities(small, images, ours), small.probabilities(images, short_side=short_side), strict=True): torch.testing.assert_close(a, b)


def test_a_segmenter_knows_how_large_it_wants_to_see_images(small, tmp_path):
    images = [picture(64, 96), picture(33, 47, 1), picture(64, 64, 2)]
    known = load_segmenter(replace(small, settings=replace(small.settings, short_side=48)).save(tmp_path / 'model'))
    for way in (Inference(), Inference(scales=(.5, 1.)), Inference(flip=True), Inference(window=32, stride=20)):
        for a, b in zip(probabilities(known, images, way), probabilities(small, images, replace(way, short_side=48)), strict=True): torch.testing.assert_close(a, b)
    for ours, asked in ((known.predict(images), 48), (known.predict(images, short_side=80), 80), (predict(known, images, Inference(short_side=80)), 80)):
        for a, b in zip(ours, small.predict(images, short_side=asked), strict=True): np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(known.predict(images), small.predict(images), strict=True))
    with pytest.raises(ValueError, match='short_side=0; needed is a number of pixels, or None'): replace(small.settings, short_side=0)


@pytest.mark.parametrize('window', [64, (64, 96), (500, 500)])
@pytest.mark.parametrize('scales', [(1.,), (.5, 1.)])
def test_a_window_that_covers_the_image_is_none(small, window, scales):
    image = picture(60, 64) if window == 64 else picture(64, 96)
    a, b = (probabilities(small, [image], Inference(scales, window=w))[0] for w in (window, None))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(('size', 'window', 'stride'), [((64, 96), 32, None), ((50, 71), (32, 64), (7, 50)), ((97, 33), 33, 33), ((40, 300), 40, 1)])
def test_windows_change_nothing_for_a_network_without_context(pointwise, size, window, stride):
    image = picture(*size)
    way = Inference(window=window, stride=stride, batch_size=5)
    torch.testing.assert_close(probabilities(pointwise, [image], way)[0], pointwise.probabilities([image])[0])


def test_overlaps_are_averaged():
    """By hand: a row of three pixels and windows of two, from a network that says what is left in a window and what right."""
    class Sides(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            first = torch.arange(x.shape[-1])[None, None, None] == 0
            return torch.stack([torch.where(first, 10., -10.).expand(len(x), 1, *x.shape[-2:])[:, 0], torch.zeros(len(x), *x.shape[-2:])], 1) + self.weight

    two = segmenter_of(Sides(), ClassSet('two', ('b',)))
    found = slide(two, torch.zeros(1, 3, 1, 3, dtype=torch.uint8), (1, 2), (1, 1))[0, 0, 0]
    sure, not_it = torch.sigmoid(torch.tensor([10., -10.]))
    torch.testing.assert_close(found, torch.stack([sure, (sure + not_it) / 2, not_it]))


def test_the_mean_over_scales_and_mirrors_is_that_by_hand(small):
    image = picture(64, 96)
    by_hand = []
    for short_side in (32, 64, 96):
        for mirrored in (False, True):
            found = small.probabilities([image[:, ::-1] if mirrored else image], short_side=short_side)[0]
            by_hand.append(found.flip(-1) if mirrored else found)
    ours = probabilities(small, [image], Inference((.5, 1., 1.5), flip=True))[0]
    torch.testing.assert_close(ours, torch.stack(by_hand).mean(0), rtol=1e-4, atol=1e-5)


def test_a_mirrored_image_gets_the_mirrored_answer(small, pointwise):
    image = picture(64, 96)
    for segmenter, way in ((small, Inference(flip=True)), (small, Inference((.5, 1.), flip=True)), (pointwise, Inference())):
        a, b = probabilities(segmenter, [image, image[:, ::-1]], way)
        torch.testing.assert_close(a, b.flip(-1), rtol=1e-4, atol=1e-5)
    a, b = probabilities(small, [image, image[:, ::-1]], Inference())
    assert (a - b.flip(-1)).abs().max() > 1e-3  # this network is not symmetric by itself, so the test above says something


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (3, 2), (31, 33), (64, 200), (127, 65)])
@pytest.mark.parametrize('way', [Inference(), Inference((.5, 2.), flip=True), Inference(window=32, stride=17), Inference((.5, 1.5), True, (32, 48), crf=True, short_side=40)])
def test_every_size_comes_back_at_its_own(small, size, way):
    if way.short_side and size == (1, 50): pytest.skip('2000 pixels wide: slow and no other case')
    labels, = predict(small, [picture(*size)], way)
    found, = probabilities(small, [picture(*size)], way)
    assert labels.shape == size and labels.dtype == np.uint8 and found.shape == (4, *size)
    torch.testing.assert_close(found.sum(0), torch.ones(size), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(labels, found.argmax(0).numpy())


def test_results_stay_in_the_order_of_the_images(pointwise):
    images = [picture(8 + n % 3, 9, n) for n in range(10)]
    for n, found in enumerate(predict(pointwise, images, Inference(flip=True, batch_size=2))):
        np.testing.assert_array_equal(found, predict(pointwise, [images[n]], Inference(flip=True))[0])


def test_the_network_never_sees_more_than_a_window_or_a_batch():
    network = Counting()
    labels, = predict(segmenter_of(network), [np.zeros((300, 700, 3), np.uint8)], Inference((1., 2.), True, 64, batch_size=3))
    assert (labels == 1).all() and max(shape[0] for shape in network.seen) <= 3 and {shape[2:] for shape in network.seen} == {(64, 64)}


def test_memory_bounds_how_many_images_go_together(monkeypatch):
    network = Counting()
    monkeypatch.setattr(inference, 'MOST_VALUES', 4 * 64 * 64 * 2)
    predict(segmenter_of(network), [np.zeros((64, 64, 3), np.uint8)] * 5, Inference(batch_size=16))
    assert [shape[0] for shape in network.seen] == [2, 2, 1]


def test_a_crf_is_that_of_refinement(small):
    from synseg_kit.refinement import dense_crf
    image, settings = picture(40, 50), CRFSettings(iterations=3)
    before, = probabilities(small, [image])
    after, = probabilities(small, [image], Inference(crf=settings))
    torch.testing.assert_close(after, dense_crf(before[None], to_bytes(image)[None], settings)[0])


def test_many_classes_keep_their_ids():
    many = ClassSet('many', tuple(f'class {n}' for n in range(300)), void=1000)
    network = Counting()
    network.forward = lambda x: F.one_hot(torch.tensor(299), 301).float()[None, :, None, None].expand(len(x), 301, *x.shape[-2:])
    labels, = predict(segmenter_of(network, many), [picture(9, 9)], Inference(flip=True))
    assert labels.dtype == np.uint16 and (labels == 299).all()


@pytest.mark.parametrize(('changes', 'says'), [
    ({'scales': ()}, 'one magnification or more'), ({'scales': (0.,)}, 'each above 0'), ({'window': 0}, 'a number of pixels, or two'),
    ({'window': (3, 4, 5)}, 'height and width'), ({'stride': 8}, 'needed is a window as well'), ({'window': 8, 'stride': 9}, 'leaves gaps'),
    ({'window': (64, 8), 'stride': 9}, 'leaves gaps'), ({'short_side': 0}, 'or None'), ({'batch_size': 0}, 'at least 1')])
def test_settings_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(ValueError, match=says): Inference(**changes)


def test_images_that_are_none_are_refused(pointwise):
    for images, says in ((picture(4, 4), 'put it in a list'), ([np.zeros((0, 4, 3), np.uint8)], 'has no pixels'),
                         ([np.zeros((4, 4, 3))], 'an image must be')):
        with pytest.raises(ValueError, match=says): predict(pointwise, images)
    assert predict(pointwise, []) == []


@pytest.mark.gpu
def test_a_gpu_says_the_same(small):
    image, way = picture(100, 150), Inference((.75, 1.), True, 64)
    on_gpu = replace(small, network=small.network.to('cuda'))
    found, = probabilities(on_gpu, [image], way)
    small.network.to('cpu')
    assert found.device.type == 'cuda'
    torch.testing.assert_close(found.cpu(), probabilities(small, [image], way)[0], rtol=1e-2, atol=1e-2)


@pytest.fixture
def album(tmp_path):
    """A folder of images with a folder in it."""
    (tmp_path / 'album/2024').mkdir(parents=True)
    Image.fromarray(picture(20, 30)).save(tmp_path / 'album/one.png')
    Image.fromarray(picture(24, 16, 1)).save(tmp_path / 'album/2024/two.JPEG')
    Image.fromarray(picture(24, 16, 2)[..., 0]).save(tmp_path / 'album/2024/grey.tif')
    (tmp_path / 'album/notes.txt').write_text('not an image')
    (tmp_path / 'album/.hidden.png').write_text('not looked at')
    return tmp_path / 'album'


def test_images_are_found_and_named(album):
    assert list(find_images([album])) == ['2024/grey', '2024/two', 'one']
    assert find_images([album / 'one.png', album / '2024']) == {'one': album / 'one.png', 'grey': album / '2024/grey.tif', 'two': album / '2024/two.JPEG'}


def test_what_can_not_be_found_is_said(album):
    (album / 'empty').mkdir()
    Image.fromarray(picture(5, 5)).save(album / 'one.bmp')
    for sources, error, says in (([album / 'no'], FileNotFoundError, 'no file or folder'), ([album / 'empty'], ValueError, 'holds no images'),
                                 ([album], ValueError, 'one.bmp and .*one.png would both be called'), ([album / 'one.png', album / 'one.png'], ValueError, 'both be called')):
        with pytest.raises(error, match=says): find_images(sources)


def test_files_get_masks_that_are_what_predict_says(pointwise, album, tmp_path):
    way = Inference(flip=True)
    made = predict_files(pointwise, find_images([album]), tmp_path / 'out', way, progress=False)
    total = np.zeros(4)
    for name, path in made.images.items():
        expected, = predict(pointwise, [Image.open(path).convert('RGB')], way)
        np.testing.assert_array_equal(decode_labels(open_picture(made.mask(name)), CLASSES), expected)
        assert open_picture(made.mask(name)).mode == 'P' and open_picture(made.overlay(name)).size == expected.shape[::-1]
        total += np.bincount(expected.ravel(), minlength=4)
    assert made.shares == pytest.approx(dict(zip(CLASSES.labels, total / total.sum(), strict=True)))
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert written['images'] == list(made.images) and written['skipped'] == [] and written['shown_in'] == made.shown_in
    assert not [path for path in (tmp_path / 'out').rglob('.*')]  # nothing is left of writing aside


def test_a_photo_is_labelled_upright(pointwise, tmp_path):
    image = Image.fromarray(picture(20, 30))
    turned = image.getexif()
    turned[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / 'turned.png', exif=turned)
    assert inference.read_image(tmp_path / 'turned.png').size == (20, 30)


def test_broken_images_are_passed_over_with_a_reason(pointwise, album, tmp_path):
    whole = (album / 'one.png').read_bytes()
    (album / 'cut.png').write_bytes(whole[:len(whole) // 2])
    (album / 'text.jpg').write_text('no picture')
    made = predict_files(pointwise, find_images([album]), tmp_path / 'out', progress=False)
    assert len(made.images) == 3 and {path.name for path in made.skipped} == {'cut.png', 'text.jpg'}
    assert all('is not an image that can be read' in why for why in made.skipped.values())
    with pytest.raises(ValueError, match='none of 1 images could be read: .*text.jpg'):
        predict_files(pointwise, {'text': album / 'text.jpg'}, tmp_path / 'other', progress=False)


def test_predictions_go_on_and_are_not_mixed(pointwise, small, album, tmp_path):
    images, out = find_images([album]), tmp_path / 'out'
    first = predict_files(pointwise, images, out, progress=False)
    times = {name: first.mask(name).stat().st_mtime_ns for name in images}
    first.mask('one').unlink()
    os.utime(album / '2024/two.JPEG', (2e9, 2e9))  # changed since
    again = predict_files(pointwise, images, out, Inference(batch_size=3), progress=False)
    assert {name for name in images if again.mask(name).stat().st_mtime_ns != times[name]} == {'one', '2024/two'}
    assert (again.shares, again.shown_in) == (first.shares, first.shown_in)
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    for segmenter, way, says in ((pointwise, Inference(flip=True), 'inference.flip'), (small, Inference(), 'segmenter is')):
        with pytest.raises(FileExistsError, match=f'holds other predictions: {says}'): predict_files(segmenter, images, out, way, progress=False)
    with pytest.raises(FileExistsError, match='holds other files, such as 2024'): predict_files(pointwise, {'x': out / 'overlays/one.jpg'}, album, progress=False)
    with pytest.raises(ValueError, match='where predictions are to go'): predict_files(pointwise, images, album, progress=False)
    with pytest.raises(NotADirectoryError, match='is a file'): predict_files(pointwise, {'x': out / 'overlays/one.jpg'}, album / 'notes.txt', progress=False)
    assert before == {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}


def test_a_segmenter_is_kept_with_a_card(small, tmp_path):
    folder = save_pretrained(small, tmp_path / 'kept', torch.float16)
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'model.safetensors', 'segmenter.json']
    assert 'background, a, b, c' in (folder / 'README.md').read_text()
    again = from_pretrained(folder)
    assert again.class_set == CLASSES and again.settings == small.settings
    with pytest.raises(FileNotFoundError, match='is not a saved segmenter'): from_pretrained(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere/here is neither a folder nor a segmenter on the hub'): from_pretrained('nowhere/here')


def test_a_name_on_the_hub_is_read_from_its_cache(small, tmp_path):
    cache = tmp_path / 'cache/models--them--toys'
    small.save(cache / 'snapshots' / ('0' * 40))
    (cache / 'refs').mkdir()
    (cache / 'refs/main').write_text('0' * 40)
    code = 'from synseg_kit.inference import from_pretrained; s = from_pretrained("them/toys"); assert s.class_set.name == "four"'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'HF_HUB_CACHE': str(tmp_path / 'cache'), 'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 0, done.stderr


def test_mask2former_on_the_hub_comes_with_its_plan(tmp_path, monkeypatch):
    from transformers import Mask2FormerConfig, SwinConfig
    swin = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, out_features=['stage1', 'stage2', 'stage3', 'stage4'])
    Mask2FormerConfig(backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
                      num_attention_heads=2, num_queries=8).save_pretrained(tmp_path / 'plan')
    settings = SegmenterSettings(architecture='mask2former', encoder=str(tmp_path / 'plan'), precision='fp32')
    made = segmenter_of(build_segmenter(settings, 4), settings=settings)
    save_pretrained(made, tmp_path / 'hub')
    asked = []

    def cached_file(source, name):  # what is not asked for stays on the hub
        asked.append(name)
        (tmp_path / 'cache').mkdir(exist_ok=True)
        (tmp_path / 'cache' / name).write_bytes((tmp_path / 'hub' / name).read_bytes())
        return str(tmp_path / 'cache' / name)
    monkeypatch.setattr('transformers.utils.cached_file', cached_file)
    again = from_pretrained('them/streets')
    assert sorted(asked) == ['config.json', 'model.safetensors', 'segmenter.json']
    np.testing.assert_array_equal(again.predict([picture(32, 64)])[0], made.predict([picture(32, 64)])[0])


@pytest.mark.skipif(not HAS_ONNX, reason="needs pip install 'synseg_kit[onnx]'")
@pytest.mark.parametrize('size', [64, (33, 70)])
def test_onnx_says_what_torch_says(small, tmp_path, size):
    import onnxruntime
    written = to_onnx(small, tmp_path / 'deep/small.onnx', size)
    assert [path.name for path in written.parent.iterdir()] == ['small.onnx']  # one file, weights inside
    session = onnxruntime.InferenceSession(written, providers=['CPUExecutionProvider'])
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.stack([to_bytes(picture(height, width, seed)) for seed in range(3)])
    said, = session.run(None, {'images': images.numpy()})
    np.testing.assert_allclose(said, torch.stack(small.probabilities(list(images))).numpy(), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map['classes']) == list(CLASSES.labels)


@pytest.mark.skipif(not HAS_ONNX, reason="needs pip install 'synseg_kit[onnx]'")
@pytest.mark.parametrize('short_side', [40, 100])
def test_onnx_sees_images_as_large_as_the_segmenter_wants_to(small, tmp_path, short_side):
    import onnxruntime
    wants = segmenter_of(small.network, settings=replace(small.settings, short_side=short_side))
    images = torch.stack([to_bytes(picture(66, 80, seed)) for seed in range(3)])
    said, = onnxruntime.InferenceSession(to_onnx(wants, tmp_path / 'wants.onnx', (66, 80)), providers=['CPUExecutionProvider']).run(None, {'images': images.numpy()})
    meant = torch.stack(wants.probabilities(list(images))).numpy()
    np.testing.assert_allclose(said, meant, atol=1e-4)
    assert np.abs(meant - torch.stack(small.probabilities(list(images))).numpy()).max() > .01  # at their own size it says something else


@pytest.mark.skipif(not HAS_ONNX, reason="needs pip install 'synseg_kit[onnx]'")
def test_onnx_of_a_pair_says_what_the_pair_says(small, tmp_path):
    import onnxruntime
    torch.manual_seed(1)
    settings = small.settings
    pair = segmenter_of(together([small.network, build_segmenter(settings, 4, member=1)]), settings=settings)
    alike = torch.stack(pair.probabilities([picture(32, 64)]))
    assert not torch.allclose(alike, torch.stack(small.probabilities([picture(32, 64)])), atol=1e-3)
    save_pretrained(pair, tmp_path / 'pair')
    written = to_onnx(from_pretrained(tmp_path / 'pair'), tmp_path / 'pair.onnx', (32, 64))
    said, = onnxruntime.InferenceSession(written, providers=['CPUExecutionProvider']).run(None, {'images': to_bytes(picture(32, 64))[None].numpy()})
    np.testing.assert_allclose(said, alike.numpy(), atol=1e-4)


@pytest.mark.skipif(not HAS_ONNX, reason="needs pip install 'synseg_kit[onnx]'")
def test_onnx_that_says_something_else_is_not_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, 'normalise', lambda images: images.float() / 99)
    with pytest.raises(ValueError, match='would not say what torch says'): to_onnx(small, tmp_path / 'small.onnx', 32)
    assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_is_missing(small, tmp_path, monkeypatch):
    for path, size, says in (('x.pt', 64, 'should end in .onnx'), ('x.onnx', 0, 'a number of pixels'), ('x.onnx', (1, 2, 3), 'height and width')):
        with pytest.raises(ValueError, match=says): to_onnx(small, tmp_path / path, size)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r"pip install 'synseg_kit\[onnx\]'"): to_onnx(small, tmp_path / 'x.onnx', 64)


def test_examples_are_drawn_beside_what_is_said(pointwise):
    from synseg_kit.datasets import Example
    real = [Example(Image.fromarray(picture(20, 30, n)), np.zeros((20, 30), np.uint8)) for n in range(3)]
    figure = inference.show_predictions(pointwise, real, count=2)
    titles = [ax.get_title(loc='left') for ax in figure.axes]
    assert len(figure.axes) == 6 and titles[:3] == ['image', 'prediction', 'truth']
