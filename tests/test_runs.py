"""Runs: notebooks read without running them, jobs that keep what was good, result files that carry their circumstances."""
import json
import math
import platform
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from synseg_kit import runs
from synseg_kit.report import Gallery, Numbers, Picture, Section, Table, render_report, write_report

PARAMETERS = """set: str = 'smoke'  # filled in by the run
out: str = 'out'  # filled in by the run
seed: int = 0  # of every random number
rate: float = 0.5  # a share, 0 to 1
model: str | None = None  # path or hub name
size: tuple[int, int] = (8, 8)  # height and width
fail: bool = False  # raise in the middle"""
SETS = "SETS = {'small': dict(rate=0.25), 'paper': {'rate': 1, 'size': (64, 64)}}"
WORK = """import sys
from pathlib import Path
from tqdm.auto import tqdm
for number in tqdm(range(3), desc='work'): pass
if fail: raise ValueError('the middle\\n  went wrong')"""
RESULT = """from synseg_kit.runs import parameters_of, write_result
write_result(out, parameters_of(NOTEBOOK, globals()), {'rate_squared': rate ** 2}, seed, 1.5)"""


@pytest.fixture
def job(tmp_path):
    """Write a run notebook; `job(tag=source)` replaces cells."""
    def write(name='job', parameters=PARAMETERS, sets=SETS, work=WORK, result=RESULT):
        path = tmp_path / f'{name}.ipynb'
        cells = [nbformat.v4.new_markdown_cell('# A job')]
        if parameters is not None: cells.append(nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']}))
        if sets is not None: cells.append(nbformat.v4.new_code_cell(sets, metadata={'tags': ['sets']}))
        cells += [nbformat.v4.new_markdown_cell('## The middle'), nbformat.v4.new_code_cell(work)]
        cells.append(nbformat.v4.new_code_cell(result.replace('NOTEBOOK', repr(str(path)))))
        kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
        return path
    return write


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """One run that went well: its folder, and what `run` returned."""
    folder = tmp_path_factory.mktemp('done')
    path = folder / 'job.ipynb'
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
             nbformat.v4.new_code_cell(SETS, metadata={'tags': ['sets']}), nbformat.v4.new_code_cell(WORK),
             nbformat.v4.new_code_cell(RESULT.replace('NOTEBOOK', repr(str(path))))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return folder / 'out', runs.run(path, folder / 'out', 'small', {'seed': 7, 'model': 'here'}, progress=False)


def test_reading_runs_nothing(job):
    found = runs.read_run(job(work='raise SystemExit'))
    assert [p.name for p in found.parameters] == ['set', 'out', 'seed', 'rate', 'model', 'size', 'fail']
    assert found.parameters[3] == runs.Parameter('rate', 'float', 0.5, 'a share, 0 to 1')
    assert list(found.sets) == ['smoke', 'small', 'paper']


def test_help_may_hold_hashes_and_other_letters():
    first, second = runs.read_parameters("a: str = '#ä'  # größer # than\nb: int = 2")
    assert (first.default, first.help, second.help) == ('#ä', 'größer # than', '')


def test_values_come_from_defaults_then_set_then_caller(job):
    found = runs.read_run(job())
    assert found.resolve()['rate'] == 0.5
    assert found.resolve('small')['rate'] == 0.25
    assert found.resolve('paper', {'rate': 0.75}) == {'seed': 0, 'rate': 0.75, 'model': None, 'size': (64, 64), 'fail': False}


@pytest.mark.parametrize(('changes', 'says'), [
    ({'rat': 1.0}, "has no parameter 'rat': did you mean rate?"),
    ({'rate': 'much'}, "parameter rate is float, got 'much'"),
    ({'seed': 1.5}, 'parameter seed is int, got 1.5'),
    ({'seed': True}, 'parameter seed is int, got True'),
    ({'out': 'there'}, "has no parameter 'out'"),
])
def test_wrong_parameters_are_refused(job, changes, says):
    with pytest.raises(ValueError, match='(?s)') as error: runs.read_run(job()).resolve('smoke', changes)
    assert says in str(error.value)


def test_a_set_that_names_an_unknown_parameter_is_refused_when_read(job):
    with pytest.raises(ValueError, match="set 'small' of job.ipynb has no parameter 'rte': did you mean rate"):
        runs.read_run(job(sets="SETS = {'small': {'rte': 1.0}}"))


@pytest.mark.parametrize('text', ["'smoke'", 'import os', 'SETS = dict(small=os)', 'A = {}', "SETS = {'a': {}}; B = 1"])
def test_a_sets_cell_of_another_kind_is_refused(text):
    with pytest.raises(ValueError, match='the sets cell must'): runs.read_sets(text)


@pytest.mark.parametrize(('kind', 'text', 'value'), [
    ('int', '3', 3), ('float', '1e-3', 1e-3), ('float', '2', 2), ('str', '3', '3'), ('bool', 'False', False), ('bool', 'true', True),
    ('str | None', 'None', None), ('str | None', 'a b', 'a b'), ('tuple[int, int]', '(1, 2)', (1, 2)), ('int | None', 'None', None),
])
def test_text_becomes_a_value_of_the_type(kind, text, value):
    assert runs.parse_value(runs.Parameter('x', kind, None), text) == value


@pytest.mark.parametrize(('kind', 'text'), [('int', '3.5'), ('int', 'three'), ('bool', '1'), ('float', 'a'), ('tuple', '3'),
                                            ('int', '__import__("os")')])
def test_text_of_another_type_is_refused(kind, text):
    with pytest.raises(ValueError, match='parameter x is'): runs.parse_value(runs.Parameter('x', kind, None), text)


def test_a_run_leaves_its_notebook_and_its_result(done):
    out, result = done
    assert sorted(path.name for path in out.iterdir()) == ['notebook.html', 'notebook.ipynb', 'result.json']
    assert result == json.loads((out / 'result.json').read_text())
    assert set(result) == {'parameters', 'metrics', 'seed', 'versions', 'commit', 'hardware', 'seconds'}
    assert result['parameters'] == {'set': 'small', 'seed': 7, 'rate': 0.25, 'model': 'here', 'size': [8, 8], 'fail': False}
    assert result['metrics'] == {'rate_squared': 0.0625} and result['seed'] == 7 and result['seconds'] == 1.5


def test_progress_in_a_kernel_is_text_and_is_kept_as_its_last_state(done):
    cells = nbformat.read(done[0] / 'notebook.ipynb', as_version=4).cells
    said = ''.join(output.get('text', '') for cell in cells for output in cell.get('outputs', []))
    assert 'work: 100%' in said and 'work:   0%' not in said


def test_a_result_names_no_machine(done):
    text = json.dumps(done[1])
    assert platform.node() not in text and str(done[0]) not in text


def test_a_failing_cell_is_one_line_and_the_good_result_stays(job, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'result.json').write_text('{"good": 1}')
    with pytest.raises(runs.RunFailed) as error: runs.run(job(), out, parameters={'fail': True}, progress=False)
    message = str(error.value)
    assert '\n' not in message and 'job.ipynb: cell In [' in message
    assert 'under “The middle” raised ValueError: the middle went wrong' in message
    kept = nbformat.read(out / 'notebook.failed.ipynb', as_version=4)
    assert any(output.output_type == 'error' for cell in kept.cells for output in cell.get('outputs', []))
    assert json.loads((out / 'result.json').read_text()) == {'good': 1}
    assert not (out / 'notebook.running.ipynb').exists()


def test_a_run_without_a_result_says_so(job, tmp_path):
    with pytest.raises(runs.RunFailed, match='ended without writing .*write_result'):
        runs.run(job(result='pass'), tmp_path / 'out', progress=False)


def test_a_result_that_was_there_before_does_not_count_whatever_the_clock_says(job, tmp_path):
    """A clock that stands still gives the new file the time stamp of the old one, and one that was set back an older one."""
    again = "import os\n" + RESULT.replace("write_result(out,", "written = write_result(out,") + "\nos.utime(written, ns=(7, 7))"
    path = job(result=again)
    for _ in range(2): assert runs.run(path, tmp_path / 'out', progress=False)['metrics'] == {'rate_squared': 0.25}
    with pytest.raises(runs.RunFailed, match='ended without writing'): runs.run(job(result='pass'), tmp_path / 'out', progress=False)


def test_bars_that_follow_a_longer_line_erase_it():
    from io import StringIO

    class Terminal(StringIO):
        """A text file that says it is a terminal."""
        def isatty(self): return True

    for terminal, written in ((Terminal(), 'a\r\x1b[Kwork: 1%'), (StringIO(), 'a\rwork: 1%')):
        live = runs.LiveText(terminal)
        live.write('a\rwork: 1%')
        live.flush()
        assert terminal.getvalue() == written


def test_the_page_of_a_notebook_needs_nothing_from_the_net(done):
    page = (done[0] / 'notebook.html').read_text()
    assert "default-src 'none'" in page and 'work: 100%' in page and 'rate = 0.25' in page.replace('<span class="o">=</span>', '=').replace('</span>', '').replace('<span class="n">', '').replace('<span class="mf">', '').replace('<span class="p">', '')
    for word in ('<script', '@import', 'url(', 'src="http'): assert word not in page


@pytest.mark.parametrize('name', [name for name in runs.run_names() if name not in ('make_lexicon', 'train_toy')])
def test_every_study_has_its_three_sets(name): assert {'smoke', 'small', 'paper'} <= set(runs.read_run(name).sets)


def test_bad_input_writes_nothing(job, tmp_path):
    out = tmp_path / 'out'
    for call in (lambda: runs.run('missing.ipynb', out), lambda: runs.run(job(parameters=None), out),
                 lambda: runs.run(job(), out, 'tiny'), lambda: runs.run(job(), out, parameters={'x': 1})):
        with pytest.raises((ValueError, FileNotFoundError)): call()
    assert not out.exists()


def test_what_is_no_run_notebook_is_refused(tmp_path, job):
    text = tmp_path / 'text.ipynb'
    text.write_text('not JSON')
    with pytest.raises(ValueError, match=r'text\.ipynb is not a notebook'): runs.read_run(text)
    for content in ('[]', '{"cells": []}', '{"nbformat": 3, "worksheets": []}'):
        text.write_text(content)
        with pytest.raises(ValueError, match=r'text\.ipynb is not a notebook: needed is JSON with "nbformat": 4'): runs.read_run(text)
    with pytest.raises(ValueError, match='no cell tagged `parameters`'): runs.read_run(job(parameters=None))
    with pytest.raises(ValueError, match="line 1 of the parameters cell reads 'x = 3'"): runs.read_run(job(parameters='x = 3'))


def test_an_output_folder_that_is_a_file_is_refused(job, tmp_path):
    (tmp_path / 'out').write_text('mine')
    with pytest.raises(NotADirectoryError, match='is a file; a run needs a folder'): runs.run(job(), tmp_path / 'out')
    assert (tmp_path / 'out').read_text() == 'mine'


def test_commit_is_git_s_own(root):
    said = subprocess.run(['git', '-C', root, 'rev-parse', '--verify', 'HEAD'], capture_output=True, text=True)
    assert runs.commit() == (said.stdout.strip() if said.returncode == 0 else 'unknown')


def test_commit_of_an_installed_package_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(runs.synseg_kit, '__file__', str(tmp_path / 'site-packages/synseg_kit/__init__.py'))
    assert runs.commit() == 'unknown'


def test_hardware_describes_the_kind_of_machine():
    found = runs.hardware()
    assert set(found) == {'cpu', 'cores', 'memory_gb', 'gpu'}
    assert found['cores'] >= 1 and found['memory_gb'] > 0.5 and (found['gpu'] is None) == (not torch.cuda.is_available())


def test_peak_memory_grows_with_what_is_held():
    before, held = runs.peak_memory_gb(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = np.ones(held * (1 if sys.platform == 'darwin' else 1024) + 100_000_000, np.uint8)
    assert before + 0.1 <= runs.peak_memory_gb() <= before + 0.1 + 2 * held * 1024 / 1e9
    del block


@pytest.mark.parametrize(('value', 'plain'), [
    (np.float32(0.5), 0.5), (np.arange(3), [0, 1, 2]), (torch.tensor([[1.5]]), [[1.5]]), (np.bool_(True), True),
    (float('nan'), None), (np.array([1, np.inf]), [1.0, None]), ((1, Path('a/b')), [1, 'a/b']), ({1: None}, {'1': None}),
])
def test_values_become_plain(value, plain):
    found = runs.to_plain(value)
    assert found == plain and type(found) is type(plain)


def test_a_file_is_whole_or_not_there(tmp_path):
    runs.write_json(tmp_path / 'a.json', {'x': 1})
    with pytest.raises(TypeError): runs.write_json(tmp_path / 'a.json', {'x': object()})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'x': 1}
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_summary_is_mean_minimum_maximum_and_all():
    entries = [{'seed': 3, 'miou': 0.9, 'beats': True, 'seconds': 10, 'peak_memory_gb': 2.0, 'name': 'a', 'stages': {'a': 1}},
               {'seed': 4, 'miou': 0.7, 'beats': True, 'seconds': 30, 'peak_memory_gb': 1.0, 'name': 'b', 'stages': {'a': 2}}]
    assert runs.summarise(entries) == {'miou': pytest.approx(0.8), 'miou_min': 0.7, 'beats': True, 'seconds': 30, 'peak_memory_gb': 2.0}


def test_stale_results_are_those_whose_source_has_changed(tmp_path, monkeypatch):
    package, folder = tmp_path / 'synseg_kit', tmp_path / 'results'
    package.mkdir()
    for name in ('one', 'two'): (package / f'{name}.py').write_text(f'# {name}\n')
    monkeypatch.setattr(runs.synseg_kit, '__file__', str(package / '__init__.py'))
    runs.write_bench('first', [{'x': 1.0}], ['one'], folder)
    runs.write_bench('both', [{'x': 1.0}], ['one', 'two'], folder)
    assert runs.stale_results(folder) == []
    (package / 'two.py').write_text('# two, changed\n')
    assert [result.name for result in runs.stale_results(folder)] == ['both']
    (package / 'one.py').unlink()
    assert [result.name for result in runs.stale_results(folder)] == ['both', 'first']


def test_a_bench_file_holds_what_it_promises(tmp_path):
    path = runs.write_bench('x', [{'seed': 0, 'iou': np.float32(math.nan)}], ['runs'], tmp_path, summary=lambda entries: {'n': len(entries)})
    content = json.loads(path.read_text())
    assert {'commit', 'hardware', 'source_hash', 'entries', 'summary'} <= set(content)
    assert content['entries'] == [{'seed': 0, 'iou': None}] and content['summary'] == {'n': 1} and len(content['source_hash']) == 64


def test_committed_results_say_what_their_entries_say(root):
    for result in runs.read_results(root / 'nbs/bench/results'):
        if len({frozenset(entry) for entry in result.content['entries']}) > 1: continue  # measures of several kinds: the benchmark has a summary of its own
        for key, value in runs.summarise(result.content['entries']).items():
            if key in result.content['summary']: assert result.content['summary'][key] == pytest.approx(value), (result.name, key)


def test_the_toy_benchmark_says_what_its_entries_say(root):
    content = runs.read_bench(root / 'nbs/bench/results/toy.json').content
    summary, of = content['summary'], lambda measure: [entry for entry in content['entries'] if entry['measure'] == measure]
    assert summary['pointing_auc'] == max(e['auc'] for e in of('pointing') if (e['word'], e['timestep'], e['layer']) == ('class', 500, None))
    assert summary['oracle_miou'] == min(e['miou'] for e in of('oracle'))
    assert summary['render_per_second'] == min(e['per_second'] for e in of('render'))


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A report with every kind of block."""
    small, large = np.full((8, 8, 3), 200, np.uint8), np.zeros((300, 400, 3), np.uint8)
    sections = [Section('Words & <tags>', ['One.\n\n`Two`.']), Section('Figures', [Numbers({'mIoU': 0.8}), Picture(large, 'Large.')]),
                Section('More', [Gallery([Picture(small, alt='Small.')] * 3), Table(['class', 'IoU'], [['cat', 0.5], ['dog', None]], 'Scores')])]
    path = write_report(tmp_path_factory.mktemp('page') / 'sub' / 'report.html', 'A <title>', sections, facts={'seed': 0})
    return path.read_text()


def test_a_report_needs_nothing_from_the_net(page):
    assert page.count('<img src="data:image/png;base64,') == page.count('<img') == 4
    assert "default-src 'none'" in page
    for word in ('http://', 'https://', '<script', '@import', 'url('): assert word not in page


def test_a_report_is_well_formed_and_escaped(page):
    from html.parser import HTMLParser

    class Checker(HTMLParser):
        void, stack = {'meta', 'img'}, []

        def handle_starttag(self, tag, attributes):
            if tag == 'img': assert dict(attributes)['alt'] in ('Large.', 'Small.')
            if tag not in self.void: self.stack.append(tag)

        def handle_endtag(self, tag): assert self.stack.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.stack == [] and 'A &lt;title&gt;' in page and 'Words &amp; &lt;tags&gt;' in page


def test_a_report_table_can_be_read_aloud(page):
    assert '<caption>Scores</caption>' in page and page.count('scope="col"') == 2 and page.count('scope="row"') == 2
    assert '<td class="number">0.500</td>' in page and '<td class="number">–</td>' in page


@pytest.mark.parametrize(('make', 'says'), [
    (lambda: Picture(np.zeros((2, 2)), 'x'), 'ndarray of float64'), (lambda: Picture(np.zeros((2, 2), np.uint8)), 'caption'),
    (lambda: Table(['a'], [[1, 2]], 'c'), 'row 0 has 2 cells'),
])
def test_a_report_refuses_what_it_can_not_show(make, says):
    with pytest.raises((TypeError, ValueError), match=says): make()


def test_a_report_is_the_same_each_time():
    blocks = [Picture(np.zeros((4, 4), np.uint8), 'x')]
    assert render_report('t', [Section('s', blocks)]) == render_report('t', [Section('s', blocks)])


def test_reading_a_run_notebook_needs_nothing_heavy(job):
    code = f'import sys; from synseg_kit import runs, sweeps; runs.read_run({str(job())!r}); sys.exit(bool({{"torch", "nbformat", "papermill"}} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_cells_are_read_as_nbformat_reads_them(job, root):
    for path in (job(), *sorted((root / 'nbs/runs').glob('*.ipynb'))):
        ours, theirs = ([(cell.cell_type, cell.source, cell.metadata.get('tags', [])) for cell in notebook.cells] for notebook in (runs.read_notebook(path), nbformat.read(path, as_version=4)))
        assert ours == theirs


def test_reading_results_needs_no_torch():
    code = 'import sys; import synseg_kit.report; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
