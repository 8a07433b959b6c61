"""Sweeps and results: runs that are done once, failures that stay, tables from folders alone."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from synseg_kit import cli, runs, sweeps
from synseg_kit.results import Results, RunRow, collect, compare_runs, flatten, mean_and_spread, write_results
from synseg_kit.sweeps import notebook_hash, package_hash, plan_sweep, prepare, read_grid, read_status, run_here, split_values, sweep

PARAMETERS = """out: str = 'out'  # filled in by the run
seed: int = 0  # of the run
x: int = 1  # a number
text: str = 'plain'  # any
size: tuple[int, int] = (8, 8)  # two numbers
seconds: float = 0.0  # that it takes"""
WORK = """import json, time
from pathlib import Path
with (Path(out).parent / f'began-{x}-{seed}').open('a') as file: file.write('x')
if x == 13: raise ValueError('13 is unlucky')
time.sleep(seconds)
Path(out, 'result.json').write_text(json.dumps({'parameters': {'x': x, 'text': text, 'size': size, 'seed': seed}, 'metrics': {'square': x * x + seed}, 'seed': seed, 'seconds': seconds}))"""


@pytest.fixture
def job(tmp_path):
    """Write a run notebook that needs nothing of the library."""
    def write(name='job', work=WORK, sets='SETS = {"small": dict(x=2)}'):
        path = tmp_path / f'{name}.ipynb'
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(sets, metadata={'tags': ['sets']}), nbformat.v4.new_code_cell(work)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'}}), path)
        return path
    return write


def began(folder): return {path.name.removeprefix('began-'): len(path.read_text()) for path in Path(folder).glob('began-*')}


def command(*arguments):
    """Start `synseg` in a process group of its own."""
    code = 'import sys; from synseg_kit.cli import main; sys.exit(main())'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


# ---- the plan

@pytest.mark.parametrize(('text', 'parts'), [('1,2', ['1', '2']), ('(1, 2),(3, 4)', ['(1, 2)', '(3, 4)']), ("'a,b',c", ["'a,b'", 'c']), ('[1,[2,3]],{4:5}', ['[1,[2,3]]', '{4:5}']), ('x', ['x'])])
def test_values_stand_between_commas(text, parts): assert split_values(text) == parts


def test_a_plan_has_every_combination_with_seeds_fastest(job, tmp_path):
    grid = read_grid(runs.read_run(job()), [('x', '3,4'), ('size', '(8, 8),(16, 16)')])
    plan = plan_sweep(job(), tmp_path / 'sweep', grid, [5, 6], 'small', {'text': 'fixed'})
    assert [(p.values['x'], p.values['size'], p.values['seed']) for p in plan] == [(x, s, seed) for x in (3, 4) for s in ((8, 8), (16, 16)) for seed in (5, 6)]
    assert all(p.values['text'] == 'fixed' and p.folder.parent == tmp_path / 'sweep' for p in plan) and len({p.folder for p in plan}) == 8
    assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize(('call', 'says'), [
    (lambda path: plan_sweep(path, 'o', {'y': [1]}), "no parameter 'y'"), (lambda path: plan_sweep(path, 'o', {'x': [1.5]}), 'parameter x is int, got 1.5'),
    (lambda path: plan_sweep(path, 'o', {'x': []}), 'parameter x has no values'), (lambda path: plan_sweep(path, 'o', {'seed': [1]}, [1]), 'name them once'),
    (lambda path: plan_sweep(path, 'o', {'x': [1]}, changes={'x': 2}), 'name it once'), (lambda path: plan_sweep(path, 'o', {}, [], 'huge'), "no set 'huge'"),
    (lambda path: read_grid(runs.read_run(path), [('x', '1'), ('x', '2')]), 'has values twice'), (lambda path: read_grid(runs.read_run(path), [('x', '1,one')]), "x is int, got 'one'"),
    (lambda path: plan_sweep(path, 'o', {'out': ['a']}), "no parameter 'out'")])
def test_wrong_plans_are_refused(job, call, says):
    with pytest.raises(ValueError, match=says): call(job())


def test_a_folder_is_named_by_what_decides_the_result(job, tmp_path, monkeypatch):
    key = lambda path, **changes: plan_sweep(path, tmp_path, {}, changes=changes)[0].key
    first = key(job())
    assert first == key(job()) == key(job('job')) and len(first) == 16
    notebook = nbformat.read(job(), as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output('stream', text='said')]
    notebook.cells[2].execution_count = 7
    nbformat.write(notebook, tmp_path / 'job.ipynb')
    assert key(tmp_path / 'job.ipynb') == first  # outputs decide nothing
    assert len({first, key(job(), x=2), key(job(), text='2'), key(job(work=WORK + '\n1')), key(job(), seed=1)}) == 5
    assert plan_sweep(job(), tmp_path, {'x': [2]})[0].key == plan_sweep(job(), tmp_path, {}, set_name='small')[0].key  # by what it resolves to, however it was asked for
    monkeypatch.setattr(sweeps, 'package_hash', lambda: '0' * 64)
    assert key(job()) != first


