"""The house: metadata that agree, notebooks that keep the rules, a wheel that carries everything."""
import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import synseg_kit


@pytest.fixture(scope='module')
def settings(root):
    """The DEFAULT section of settings.ini."""
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(root / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


@pytest.fixture(scope='module')
def project(root):
    """pyproject.toml as a dictionary."""
    return tomllib.loads((root / 'pyproject.toml').read_text())


def requirements(settings, key):
    """The requirements of one kind, by normalised name."""
    found = [Requirement(line) for line in settings[key].split('\n') if line.strip()]
    return {re.sub(r'[-_.]+', '-', one.name).lower(): one for one in found}


def notebooks(root):
    """Every notebook of the project."""
    return sorted(path for path in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)


def test_one_version_and_one_name(root, settings, project):
    citation = yaml.safe_load((root / 'CITATION.cff').read_text())
    assert settings['version'] == synseg_kit.__version__ == citation['version']
    assert settings['version'] in (root / 'CHANGELOG.md').read_text()
    assert settings['lib_name'] == project['project']['name'] == project['tool']['nbdev']['lib_path'] == 'synseg_kit'
    assert settings['license'] == citation['license'] == 'Apache-2.0'


def test_metadata_come_from_settings_ini_alone(project):
    assert {'version', 'dependencies', 'optional-dependencies', 'scripts'} <= set(project['project']['dynamic'])
    assert set(project['project']) == {'name', 'dynamic'}


def test_cleaning_keeps_tags_and_tests_keep_the_users_profile_out(project):
    assert 'tags' in project['tool']['nbdev']['allowed_cell_metadata_keys']
    assert project['tool']['nbdev']['exec_profile'] is False


@pytest.mark.parametrize(('name', 'version'), [('torch', '2.11.0'), ('torchvision', '0.26.0'), ('transformers', '5.17.0')])
def test_bounds_admit_the_oldest_that_is_promised(settings, name, version):
    assert requirements(settings, 'requirements')[name].specifier.contains(Version(version))


def test_tested_set_lies_within_the_bounds(root, settings):
    lines = (root / 'constraints.txt').read_text().splitlines()
    pins = {re.sub(r'[-_.]+', '-', p.name).lower(): p for p in map(Requirement, (x for x in lines if x and x[0] != '#'))}
    wanted = requirements(settings, 'requirements') | requirements(settings, 'dev_requirements')
    missing = wanted.keys() - pins.keys() - {'setuptools', 'wheel'}
    assert not missing, f'constraints.txt lacks {sorted(missing)}'
    for name in wanted.keys() & pins.keys():
        version = str(pins[name].specifier).removeprefix('==')
        assert wanted[name].specifier.contains(version), f'{name} {version} is outside {wanted[name].specifier}'


def test_nbdev_family_is_pinned(settings):
    dev = requirements(settings, 'dev_requirements')
    for name in ('nbdev', 'fastcore', 'execnb', 'ghapi'):
        assert str(dev[name].specifier).startswith('==')


def test_every_import_of_the_library_is_required(root, settings):
    import_names = {'pillow': 'PIL', 'pyyaml': 'yaml', 'segmentation-models-pytorch': 'segmentation_models_pytorch'}
    extras = [key for key in settings if key.endswith('requirements') and key != 'dev_requirements']
    known = {import_names.get(name, name.replace('-', '_')) for key in extras for name in requirements(settings, key)}
    known |= set(sys.stdlib_module_names) | {'synseg_kit'}
    for path in (root / 'synseg_kit').glob('*.py'):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        strangers = {name.partition('.')[0] for name in names} - known
        assert not strangers, f'{path.name} imports {sorted(strangers)}, which settings.ini does not require'


def test_no_star_import_and_no_pickle_in_the_library(root):
    for path in (root / 'synseg_kit').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom): assert all(alias.name != '*' for alias in node.names), path.name
            if isinstance(node, ast.Call): assert ast.unparse(node.func) not in ('print', 'pickle.load', 'exec', 'eval') \
                or path.name == 'cli.py', f'{path.name}: {ast.unparse(node)}'


@pytest.mark.parametrize('folder', ['.', 'tutorials'])
def test_pages_open_with_a_title_and_a_sentence(root, folder):
    for path in sorted((root / 'nbs' / folder).glob('*.ipynb')):
        first = ''.join(json.loads(path.read_text())['cells'][0]['source'])
        assert re.match(r'# \S[^\n]*\n\n> \S', first), f'{path.name} must open with `# Title`, an empty line, `> one sentence`'


