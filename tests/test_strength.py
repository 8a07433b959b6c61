"""An adapter at several strengths: each as diffusers paints it, the pipeline as it was before, and what the widget sends."""
import json
import re

import numpy as np
import pytest
import torch
from synseg_kit.atlas import read_atlas
from synseg_kit.classes import ClassSet
from synseg_kit.lora import LoraSettings, add_adapter, at_strength, set_strength, without_adapters
from synseg_kit.prompts import find_mentions
from synseg_kit.strength import PLAIN_VIEW, STRENGTHS, coarse_to_fine, compare_strengths, paint_at, show_strengths
from tiny import tiny_pipeline

PETS = ClassSet('pets', ('cat', 'dog', 'ball'), None)
TEXT = 'a red cat on the dog'
RUN = dict(steps=2, seed=3, guidance_scale=3.)


@pytest.fixture(scope='module')
def pipe():
    """A tiny pipeline with two adapters that do something."""
    pipe = tiny_pipeline()
    for seed, name in enumerate(('adapted', 'other')):
        weights, generator = add_adapter(pipe, LoraSettings(rank=2, seed=seed), name), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in weights.values(): weight.copy_(.3 * torch.randn(weight.shape, generator=generator))
    set_strength(pipe, {'adapted': 1.})
    return pipe


def plain(pipe): return np.asarray(pipe(TEXT, num_inference_steps=2, guidance_scale=3., generator=torch.Generator().manual_seed(3)).images[0])


