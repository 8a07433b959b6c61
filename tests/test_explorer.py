"""The explorer without a browser: the atlas and its bytes, views, parts, pages that ask nobody, and the widget's answers."""
import base64
import gzip
import json
import re
import subprocess
import sys
import threading
from dataclasses import fields

import numpy as np
import pytest
from synseg_kit.atlas import VOID, Atlas, AtlasClass, AtlasWord, colour_tables, local_labels, pack, quantise, read_atlas, shrink, unpack
from synseg_kit.classes import ClassSet, cityscapes, toy_objects
from synseg_kit.explorer import CHOICES, PREVIEWS, Explorer, Plain, Studio, View, captures, explore, load_explorer, page, parts_of, reference_of, script, serves, settle, stylesheet, view_picture

TOYS = toy_objects()


def made_up(words=('a', 'cat', 'cat', 'dog'), steps=5, size=(24, 32), grid=(6, 8), **more):
    """An atlas of random maps."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return Atlas(image, ' '.join(words), [AtlasWord(word, class_id=6 if word == 'cat' else None) for word in words], quantise(rng.random((len(words), steps, *grid), np.float32)), range(steps), steps, **more)


@pytest.fixture(scope='module')
def pipe():
    """The shipped pipeline."""
    from synseg_kit.toyworld import load_toy_pipeline
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope='module')
def run(pipe):
    """A short run: trace by step, trace by layer, image, prompt."""
    import torch
    from synseg_kit.prompts import find_mentions
    prompt = find_mentions('a cat and a dog on grass', TOYS)
    by_step, by_layer = captures(pipe, prompt)
    with by_step as trace, by_layer as layers:
        image = pipe(prompt.text, num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images[0]
    return trace, layers, image, prompt


# bytes

@pytest.mark.parametrize('shape', [(4, 4), (3, 5, 7), (2, 3, 16, 16)])
def test_quantising_errs_by_half_a_step_at_most(shape):
    maps = np.random.default_rng(1).normal(size=shape).astype(np.float32) * 1e-3
    found = quantise(maps)
    bound = (maps.max((-2, -1)) - maps.min((-2, -1))) / 255 / 2 * (1 + 1e-4)
    assert (abs(found.maps - maps).max((-2, -1)) <= bound).all() and found.values.dtype == np.uint8
    assert (found.values.min((-2, -1)) == 0).all() and (found.values.max((-2, -1)) == 255).all()


def test_flat_maps_stay_exact_and_wrong_numbers_are_refused():
    assert (quantise(np.full((2, 3, 3), .25, np.float32)).maps == .25).all()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match='not finite'): quantise(np.array([[bad, 1]], np.float32))


def test_a_file_of_tensors_is_safetensors():
    from safetensors.numpy import load
    data = pack({'a': [1, 'ü']}, {'x': np.arange(6, dtype=np.uint8).reshape(2, 3), 'y': np.ones(3, np.float32)})
    assert load(data)['x'].tolist() == [[0, 1, 2], [3, 4, 5]]
    about, tensors = unpack(data)
    assert about == {'a': [1, 'ü']} and tensors['y'].dtype == np.float32


@pytest.mark.parametrize('data', [b'', b'short', b'\xff' * 40, pack({}, {'x': np.zeros(1, np.uint8)})[:30]])
def test_other_bytes_are_no_atlas(data):
    with pytest.raises(ValueError, match='not an atlas'): unpack(data)
    with pytest.raises(ValueError, match='has format None'): read_atlas(pack({}, {'x': np.zeros(1, np.uint8)}))


def test_an_atlas_comes_back_as_it_was():
    classes = (AtlasClass(6, 'cat', '#ffcc00'),)
    reference = np.zeros((24, 32), np.uint8)
    reference[:3], reference[3] = 1, VOID
    atlas = made_up(classes=classes, reference=reference, layers=(('up.0', 6, 8, 4),), self_grid=(6, 8), recipes=('otsu',), title='one', code='x = 1', reference_name='the segmenter')
    again = read_atlas(atlas.to_bytes())
    for field in fields(Atlas):
        one, other = getattr(atlas, field.name), getattr(again, field.name)
        if field.name == 'maps': assert (one.values == other.values).all() and (one.scale == other.scale).all()
        elif isinstance(one, np.ndarray): assert (one == other).all()
        else: assert (tuple(one) if isinstance(one, (list, range)) else one) == other, field.name


def test_what_the_first_atlas_weighs():
    """512x512, ten words and the three tokens that are none, 50 steps: at most 3 MB, also when nothing compresses."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (128, 128, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    words = [AtlasWord(f'w{i}') for i in range(10)] + [AtlasWord(name, kind='special') for name in ('start', 'end', 'padding')]
    atlas = Atlas(image, 'words', words, quantise(rng.random((13, 50, 64, 64), np.float32)), range(50), 50)
    assert 2.6e6 < len(atlas.to_bytes()) <= 3e6