def test_the_package_hash_covers_every_module(root):
    names = [path.stem for path in (root / 'synseg_kit').glob('*.py') if not path.stem.startswith('_')]
    assert package_hash() == runs.source_hash(names) and len(names) > 30


def test_a_notebook_that_changes_after_planning_is_refused(job, tmp_path):
    path = job()
    plan, = plan_sweep(path, tmp_path / 'sweep', {})
    job(work='pass')
    with pytest.raises(ValueError, match='has changed since the sweep was planned'): prepare(plan, path)


# ---- runs

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A sweep with a failure, with its plan and what it said."""
    folder = tmp_path_factory.mktemp('sweep')
    path = folder / 'job.ipynb'
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(WORK)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'}}), path)
    plan = plan_sweep(path, folder / 'out', {'x': [3, 13]}, [1], changes={'size': (1, 2), 'text': 'a "b" \'c\' \\ \n #{}'})
    return path, plan, sweep(plan, path, jobs=2, progress=False)


def test_a_sweep_does_what_it_planned(done):
    path, plan, ended = done
    assert [found.state for found in ended] == ['done', 'failed']
    result = json.loads((plan[0].folder / 'result.json').read_text())
    assert result['metrics'] == {'square': 10} and result['parameters'] == {'x': 3, 'text': 'a "b" \'c\' \\ \n #{}', 'size': [1, 2], 'seed': 1}
    executed = nbformat.read(plan[0].folder / 'notebook.ipynb', as_version=4)
    assert "size = (1, 2)" in executed.cells[1].source  # a tuple stays one


def test_a_failure_stays_with_its_notebook_and_its_line(done):
    _, plan, ended = done
    assert 'job.ipynb: cell In [3] raised ValueError: 13 is unlucky' in ended[1].error and '\n' not in ended[1].error
    kept = nbformat.read(plan[1].folder / 'notebook.failed.ipynb', as_version=4)
    assert any(output.output_type == 'error' for cell in kept.cells for output in cell.get('outputs', [])) and not (plan[1].folder / 'result.json').exists()


def test_nothing_is_done_twice_unless_it_is_asked_for(done):
    path, plan, _ = done
    out = plan[0].folder.parent
    assert began(out) == {'3-1': 1, '13-1': 1}
    sweep(plan, path, progress=False)
    assert began(out) == {'3-1': 1, '13-1': 1}
    assert [found.state for found in sweep(plan, path, retry=True, progress=False)] == ['done', 'failed'] and began(out) == {'3-1': 1, '13-1': 2}


def test_a_run_whose_package_has_changed_is_refused(job, tmp_path, monkeypatch):
    path = job()
    plan, = plan_sweep(path, tmp_path / 'sweep', {})
    prepare(plan, path)
    monkeypatch.setattr(sweeps, 'package_hash', lambda: '0' * 64)
    assert run_here(plan.folder) == 1 and 'source of synseg_kit has changed' in read_status(plan.folder)['error']


def test_a_locked_run_is_left_to_who_works_on_it(job, tmp_path):
    from filelock import FileLock
    plan, = plan_sweep(job(), tmp_path / 'sweep', {})
    prepare(plan, job())
    with FileLock(plan.folder / '.lock'): assert run_here(plan.folder) == sweeps.BUSY
    assert read_status(plan.folder)['state'] == 'missing'


def test_a_folder_that_a_machine_does_not_see_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='a disk that all of them share'): sweeps.run_apart(tmp_path / 'elsewhere')


def test_a_sweep_that_is_killed_twice_ends_complete(job, tmp_path):
    """Two by three runs; the whole process group, with all that it started, is killed while the second run and while a later one works."""
    path, out = job(), tmp_path / 'out'
    arguments = ('sweep', path, '--set', 'smoke', '-p', 'seconds=0.3', '--grid', 'x=2,3', '--seeds', '0,1,2', '--out', out)
    finished = lambda: sum('"done"' in status.read_text() for status in out.glob('job-*/status.json'))
    for wanted in (1, 2):
        process, deadline = command(*arguments), time.monotonic() + 240
        while finished() < wanted and time.monotonic() < deadline: time.sleep(.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert wanted <= finished() < 6
    before = finished()
    said, complained = (process := command(*arguments)).communicate(timeout=300)
    assert process.returncode == 0 and '6 of 6 runs are done' in said, complained
    assert collect(out).metrics == ['square'] and sorted(row.metrics['square'] for row in collect(out).runs) == [4, 5, 6, 9, 10, 11]
    times = began(out)
    assert set(times) == {f'{x}-{seed}' for x in (2, 3) for seed in range(3)} and sum(times.values()) <= 6 + 2 and before >= 2  # only what was under way at a kill began again


def test_two_sweeps_on_one_folder_share_the_work(job, tmp_path):
    path, out = job(), tmp_path / 'out'
    arguments = ('sweep', path, '--set', 'smoke', '-p', 'seconds=1.0', '--grid', 'x=2,3', '--out', out)
    both = [command(*arguments) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0] and all('2 of 2 runs are done' in text for text, _ in said), said
    assert began(out) == {'2-0': 1, '3-0': 1}


def test_the_command_tells_failures_and_the_results(job, tmp_path, capsys):
    arguments = ['sweep', str(job()), '--grid', 'x=3,13', '--out', str(tmp_path / 'out'), '--jobs', '2']
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert '1 of 2 runs are done' in said.out and "with x=13: job.ipynb: cell In [" in said.err and '1 of 2 runs failed; their notebooks are in their folders, and --retry does them again' in said.err
    assert cli.main(['results', str(tmp_path / 'out')]) == 0
    said = capsys.readouterr().out
    assert '| x | runs | square |' in said and '| 3 | 1 | 9' in said and '| 13 | 0 (and 1 failed) | – |' in said and 'ValueError: 13 is unlucky' in said
    assert {'results.md', 'results.csv', 'results.png'} <= {path.name for path in (tmp_path / 'out').iterdir()}


# ---- nothing leaves its folder, nothing reaches a shell

NASTY = ['../../outside', '/etc/passwd', '$(touch pwned)', '`touch pwned`', "'; import os; os.system('touch pwned') #", '"""\n__import__("os").system("touch pwned")\n"""', '\\', 'a\nb', '{x}', '%s', '; rm -rf ~', '\u202e']


@pytest.mark.parametrize('text', NASTY)
def test_values_are_values_and_nothing_else(job, tmp_path, text):
    """What is injected into a notebook is a literal; the folder of a run does not depend on how a value reads."""
    path = job()
    plan, = plan_sweep(path, tmp_path / 'out', {'text': [text]})
    assert plan.folder.parent == tmp_path / 'out' and plan.folder.name.startswith('job-') and plan.key.isalnum()
    cell = runs.with_values(nbformat.read(path, as_version=4), {'text': text}).cells[1]
    found = {}
    exec(compile(cell.source, 'cell', 'exec'), {'__builtins__': {}}, found)
    assert found == {'text': text} and cell.source.count('\n') == 0
    prepare(plan, path)
    assert json.loads((plan.folder / 'run.json').read_text())['changes'] == {'text': text}
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob('*')} == {'job.ipynb', 'out'}


def test_a_command_line_with_nasty_values_runs_none_of_them(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['run', str(job()), '--set', 'smoke', '--out', 'out', '-p', f'text={NASTY[4]}$(touch pwned)`touch pwned`']) == 0
    assert json.loads((tmp_path / 'out/result.json').read_text())['parameters']['text'] == f'{NASTY[4]}$(touch pwned)`touch pwned`'
    assert not list(tmp_path.rglob('pwned'))


@pytest.mark.parametrize(('text', 'says'), [
    ('x: !!python/object/apply:os.system ["touch pwned"]', 'is not plain YAML'), ('x: !!python/name:os.system', 'is not plain YAML'), ('- 1', 'must hold one mapping'), ('3: 4', 'must hold one mapping'), ('', 'must hold one mapping'),
    ('y: 1', "has no parameter 'y'"), ('out: there', "has no parameter 'out'"), ('x: many', "x is int, got 'many'"), ('x: .nan', 'x is int, got nan'), ('seconds: .inf', 'to be a finite number, got inf'), ('x: [', 'is not plain YAML')])
def test_a_file_of_parameters_is_read_and_not_run(job, tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'p.yaml').write_text(text)
    with pytest.raises(ValueError, match=says): runs.read_parameter_file(tmp_path / 'p.yaml', runs.read_run(job()))
    assert not (tmp_path / 'pwned').exists()


def test_values_of_a_file_have_the_parameters_types(job, tmp_path):
    (tmp_path / 'p.yaml').write_text('x: 4\ntext: "4"\nseconds: 1e-3\nsize: [2, 3]\n')
    assert runs.read_parameter_file(tmp_path / 'p.yaml', runs.read_run(job())) == {'x': 4, 'text': '4', 'seconds': 1e-3, 'size': [2, 3]}


def test_files_come_first_and_the_command_line_last(job, tmp_path):
    (tmp_path / 'a.yaml').write_text('x: 4\ntext: a')
    (tmp_path / 'b.yaml').write_text('text: b')
    parsed = cli.build_parser().parse_args(['run', str(job()), '-f', str(tmp_path / 'a.yaml'), '-f', str(tmp_path / 'b.yaml'), '-p', 'seed=9'])
    assert cli.read_changes(parsed, runs.read_run(job())) == {'x': 4, 'text': 'b', 'seed': 9}


def test_no_code_of_the_library_starts_a_shell(root):
    import ast
    for path in (root / 'synseg_kit').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call): continue
            assert ast.unparse(node.func) not in ('os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput'), path.name
            assert not any(word.arg == 'shell' and ast.unparse(word.value) != 'False' for word in node.keywords), path.name


# ---- results

def write_run(folder, x, seed, miou, **more):
    """Write a result as a run does."""
    runs.write_json(folder / 'result.json', {'parameters': {'set': 'small', 'x': x, 'seed': seed}, 'metrics': {'miou': miou, 'iou': {'cat': .5, 'dog': None}, 'curve': [1, 2]}, 'seed': seed, 'seconds': 3., 'versions': {'torch': '2'}, **more})


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1., 2., 3.]) == '2.000 ± 1.000' and mean_and_spread([.5]) == '0.500' and mean_and_spread([]) == '–'


def test_results_come_from_files_alone(tmp_path):
    for x, seed, miou in ((1, 0, .5), (1, 1, .7), (2, 0, .8)): write_run(tmp_path / f'deep/er/{x}-{seed}', x, seed, miou)
    found = collect(tmp_path)
    assert found.varying == ['x'] and found.metrics == ['miou', 'iou.cat'] and [len(group.runs) for group in found.groups] == [2, 1]
    assert found.table(['miou']) == [['x', 'runs', 'miou'], ['1', '2', '0.600 ± 0.141'], ['2', '1', '0.800']]
    import csv
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert [(row['parameter.x'], row['seed'], row['metric.miou']) for row in rows] == [('1', '0', '0.5'), ('1', '1', '0.7'), ('2', '0', '0.8')]


def test_a_table_in_parquet_holds_what_the_csv_holds(tmp_path):
    pandas = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    for seed in range(2): write_run(tmp_path / f'{seed}', 1, seed, .5 + seed / 10)
    files = write_results(tmp_path, collect(tmp_path))
    table = pandas.read_parquet(files[-1])
    assert list(table['metric.miou']) == [.5, .6] and len(table) == 2 and sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ['results.csv', 'results.md', 'results.parquet', 'results.png']


def test_a_table_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no result.json'): collect(tmp_path)
    (tmp_path / 'result.json').write_text('{"broken": ')
    with pytest.raises(ValueError, match='is no result of a run'): collect(tmp_path)


def test_cells_cannot_break_a_table():
    rows = [RunRow('a', '', {'text': 'a|b\nc'}, 0, {'m': 1.}, 1.), RunRow('b', '', {'text': 'd'}, 0, {'m': 2.}, 1.)]
    lines = Results(rows).to_markdown().splitlines()
    assert len(lines) == 4 and 'a\\|b c' in lines[2] and lines[1] == '|---|---|---|'


def test_flatten(): assert flatten({'a': {'b': 1, 'c': {'d': [2]}}, 'e': None}) == {'a.b': 1, 'a.c.d': [2], 'e': None}


def test_what_differs_between_two_runs(tmp_path, capsys):
    write_run(tmp_path / 'a', 1, 0, .5)
    write_run(tmp_path / 'b', 2, 0, .75, versions={'torch': '2', 'numpy': '3'})
    assert compare_runs(tmp_path / 'a', tmp_path / 'b')[1:] == [('parameters.x', '1', '2', '+1'), ('versions.numpy', 'absent', '3', ''), ('metrics.miou', '0.500', '0.750', '+0.25')]
    assert cli.main(['results', '--diff', str(tmp_path / 'a'), str(tmp_path / 'b')]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ['parameters.x', '1', '2', '+1']


def test_hashing_a_notebook_reads_its_cells_only(job):
    first = notebook_hash(job())
    assert first != notebook_hash(job(work='pass')) and len(first) == 64