def mixture(pipe):
    """All that a mixture of adapters is, layer by layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    return {name: (dict(layer.scaling), list(layer.active_adapters), layer.disable_adapters) for name, layer in pipe.unet.named_modules() if isinstance(layer, BaseTunerLayer)}


def weights(pipe): return {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}


@pytest.mark.parametrize('before', [{'adapted': 1.}, {'adapted': .4, 'other': .7}, {'other': -.5}], ids=str)
def test_afterwards_adapters_are_mixed_as_they_were(pipe, before):
    set_strength(pipe, before)
    seen, picture, numbers = mixture(pipe), plain(pipe), weights(pipe)
    with at_strength(pipe, {'adapted': 2.}): assert not np.array_equal(plain(pipe), picture)
    assert mixture(pipe) == seen and np.array_equal(plain(pipe), picture)
    with pytest.raises(RuntimeError), at_strength(pipe, {'adapted': .1}): raise RuntimeError
    with pytest.raises(ValueError, match='adaptid'), at_strength(pipe, {'adaptid': .1}): pass
    assert mixture(pipe) == seen
    with without_adapters(pipe):
        base = plain(pipe)
        with at_strength(pipe, {'adapted': 1.}): assert not np.array_equal(plain(pipe), base)
        assert np.array_equal(plain(pipe), base)
    assert all(torch.equal(tensor, numbers[name]) for name, tensor in pipe.unet.state_dict().items())
    set_strength(pipe, {'adapted': 1.})


def test_each_strength_is_what_diffusers_paints(pipe):
    prompt = find_mentions(TEXT, PETS)
    for strength in (.5, 1.):
        atlas = paint_at(pipe, prompt, strength, class_set=PETS, **RUN)
        with at_strength(pipe, {'adapted': strength}): assert np.array_equal(atlas.image, plain(pipe))
        assert [word.text for word in atlas.words] == TEXT.split() and [word.class_id for word in atlas.words] == [None, None, 0, None, None, 1] and atlas.title == f'{strength:g}'
    with without_adapters(pipe): assert np.array_equal(paint_at(pipe, prompt, 0., **RUN).image, plain(pipe))


def test_an_early_stop_leaves_an_even_sample():
    assert [coarse_to_fine(count) for count in (1, 2, 3, 5)] == [[0], [0, 1], [0, 2, 1], [0, 4, 2, 1, 3]]
    assert sorted(coarse_to_fine(9)) == [*range(9)] and coarse_to_fine(9)[:5] == [0, 8, 4, 2, 6]


def test_strengths_are_painted_once_and_can_be_stopped(pipe):
    seen, told, made = mixture(pipe), [], compare_strengths(pipe, TEXT, PETS, **RUN)
    assert made.atlases == {} and made.offers == ['paint'] and made.strengths == STRENGTHS
    def watch(change):
        told.append(change.new)
        if len(told) == 3: made.answer({'ask': 'stop'})
    made.observe(watch, 'status')
    made.paint()
    assert list(made.atlases) == [0.] and made.status == {'text': 'stopped'} and mixture(pipe) == seen
    assert told[:2] == [{'busy': True, 'done': step, 'total': 10, 'text': 'painting at strength 0'} for step in (1, 2)]
    made.unobserve_all('status')
    first = made.atlases[0.]
    made.paint()
    assert made.atlases[0.] is first and list(made.atlases) == [0., 1., .5, .25, .75] and made.offers == [*(f'strength:{i}' for i in range(5)), 'paint'] and made.status == {}
    assert made.paint().atlases[0.] is first and mixture(pipe) == seen


def test_the_widget_answers(pipe):
    made = compare_strengths(pipe, TEXT, PETS, strengths=[1], **RUN)
    sent = []
    made.send = lambda content, buffers=None: sent.append((content, buffers))
    made.answer({'ask': 'strength:1'})
    made.answer({'ask': 'paint'})
    assert made.status['busy']
    made.answer({'ask': 'paint'})  # while it paints already
    made.worker.join(120)
    assert not made.worker.is_alive() and made.status == {} and made.about == {'text': TEXT, 'name': 'adapted', 'seed': 3, 'strengths': [0., 1.], 'base': 0}
    made.answer({'ask': 'strength:1'})
    assert "no 'strength:1' to be had; there are paint" in sent[0][0]['error'] and sent[1][0] == {'part': 'strength:1'}
    assert np.array_equal(read_atlas(sent[1][1][0]).image, made.atlases[1.].image)


def test_what_goes_wrong_is_told_in_the_widget(pipe):
    made, seen = compare_strengths(pipe, TEXT, PETS, steps=2, callback_on_step_end_tensor_inputs=['dreams']), mixture(pipe)
    made.answer({'ask': 'paint'})
    made.worker.join(120)
    assert 'ValueError' in made.status['error'] and 'dreams' in made.status['error'] and mixture(pipe) == seen and made.atlases == {}


def test_a_page_and_a_picture_of_what_was_painted(pipe, tmp_path):
    made = compare_strengths(pipe, TEXT, PETS, strengths=(.5, 1), **RUN)
    with pytest.raises(ValueError, match='call paint'): made.page(tmp_path / 'page.html')
    with pytest.raises(ValueError, match='call paint'): made.show()
    assert 'image/png' not in made._repr_mimebundle_()[0]
    text = made.paint().page(tmp_path / 'page.html').read_text()
    about = json.loads(re.search(r'id="values">(.*?)</script>', text)[1])
    assert "default-src 'none'" in text and set(about['parts']) == {'strength:0', 'strength:1', 'strength:2'} == set(about['values']['offers'])
    figure = made.show('dog')
    assert [ax.get_title(loc='left') for ax in figure.axes[:3]] == ['base', '0.5', '1'] and len(figure.axes) == 6
    assert made._repr_mimebundle_()[0]['image/png']
    with pytest.raises(ValueError, match="'owl' is no word here"): show_strengths(made.atlases, 'owl')


def test_what_cannot_be_compared_is_refused(pipe):
    with pytest.raises(ValueError, match="no adapter 'mine'; it has 'adapted', 'other'"): compare_strengths(pipe, TEXT, name='mine')
    with pytest.raises(ValueError, match='none: train one with adapt'): compare_strengths(tiny_pipeline(), TEXT)
    with pytest.raises(ValueError, match='one beside 0'): compare_strengths(pipe, TEXT, strengths=())
    with pytest.raises(ValueError, match='at least 1 step'): compare_strengths(pipe, TEXT, steps=0)
    with pytest.raises(ValueError, match="has no 'zoom'"): compare_strengths(pipe, TEXT, view={'zoom': 1})
    assert compare_strengths(pipe, TEXT, view={'show': 'images'}).view == {**PLAIN_VIEW, 'show': 'images'}