def test_an_atlas_is_checked():
    with pytest.raises(ValueError, match=r'needs maps \[4, 5, h, w\]; got \[4, 2, 6, 8\]'):
        Atlas(np.zeros((8, 8, 3), np.uint8), '', [AtlasWord('w')] * 4, quantise(np.zeros((4, 2, 6, 8), np.float32)), range(5), 5)
    with pytest.raises(ValueError, match=r'the reference is \[4, 4\] and the image \[24, 32\]'): made_up(reference=np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(('size', 'wanted'), [((16, 16), (16, 16)), ((128, 96), (64, 48)), ((128, 128), (64, 64)), ((80, 100), (40, 50)), ((90, 131), (30, 44)), ((1, 200), (1, 50))])
def test_large_grids_are_averaged_down(size, wanted):
    maps = np.random.default_rng(2).random((2, *size), np.float32)
    found = shrink(maps)
    assert found.shape == (2, *wanted) and np.allclose(found.mean((1, 2)), maps.mean((1, 2)), atol=.02)
    if size == (128, 96): assert np.allclose(found[1, 3, 5], maps[1, 6:8, 10:12].mean())


def test_labels_are_places_in_a_list_of_any_class_set():
    many = ClassSet('many', tuple(f'c{i}' for i in range(1, 400)), void=1000)
    classes = (AtlasClass(300, 'c300', '#000000'), AtlasClass(399, 'c399', '#ffffff'))
    assert local_labels(np.array([[0, 300, 399, 1000, 7]], np.uint16), classes, many).tolist() == [[0, 1, 2, VOID, 0]]
    streets = cityscapes()
    road = AtlasClass(0, 'road', '#804080')
    assert local_labels(np.array([[0, 1, streets.void]], np.uint8), (road,), streets).tolist() == [[1, 0, VOID]]


def test_colours_are_matplotlibs():
    import matplotlib
    assert (colour_tables()[1, 200] == np.rint(np.array(matplotlib.colormaps['cividis'](200)[:3]) * 255)).all()


# atlas of a run

def test_the_maps_are_the_traces_own(run):
    from synseg_kit.atlas import to_atlas
    trace, layers, image, prompt = run
    atlas = to_atlas(trace, image, TOYS, layers=layers)
    assert [word.text for word in atlas.words] == ['a', 'cat', 'and', 'a', 'dog', 'on', 'grass', 'start', 'end', 'padding']
    assert [word.class_id for word in atlas.words if word.class_id is not None] == [TOYS.id_of('cat'), TOYS.id_of('dog')]
    for word in ('cat', 'grass'):
        for steps, step in ((None, None), ((1, 2), [1, 2]), ((3, 3), 3)):
            exact = trace.word_map(word, 0, weights=trace.calls(), step=step).numpy()
            assert abs(atlas.heat([[w.text for w in atlas.words].index(word)], steps) - exact).max() < exact.max() / 255
    padding = len(trace.tracks[0].positions[dict(trace.tracks[0].special)['padding']])  # its map is the mean of so many
    assert np.allclose(sum(atlas.heat([i]) * (padding if word.text == 'padding' else 1) for i, word in enumerate(atlas.words)), 1, atol=.02)  # shares of attention on all tokens


def test_parts_are_what_the_trace_says(run):
    from synseg_kit.atlas import Quantised, layer_part, self_part, to_atlas
    trace, layers, image, _ = run
    atlas = to_atlas(trace, image, TOYS, layers=layers)
    about, tensors = unpack(layer_part(layers, 0, atlas.words))
    for i, (name, rows, columns, heads) in enumerate(atlas.layers):
        maps = Quantised(tensors[f'layer.{i}'], tensors[f'layer.{i}.scale']).maps
        assert maps.shape == (heads, len(atlas.words), rows, columns)
        assert np.allclose(maps[1, 1], layers.word_map('cat', 0, layer=name, head=1).numpy(), atol=2e-3)
    about, tensors = unpack(self_part(layers))
    rows = Quantised(tensors['self'], tensors['self.scale']).maps.reshape(256, 256)
    assert np.allclose(rows.sum(1), 1, atol=.02) and np.allclose(rows, layers.self_attention(0).numpy(), atol=2e-3)
    total = sum(len(part()) for name, part in parts_of(atlas, (trace, layers), image, TOYS).items() if name in ('layers', 'self'))
    assert total < 16e6


def test_side_words_and_traces_without_steps(run, pipe):
    from synseg_kit.atlas import to_atlas
    from synseg_kit.attention import look
    trace, layers, image, prompt = run
    seen = look(pipe, [image], [prompt], 300, side=['bird wolf'], tokens='all')
    atlas = to_atlas(seen, image, TOYS)
    assert [word.text for word in atlas.words if word.kind == 'side'] == ['bird', 'wolf'] and atlas.steps == () and atlas.maps.values.shape[1] == 1
    bird = [word.text for word in atlas.words].index('bird')
    assert np.allclose(atlas.heat([bird]), seen.word_map('bird', 0, weights=seen.calls()).numpy(), atol=2e-3)
    two = look(pipe, [image], [prompt], 300, side=['bird', 'boat'], tokens='all')
    with pytest.raises(ValueError, match='one side text; got 2'): to_atlas(two, image)


def test_a_trace_of_no_words_is_refused(run, pipe):
    from synseg_kit.atlas import to_atlas
    from synseg_kit.attention import look
    nothing = look(pipe, [run[2]], ['grass'], 300, tokens='mentions', self_attention=(16,))
    with pytest.raises(ValueError, match="tokens='all'"): to_atlas(nothing, run[2])


# views

def test_a_view_survives_json_and_names_words():
    view = View(words=['cat', 0], steps=[1, 3], layers=[[0, None], [1, 2]], pin=[3, 4], panel='mask')
    assert View(**json.loads(json.dumps(view.to_json()))) == view and hash(view)
    assert settle(view, made_up(layers=(('a', 6, 8, 4), ('b', 6, 8, 4)))).words == (1, 2, 0)
    assert settle(None, made_up()).words == (1,) and settle(None, made_up(('by', 'mushroom', 'sea'))).words == (1,)


@pytest.mark.parametrize(('wrong', 'message'), [({'show': 'all'}, "show is 'heat' or"), ({'colours': 'jet'}, "colours is 'viridis'"), ({'low': .8}, 'thresholds rise'), ({'opacity': 2}, 'opacity goes from 0 to 1'),
                                                ({'steps': (3, 1)}, 'first and the last'), ({'words': 'cat'}, 'must be a sequence')])
def test_wrong_views_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): View(**wrong)


