"""Run every test of the project and print what took how long: export and clean, notebooks, run notebooks, pytest."""
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = max(1, min(4, (os.cpu_count() or 2)))
THREADS = '1'  # one thread for each of several files at once: two threads that wait for each other on a busy machine are slower than one
ENVIRONMENT = {
    **os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ.get("PATH", "")}', 'PYTHONUNBUFFERED': '1',
    'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': THREADS, 'MKL_NUM_THREADS': THREADS,
    'TOKENIZERS_PARALLELISM': 'false',
}


@dataclass(frozen=True)
class Outcome:
    """What one file's tests came to."""
    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def execute(*command):
    """Run a command in the project's root; return whether it succeeded and all it said."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0, done.stdout


def check(name, test):
    """Time `test() -> complaint or ''`, say how it went, and return its outcome."""
    start = time.perf_counter()
    complaint = test()
    seconds = time.perf_counter() - start
    print(f'{name} ... {"FAILED" if complaint else "ok"} ({seconds:.1f} s)', *([complaint.rstrip()] if complaint else []), sep='\n', flush=True)
    return Outcome(name, int(not complaint), int(bool(complaint)), 0, seconds)


def sources():
    """Hash every file that export and clean may touch."""
    files = [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('synseg_kit/**/*.py'), ROOT / 'pyproject.toml']
    files = [file for file in files if '.ipynb_checkpoints' not in file.parts]
    return {file.relative_to(ROOT).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def export_and_clean():
    """Export and clean; complain of every file that changed, for then it was not committed as exported and clean."""
    before = sources()
    for command in ('nbdev-export', 'nbdev-clean'):
        fine, said = execute(BIN / command)
        if not fine:
            return said
    after = sources()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ''.join(f'  changed by export or clean: {name}\n' for name in changed)


def readme():
    """Complain when README.md is not what nbs/index.ipynb makes."""
    fine, said = execute(sys.executable, ROOT / 'tools/make_readme.py', '--check')
    return '' if fine else said


def library_notebook(path):
    """Execute a library notebook as a test."""
    fine, said = execute(BIN / 'nbdev-test', path, '--n-workers', '0')
    return '' if fine else said


def run_notebook(path):
    """Execute a run notebook at its defaults, which are its smoke size, as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        fine, said = execute(BIN / 'synseg', 'run', path, '--set', 'smoke', '--out', Path(folder) / 'run')
    return '' if fine else said


def plan(root=ROOT):
    """List the notebooks to execute, each with how: not those of nbs/bench, which take hours, nor tutorials, which tests/test_tutorials.py executes."""
    folders = {'.': library_notebook, 'runs': run_notebook}
    return [(path, how) for folder, how in folders.items() for path in sorted((root / 'nbs' / folder).glob('*.ipynb'))]


def notebook_jobs():
    """Make a job of each notebook."""
    return [lambda path=path, how=how: [check(path.relative_to(ROOT).as_posix(), lambda: how(path))] for path, how in plan()]


def read_junit(path):
    """Sum a JUnit file's test cases per test file."""
    cases = defaultdict(list)
    for case in ElementTree.parse(path).iter('testcase'):
        module = re.match(r'(?:tests\.)?((?:(?:browser|faults)\.)?test_\w+|conftest)', case.get('classname') or case.get('name'))
        name = f'tests/{module[1].replace(".", "/")}.py' if module else case.get('classname') or case.get('name')
        state = {'failure': 'failed', 'error': 'failed', 'skipped': 'skipped'}
        found = {state[child.tag] for child in case if child.tag in state}
        cases[name].append(('failed' if 'failed' in found else 'skipped' if found else 'passed', float(case.get('time'))))
    return [Outcome(name, *(sum(state == wanted for state, _ in tests) for wanted in ('passed', 'failed', 'skipped')),
                    sum(seconds for _, seconds in tests)) for name, tests in cases.items()]


def pytest_file(path):
    """Run one test file; a crash or an empty run counts as a failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'junit.xml'
        fine, said = execute(sys.executable, '-m', 'pytest', '-q', path, f'--junitxml={report}')
        outcomes = read_junit(report) if report.exists() else []
    if not fine and not any(outcome.failed for outcome in outcomes):
        outcomes.append(Outcome(path.relative_to(ROOT).as_posix(), 0, 1, 0, 0.0))
    print(said.rstrip() if not fine else f'{path.relative_to(ROOT).as_posix()} ... {said.rstrip().splitlines()[-1]}', flush=True)
    return outcomes


def pytest_jobs():
    """Make a job of each test file."""
    return [lambda path=path: pytest_file(path) for path in sorted((ROOT / 'tests').rglob('test_*.py'))]


def table(outcomes):
    """Write the time table, slowest file first."""
    width = max(len(outcome.name) for outcome in outcomes)
    rows = [f'{"file":<{width}}  {"seconds":>8}  {"passed":>6}  {"failed":>6}  {"skipped":>7}']
    rows += [f'{o.name:<{width}}  {o.seconds:>8.1f}  {o.passed:>6}  {o.failed:>6}  {o.skipped:>7}'
             for o in sorted(outcomes, key=lambda o: -o.seconds)]
    return '\n'.join(rows)


def main():
    """Run all, in the order in which a mistake is found soonest."""
    start = time.perf_counter()
    outcomes = [check('export and clean leave no difference', export_and_clean),
                check('README.md is made from nbs/index.ipynb', readme)]
    with ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(lambda job: job(), [*notebook_jobs(), *pytest_jobs()]): outcomes += found
    passed, failed, skipped = (sum(getattr(o, state) for o in outcomes) for state in ('passed', 'failed', 'skipped'))
    print(f'\n{table(outcomes)}\n')
    print(f'{passed} passed, {failed} failed, {skipped} skipped in {time.perf_counter() - start:.0f} s')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
