"""The history of a training: lines on disk, curves, pictures, and the widget that draws them while it runs."""
import base64
import json
import os
import re
from pathlib import Path

import pytest
from synseg_kit.curves import Curves, in_notebook
from synseg_kit.history import HISTORY, add_look, curves_of, read_history, show_training, write_history

LOOKS = [{'step': step, 'loss': 1 / step, 'learning_rate': 1e-3} for step in range(20, 201, 20)]


def test_a_history_comes_back_and_ends_where_it_is_told(tmp_path):
    assert write_history(tmp_path / 'run', LOOKS) == tmp_path / 'run' / HISTORY and os.listdir(tmp_path / 'run') == [HISTORY]
    assert read_history(tmp_path / 'run') == LOOKS
    assert read_history(str(tmp_path / 'run'), 100) == LOOKS[:5] and read_history(tmp_path / 'run', 0) == []


@pytest.mark.parametrize('line', ['{"step": 3', '[1]', '{"loss": 1}', '3', ''])
def test_a_line_that_is_no_look_is_named(tmp_path, line):
    (tmp_path / HISTORY).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match='line 2: needed is a JSON object with a step'): read_history(tmp_path)


def test_a_folder_without_history_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'has no {HISTORY}; a training writes it at its first checkpoint'): read_history(tmp_path)


def test_looks_from_before_a_kill_give_way():
    history = [dict(look) for look in LOOKS]
    add_look(history, {'step': 120, 'loss': 7.})
    assert [look['step'] for look in history] == [20, 40, 60, 80, 100, 120] and history[-1] == {'step': 120, 'loss': 7.}
    add_look(history, {'step': 10, 'loss': 8.})
    assert history == [{'step': 10, 'loss': 8.}]


def test_long_curves_are_averages_of_neighbours():
    history = [{'step': step, 'loss': float(step), **({'miou': step / 1000} if step % 100 == 0 else {})} for step in range(1, 1002)]
    loss, miou = curves_of(history, most=100)
    assert len(loss['steps']) == 91 and loss['steps'][:2] == [11, 22] and loss['values'][:2] == [6., 17.] and loss['steps'][-1] == 1001
    assert sum(loss['values'][:-1]) * 11 == sum(range(1, 991))  # nothing is lost
    assert miou == {'name': 'miou', 'title': 'mIoU', 'steps': [*range(100, 1001, 100)], 'values': [i / 10 for i in range(1, 11)]}
    assert curves_of([]) == []


def test_numbers_that_are_none_are_left_out():
    curves = curves_of([{'step': 1, 'loss': 1., 'miou': float('nan')}, {'step': 2, 'loss': float('inf'), 'miou': .5}])
    assert [(curve['steps'], curve['values']) for curve in curves] == [([1], [1.]), ([2], [.5])]
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves


def test_the_picture_has_a_panel_for_each_number_and_a_line_for_each_training(tmp_path):
    write_history(tmp_path / 'first', LOOKS)
    figure = show_training(tmp_path / 'first', [{**look, 'miou': .5} for look in LOOKS])
    assert [ax.get_title(loc='left') or ax.get_title() for ax in figure.axes] == ['loss', 'learning rate', 'mIoU']
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 1]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [look['step'] for look in LOOKS] and figure.axes[0].lines[0].get_ydata().tolist() == [look['loss'] for look in LOOKS]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ['first', 'training 2']
    assert show_training(LOOKS).axes[0].get_legend() is None


def test_curves_are_a_log_and_a_tracker_and_go_on_where_a_folder_ends(tmp_path):
    curves = Curves(tmp_path / 'not yet')
    assert curves.curves == [] and not in_notebook()
    for look in LOOKS: curves(look)
    write_history(tmp_path, curves.history)
    again = Curves(tmp_path)
    assert again.curves == curves.curves == curves_of(LOOKS)
    again.log({'loss': .5}, step=110)
    assert again.curves[0]['steps'] == [20, 40, 60, 80, 100, 110] and again.curves[0]['values'][-1] == .5
    assert LOOKS[-1]['step'] == 200  # what was handed in stays as it was


def test_curves_show_themselves_once(monkeypatch):
    import sys
    from types import SimpleNamespace
    displayed = []
    here = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=displayed.append))
    monkeypatch.setitem(sys.modules, 'IPython', here)
    curves = Curves()
    for look in LOOKS[:3]: curves(look)
    assert displayed == [curves]
    shown = Curves()
    shown._repr_mimebundle_()  # as the value of a cell
    shown(LOOKS[0])
    assert displayed == [curves]
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=lambda: None))
    Curves()(LOOKS[0])  # a script that has imported IPython for something else
    assert displayed == [curves]


def test_curves_have_a_picture_where_there_is_no_kernel():
    curves = Curves()
    assert 'image/png' not in curves._repr_mimebundle_()[0]
    curves(LOOKS[0])
    assert base64.b64decode(curves._repr_mimebundle_()[0]['image/png'])[:4] == b'\x89PNG'


def test_the_page_of_curves_asks_nobody(tmp_path):
    curves = Curves()
    for look in LOOKS: curves(look)
    text = Path(curves.page(tmp_path / 'page.html', 'My <training>')).read_text()
    assert "default-src 'none'" in text and '<title>My &lt;training&gt;</title>' in text
    assert json.loads(re.search(r'id="values">(.*?)</script>', text)[1])['values']['curves'] == curves.curves