def test_a_view_of_another_image_is_refused():
    for view, message in ((View(['wolf']), "'wolf' is no word here; there are a, cat, dog"), (View([9]), '9 is no word'), (View(steps=(0, 5)), 'the atlas has 5, from 0'), (View(layers=[[1, None]]), 'there is no layer 1')):
        with pytest.raises(ValueError, match=re.escape(message)): settle(view, made_up(layers=(('a', 6, 8, 1),)))


def test_the_picture_follows_the_view():
    atlas = made_up()
    assert (view_picture(atlas, View()) == atlas.image).all()
    one, other = view_picture(atlas, View(['dog'])), view_picture(atlas, View(['dog'], steps=(2, 2)))
    assert one.shape == atlas.image.shape and (one != other).any() and (view_picture(atlas, View(['dog'], scale='words')) != one).any()
    assert (view_picture(atlas, View(['dog'], opacity=0)) == view_picture(atlas, View(['cat'], opacity=0))).all()


# pages

def test_the_script_knows_every_choice_and_key():
    source = script('explorer')
    for key, known in CHOICES.items():
        options = re.search(rf"bound\('{key}', [^\[]*(\[\[.*?\]\])", source, re.S)
        assert tuple(re.findall(r"\['(\w+)'", options[1])) == known, key
    for field in fields(View): assert f'view.{field.name}' in source or f"bound('{field.name}'" in source or re.search(rf'\b{field.name}\b', source), field.name