def test_run_notebooks_are_committed_without_outputs(root):
    for path in sorted((root / 'nbs/runs').glob('*.ipynb')):
        cells = json.loads(path.read_text())['cells']
        assert not any(cell.get('outputs') for cell in cells), path.name
        assert sum('parameters' in cell['metadata'].get('tags', []) for cell in cells) == 1, path.name


def test_pages_are_committed_with_the_pictures_they_draw(root):
    """The docs show outputs as they are stored: whoever edits a page by hand runs it again and keeps them."""
    empty = []
    for path in [*(root / 'nbs').glob('*.ipynb'), *(root / 'nbs/tutorials').glob('*.ipynb')]:
        for number, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
            last = ''.join(cell['source']).rstrip().rstrip(';').rpartition('\n')[2]
            draws = cell['cell_type'] == 'code' and (last in ('figure', 'fig', 'page') or last.startswith('show_'))
            if draws and not cell['outputs']: empty.append(f'{path.name}, cell {number}: {last}')
    assert not empty, empty


def test_importing_cells_only_import(root):
    for path in notebooks(root):
        for cell in json.loads(path.read_text())['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] != 'code' or not re.search(r'^#\|\s*export', source, re.M): continue
            kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body}
            assert len(kinds) <= 1, f'{path.name} mixes imports with code in an exported cell:\n{source[:200]}'


def test_every_module_has_its_notebook(root):
    exported = set()
    for path in notebooks(root):
        exported |= set(re.findall(r'#\|\s*default_exp (\w+)', path.read_text()))
    modules = {path.stem for path in (root / 'synseg_kit').glob('*.py') if not path.name.startswith('_')}
    assert modules == exported


def test_notebooks_hold_no_path_of_a_machine(root):
    for path in notebooks(root):
        found = re.search(r'(?<![\w.])/(home|root|Users|work|tmp|scratch)/[\w./-]+', path.read_text())
        assert not found, f'{path.name}: {found[0]}'


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    """A wheel built from a copy of the sources, as a zip file."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    keep_out = shutil.ignore_patterns('.git', '.venv', 'runs-*', 'build', 'dist', '_proc', '_docs', '*.egg-info', '__pycache__')
    source.mkdir()
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(root / name, source / name)
    for name in ('synseg_kit', 'data', 'nbs/runs'): shutil.copytree(root / name, source / name, ignore=keep_out)
    done = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', folder, source],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob('*.whl')))


def test_wheel_carries_models_and_runs(root, wheel):
    names = set(wheel.namelist())
    expected = {f'synseg_kit/{path.name}' for path in (root / 'synseg_kit').glob('*.py')}
    expected |= {f'synseg_kit/static/{path.name}' for path in (root / 'synseg_kit/static').iterdir()}
    expected |= {f'synseg_kit/runs/{path.name}' for path in (root / 'nbs/runs').glob('*.ipynb')}
    expected |= {f'synseg_kit/data/{path.relative_to(root / "data").as_posix()}' for path in (root / 'data').rglob('*')
                 if path.is_file() and not any(part.startswith('.') for part in path.relative_to(root / 'data').parts)}
    assert expected <= names, sorted(expected - names)
    strays = {name for name in names if not name.startswith(('synseg_kit/', 'synseg_kit-'))}
    assert not strays, strays


def test_wheel_says_what_settings_ini_says(wheel, settings):
    about = next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    text = wheel.read(about).decode()
    assert f'Version: {settings["version"]}' in text and 'Requires-Python: >=3.11' in text
    assert 'License-Expression: Apache-2.0' in text
    assert {Requirement(x).name for x in re.findall(r'^Requires-Dist: ([^;\n]+)$', text, re.M)} == \
        {one.name for one in requirements(settings, 'requirements').values()}
    points = next(name for name in wheel.namelist() if name.endswith('entry_points.txt'))
    assert 'synseg = synseg_kit.cli:main' in wheel.read(points).decode()


@pytest.fixture(scope='module')
def run_tests(root):
    """tools/run_tests.py as a module."""
    specification = importlib.util.spec_from_file_location('run_tests', root / 'tools/run_tests.py')
    module = importlib.util.module_from_spec(specification)
    sys.modules['run_tests'] = module
    specification.loader.exec_module(module)
    return module


def test_all_files_but_benchmarks_are_run_once_the_longest_first(root, run_tests):
    planned, taught = run_tests.plan(), set((root / 'nbs/tutorials').glob('*.ipynb'))
    assert not {*planned} & taught and (root / 'tests/test_tutorials.py') in planned  # which executes every tutorial and compares what it says
    assert {*planned} | taught == {path for path in notebooks(root) if path.parent.name != 'bench'} | {*(root / 'tests').rglob('test_*.py')}
    assert len({*planned}) == len(planned) and [path.relative_to(root).as_posix() for path in planned[:len(run_tests.LONGEST)]] == [*run_tests.LONGEST]


FILES = {
    'test_mixed.py': 'import os, sys\nimport pytest\ndef test_main(): assert sys.modules["__main__"].__spec__.name == "pytest.__main__"\ndef test_wrong(): assert 1 == 2, "not this"\n@pytest.mark.skip\ndef test_left(): pass\n',
    'test_dying.py': 'import os\ndef test_dies(): os._exit(0)\n',
    'test_killed.py': 'import os, signal\ndef test_is_killed(): os.kill(os.getpid(), signal.SIGKILL)\n',
    'test_empty.py': '',
    'test_fresh.py': 'import sys\ndef test_not_forked(): assert "colorsys" not in sys.modules and sys.modules["__main__"].__spec__.name == "pytest.__main__"\n',
    'test_forked.py': 'import sys\ndef test_forked(): assert "colorsys" in sys.modules\n',
    'test_fine.py': 'import atexit, pathlib\nleft = pathlib.Path(__file__).with_name("left")\natexit.register(left.touch)\ndef test_fine(): assert not left.exists()\n',
}
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run_tests
if __name__ == '__main__':
    run_tests.ROOT, run_tests.LIBRARIES, run_tests.FRESH, run_tests.WORKERS = Path(sys.argv[2]), ['colorsys'], ['test_fresh.py'], 2
    for outcome in run_tests.run_all(sorted(run_tests.ROOT.glob('test_*.py')), run_tests.fork_server()): print('came to', outcome.name, outcome.passed, outcome.failed, outcome.skipped)
"""