def test_a_page_asks_nobody_and_holds_everything():
    atlas = made_up()
    explorer = explore(atlas)
    explorer.parts['layers'] = lambda: pack({'part': 'layers'}, {})
    text = explorer.to_html()
    bare = re.sub(r'<script type="text/plain".*?</script>', '', text, flags=re.S)
    assert not re.findall(r'(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9.-]+\.[a-z]{2,}', re.sub(r'//.*(?=\n)', '', bare)) and 'import ' not in bare.replace('from synseg_kit', '').split('<script type="module">')[1].split('codeText')[0]
    assert "default-src 'none'" in text and not re.search(r'<(?:link|img|script|iframe)[^>]*(?:src|href)="(?!data:)', bare)
    held = gzip.decompress(base64.b64decode(re.search(r'id="atlas">(.*?)</script>', text)[1]))
    assert held == atlas.to_bytes() and json.loads(re.search(r'id="values">(.*?)</script>', text)[1])['parts'] == {'layers': 'part0'}
    assert explorer.to_html() == text


def test_nothing_in_a_prompt_ends_a_script():
    text = page({'view': {}, 'text': '</script><b>'}, {}, {}, title='</title><script>alert(1)</script>')
    assert '</script><b>' not in text and '<title>&lt;/title&gt;' in text
    assert stylesheet().count('{') == stylesheet().count('}') and '@import' not in stylesheet() and 'url(' not in stylesheet()


def test_an_explorer_kept_in_a_file_is_the_same_explorer(tmp_path):
    one, other = made_up(layers=(('up.0', 6, 8, 1),)), made_up(('a', 'dog'), title='right')
    explorer = explore(one, view=View(['dog'], (1, 2), panel='mask'), beside=other)
    explorer.parts['layers'] = lambda: pack({'part': 'layers'}, {'layer.0': np.zeros((1, 4, 6, 8), np.uint8), 'layer.0.scale': np.zeros((1, 4, 2), np.float32)})
    explorer.parts['words'] = lambda text: b''
    path = explorer.save(tmp_path / 'one.safetensors')
    again = load_explorer(path)
    assert again.to_html() == explorer.to_html() and again.offers == ['layers', 'page'] and View(**again.view) == View(**explorer.view)
    assert again.save(tmp_path / 'two.safetensors').read_bytes() == path.read_bytes()
    (tmp_path / 'atlas').write_bytes(one.to_bytes())
    with pytest.raises(ValueError, match='holds no explorer'): load_explorer(tmp_path / 'atlas')
    with pytest.raises(ValueError, match='nothing to show yet'): Explorer().save(tmp_path / 'three.safetensors')


def test_the_run_that_the_docs_show_is_small_and_whole(root):
    path = root / 'nbs/images/explorer.safetensors'
    explorer = load_explorer(path)
    assert path.stat().st_size < 1e6 and explorer.shown.text == 'a photo of a cat and a dog on grass' and explorer.shown.reference_name == 'the segmenter'
    assert explorer.offers == ['layers', 'self', 'previews', 'mask:daam', 'mask:otsu', 'mask:synseg', 'page'] and len(explorer.to_html()) < 1e6


# the widget

def test_explore_says_what_it_takes(run):
    trace, layers, image, _ = run
    with pytest.raises(TypeError, match='a Trace, a pipeline, a dataset or an Atlas; got str'): explore('cat')
    with pytest.raises(ValueError, match='give the image as well'): explore(trace)
    with pytest.raises(TypeError, match="no argument 'colour'"): explore(trace, image, colour=1)
    with pytest.raises(ValueError, match='needs the class_set'): explore(trace, image, reference=np.zeros((128, 128), np.uint8))
    with pytest.raises(ValueError, match='nothing to show yet'): Explorer().to_html()


def test_parts_are_made_once_and_errors_are_told(run):
    trace, layers, image, _ = run
    explorer = explore(trace, image, TOYS, layers=layers, reference=np.zeros((128, 128), np.uint8), view={'words': ['dog'], 'steps': [1, 2]})
    assert explorer.view['words'] == [4] and explorer.view['steps'] == [1, 2] and 'mask:synseg' in explorer.offers and explorer.offers[-1] == 'page'
    sent = []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    for name in ('self', 'self', 'mask:otsu', 'page', 'stars'): explorer.answer({'ask': name})
    assert [content.get('part') for content, _ in sent] == ['self', 'self', 'mask:otsu', None, None]
    assert sent[0][1][0] is sent[1][1][0] and sent[3][0]['file'] == 'explorer.html' and sent[3][1][0].startswith(b'<!doctype html>')
    assert "there is no 'stars' to be had" in sent[4][0]['error']
    from synseg_kit.recipes import recipe
    expected = recipe('otsu')(trace, [image], TOYS)[0].labels
    assert (unpack(sent[2][1][0])[1]['labels'] == local_labels(expected, explorer.shown.classes, TOYS)).all()


def test_the_mask_comes_back_as_class_ids(run):
    trace, layers, image, _ = run
    explorer = explore(trace, image, TOYS)
    with pytest.raises(ValueError, match='no mask was made yet'): _ = explorer.mask
    labels = np.zeros((128, 128), np.uint8)
    labels[0], labels[1], labels[2] = 1, 2, VOID
    explorer.set_state({'labels': memoryview(labels.tobytes())})  # as a browser sends it
    assert explorer.mask[:4, 0].tolist() == [TOYS.id_of('cat'), TOYS.id_of('dog'), 255, 0] and explorer.mask.dtype == np.uint8


def test_recipes_are_offered_where_the_trace_serves_them(run):
    from synseg_kit.recipes import RECIPES
    trace, layers, *_ = run
    assert {name: (serves(trace, one), serves(layers, one)) for name, one in RECIPES.items()} == {
        'attn2mask': (True, False), 'daam': (True, True), 'dataset_diffusion': (False, True), 'diffumask': (False, True), 'seediff': (False, True), 'otsu': (True, True), 'synseg': (False, True)}


def test_a_picture_stands_where_there_is_no_kernel():
    data, _ = explore(made_up())._repr_mimebundle_()
    assert base64.b64decode(data['image/png']).startswith(b'\x89PNG') and 'application/vnd.jupyter.widget-view+json' in data


def test_a_studio_generates_and_can_be_stopped(pipe):
    studio = Studio(pipe, TOYS, guidance_scale=3.)
    told = []
    studio.observe(lambda change: told.append(dict(change.new)), 'status')
    studio.answer({'ask': 'generate', 'prompt': 'a ball on grass', 'steps': 3, 'seed': 1})
    studio.worker.join(120)
    assert [one.get('done') for one in told if one.get('busy')] == [0, 1, 2, 3, 1] and studio.status == {}
    assert studio.shown.text == 'a ball on grass' and studio.shown.num_steps == 3 and len(studio.atlas) > 1000
    namespace = {'pipe': pipe, 'class_set': TOYS}
    exec(studio.shown.code, namespace)
    assert (np.asarray(namespace['image']) == studio.shown.image).all()
    before, reached = studio.atlas, threading.Event()

    def stop(change):
        if change.new.get('done') == 1 and not reached.is_set():
            reached.set()
            studio.answer({'ask': 'stop'})
    studio.observe(stop, 'status')
    studio.answer({'ask': 'generate', 'prompt': 'a cat', 'steps': 50, 'seed': 1})
    studio.worker.join(120)
    assert studio.status == {'text': 'stopped'} and studio.atlas == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())  # nothing of a stopped run is left behind
    studio.answer({'ask': 'generate', 'prompt': ' '.join(['cat'] * 60), 'steps': 2, 'seed': 1})
    studio.worker.join(120)
    assert studio.status['error'].startswith('PromptTooLong')