def test_processes_that_are_forked_fail_as_others_do(root, tmp_path):
    """A failed test, a test that ends the process as if all were well, one that is killed, a file without tests, and one where nothing is wrong."""
    for name, source in FILES.items(): (tmp_path / name).write_text(source)
    (tmp_path / 'driver.py').write_text(DRIVER)
    done = subprocess.run([sys.executable, tmp_path / 'driver.py', root / 'tools', tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {name: counts for name, *counts in (line.split()[2:] for line in done.stdout.splitlines() if line.startswith('came to'))}
    assert found == {'tests/test_mixed.py': ['1', '1', '1'], 'test_dying.py': ['0', '1', '0'], 'test_killed.py': ['0', '1', '0'], 'test_empty.py': ['0', '1', '0'], 'tests/test_fine.py': ['1', '0', '0'],
                     'tests/test_fresh.py': ['1', '0', '0'], 'tests/test_forked.py': ['1', '0', '0']}
    assert 'not this' in done.stdout and (tmp_path / 'left').is_file()  # what is to be done at a process's end is done


def test_the_time_table_counts_every_case_once(run_tests, tmp_path):
    (tmp_path / 'junit.xml').write_text("""<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one" time="1.5"/>
<testcase classname="tests.test_a.TestB" name="test_two" time="0.5"><failure message="no"/></testcase>
<testcase classname="tests.test_b" name="test_three[x]" time="0.25"><skipped message="gpu"/></testcase>
<testcase classname="" name="tests.test_c" time="0"><error message="collection"/></testcase>
<testcase classname="tests.faults.test_d" name="test_four" time="0.75"/></testsuite></testsuites>""")
    found = {o.name: (o.passed, o.failed, o.skipped, o.seconds) for o in run_tests.read_junit(tmp_path / 'junit.xml')}
    assert found == {'tests/test_a.py': (1, 1, 0, 2.0), 'tests/test_b.py': (0, 0, 1, 0.25), 'tests/test_c.py': (0, 1, 0, 0.0), 'tests/faults/test_d.py': (1, 0, 0, 0.75)}
    lines = run_tests.table(run_tests.read_junit(tmp_path / 'junit.xml')).splitlines()
    assert [line.split()[0] for line in lines] == ['file', 'tests/test_a.py', 'tests/faults/test_d.py', 'tests/test_b.py', 'tests/test_c.py']


def test_readme_is_made_from_the_index(root):
    assert (root / 'README.md').read_text().startswith('<!-- Made from nbs/index.ipynb')


def test_make_venv_refuses_without_a_python_that_serves(root, tmp_path):
    done = subprocess.run([root / 'tools/make_venv', tmp_path / 'venv', 'no-such-python'], capture_output=True, text=True)
    assert done.returncode == 2 and 'No Python 3.11 or newer' in done.stderr and not (tmp_path / 'venv').exists()