class HalfDog:
    """Labels the left half of every image as a dog."""
    class_set = TOYS

    def predict(self, images):
        labels = [np.zeros(np.asarray(image).shape[:2], np.uint8) for image in images]
        for one in labels: one[:, :one.shape[1] // 2] = TOYS.id_of('dog')
        return labels


def test_a_segmenter_is_a_reference(run):
    trace, layers, image, _ = run
    for segmenter in (HalfDog(), HalfDog().predict):
        shown = explore(trace, image, TOYS, reference=segmenter).shown
        assert shown.reference_name == 'the segmenter' and [one.name for one in shown.classes] == ['cat', 'dog']
        assert (shown.reference[:, :64] == 2).all() and (shown.reference[:, 64:] == 0).all()
    mask = np.zeros((128, 128), np.uint8)
    assert reference_of(mask, image, TOYS) == (mask, '') and reference_of(None, image, None) == (None, '')
    with pytest.raises(ValueError, match="knows the classes of 'toy', the explorer those of 'cityscapes'"): reference_of(HalfDog(), image, cityscapes())
    with pytest.raises(ValueError, match='give both the same class_set'): explore(trace, image, reference=HalfDog())
    with pytest.raises(TypeError, match='reference is a segmenter here, got ndarray'): Studio(None, TOYS, reference=mask)


def test_a_studio_keeps_what_the_model_expected_and_asks_a_segmenter(pipe):
    import io

    from PIL import Image
    studio = Studio(pipe, TOYS, guidance_scale=3., reference=HalfDog()).generate('a cat', 3, 1)
    assert 'previews' in studio.offers and (studio.shown.reference[:, :64] == 1 + [one.name for one in studio.shown.classes].index('dog')).all()
    assert 'previews' not in studio._made and 'part1' not in studio.to_html()[-400:]  # nothing is decoded until somebody looks
    about, tensors = unpack(studio.part('previews'))
    film = np.asarray(Image.open(io.BytesIO(tensors['film'].tobytes()))).astype(int)
    assert about == {'part': 'previews', 'steps': [0, 1, 2], 'size': [128, 128]} and film.shape == (384, 128, 3)
    assert abs(film[256:] - studio.shown.image).mean() < 3 < abs(film[:128] - studio.shown.image).mean()
    assert '"previews": "part' in studio.to_html()


def test_of_long_runs_some_steps_are_decoded():
    from synseg_kit.explorer import previews_part

    class Long:
        def __len__(self): return 120
        def pictures(self, index, steps, size, side): return [np.zeros((8, 8, 3), np.uint8)] * len(steps)
    about, _ = unpack(previews_part(Long(), (8, 8)))
    assert len(about['steps']) == PREVIEWS and about['steps'][0] == 0 and about['steps'][-1] == 119 and set(np.diff(about['steps'])) <= {2, 3}


def test_a_scheduler_that_tells_nothing_is_no_hindrance(pipe):
    from diffusers import HeunDiscreteScheduler
    before = pipe.scheduler
    try:
        pipe.scheduler = HeunDiscreteScheduler(prediction_type='v_prediction')
        assert 'previews' not in Studio(pipe, TOYS).generate('a cat', 2).offers
    finally: pipe.scheduler = before


def test_plain_widgets_show_the_same():
    plain = explore(made_up(), plain=True, view=View(['dog'], (1, 2)))
    assert isinstance(plain, Plain) and plain.view == View([3], (1, 2))
    before = plain.picture.value
    plain.steps.value = (0, 4)
    assert plain.picture.value != before and 'cat (2)' in dict(plain.words.options)


def test_importing_the_explorer_imports_no_torch():
    assert subprocess.run([sys.executable, '-c', 'import sys, synseg_kit.explorer; sys.exit("torch" in sys.modules)']).returncode == 0
