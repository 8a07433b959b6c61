"""Run every test of the project and print what took how long: export and clean, notebooks, run notebooks, pytest."""
import atexit
import hashlib
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict, deque
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = max(1, min(4, (os.cpu_count() or 2)))
THREADS = '1'  # one thread for each of several files at once: two threads that wait for each other on a busy machine are slower than one
ENVIRONMENT = {
    **os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ.get("PATH", "")}', 'PYTHONUNBUFFERED': '1',
    'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': THREADS, 'MKL_NUM_THREADS': THREADS,
    'TOKENIZERS_PARALLELISM': 'false',
    'PYTORCH_NVML_BASED_CUDA_CHECK': '1',  # whoever asks for a GPU while libraries are loaded must not start CUDA, which does not survive a fork
}
LIBRARIES = ['torch', 'torchvision.transforms.v2', 'diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion', 'peft', 'timm', 'segmentation_models_pytorch',
             'papermill']
LONGEST = ('tests/test_tutorials.py', 'tests/test_training.py', 'tests/test_cli.py', 'tests/test_benchmark_runs.py', 'tests/test_adaptation.py', 'tests/test_sweeps.py',
           'tests/browser/test_jupyterlab.py')  # minutes each: what begins last should be short, or the other workers wait for it
FRESH = ('tests/test_cluster.py',)  # not forked: it needs no torch, and Ray starts servers of its own


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


def plan(root=ROOT):
    """List the files to run: not the notebooks of nbs/bench, which take hours, nor the tutorials, which tests/test_tutorials.py executes."""
    found = [*sorted(root.glob('nbs/*.ipynb')), *sorted(root.glob('nbs/runs/*.ipynb')), *sorted(root.glob('tests/**/test_*.py'))]
    first = [root / name for name in LONGEST]
    return first + [path for path in found if path not in first]


def arguments_for(path, folder):
    """What `python` is told to run a file: a run notebook at its defaults, which are its smoke size, as a user would."""
    if path.suffix == '.py': return ['-m', 'pytest', '-q', path, f'--junitxml={folder / "junit.xml"}', '-W', 'ignore:Module already imported so cannot be rewritten']
    if path.parent.name == 'runs': return [BIN / 'synseg', 'run', path, '--set', 'smoke', '--out', folder / 'run']
    return [BIN / 'nbdev-test', path, '--n-workers', '0']


def become(arguments, said, root):
    """Be `python ARGUMENTS` in a process that was started for it, at home in a folder; what it says goes to a file."""
    with open(said, 'w') as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    os.chdir(root)
    sys.dont_write_bytecode = False
    module, *rest = (str(part) for part in arguments)
    try:
        if module == '-m':
            sys.argv, sys.path[0] = rest, str(root)
            runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
        else:
            sys.argv, sys.path[0] = [module, *rest], str(Path(module).parent)
            runpy.run_path(module, run_name='__main__')
    finally: atexit._run_exitfuncs()  # a process of multiprocessing ends without


def fork_server():
    """Start loading LIBRARIES, which takes longer than most files' tests, once for all: each file has a process of its own, forked from one that has them and nothing of ours."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)  # or each of some two hundred processes compiles our modules anew
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(LIBRARIES if sys.platform == 'linux' else [])  # elsewhere libraries of the system may not survive a fork
    forkserver.ensure_running()
    return context


def run_all(paths, context):
    """Run files, WORKERS at a time; yield what each came to."""
    waiting, running, fresh = deque(paths), {}, [ROOT / name for name in FRESH]
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                path, place = waiting.popleft(), Path(folder, str(len(waiting)))
                place.mkdir()
                (place / 'said').touch()
                process = (multiprocessing.get_context('spawn') if path in fresh else context).Process(target=become, args=(arguments_for(path, place), place / 'said', ROOT))
                process.start()
                running[process.sentinel] = path, place, process, time.perf_counter()
            for sentinel in wait(list(running)):
                path, place, process, start = running.pop(sentinel)
                process.join()
                yield from outcomes_of(path, place, process.exitcode == 0, time.perf_counter() - start)


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


def outcomes_of(path, folder, fine, seconds):
    """Read and say what a file came to; a crash or an empty run counts as a failure."""
    name, said, report = path.relative_to(ROOT).as_posix(), (folder / 'said').read_text(errors='replace').rstrip(), folder / 'junit.xml'
    if path.suffix == '.py': outcomes, last = read_junit(report) if report.exists() else [], said.rpartition('\n')[2]
    else: outcomes, last = [Outcome(name, int(fine), int(not fine), 0, seconds)], f'ok ({seconds:.1f} s)'
    fine = fine and bool(outcomes)
    if not fine and not any(outcome.failed for outcome in outcomes): outcomes.append(Outcome(name, 0, 1, 0, 0.0))
    print(f'{name} ... {last if fine else "FAILED"}', *([] if fine else [said]), sep='\n', flush=True)
    return outcomes


def table(outcomes):
    """Write the time table, slowest file first."""
    width = max(len(outcome.name) for outcome in outcomes)
    rows = [f'{"file":<{width}}  {"seconds":>8}  {"passed":>6}  {"failed":>6}  {"skipped":>7}']
    rows += [f'{o.name:<{width}}  {o.seconds:>8.1f}  {o.passed:>6}  {o.failed:>6}  {o.skipped:>7}'
             for o in sorted(outcomes, key=lambda o: -o.seconds)]
    return '\n'.join(rows)


def main():
    """Run all: first what takes seconds, then what takes longest."""
    start, context = time.perf_counter(), fork_server()
    outcomes = [check('export and clean leave no difference', export_and_clean),
                check('README.md is made from nbs/index.ipynb', readme), *run_all(plan(), context)]
    passed, failed, skipped = (sum(getattr(o, state) for o in outcomes) for state in ('passed', 'failed', 'skipped'))
    print(f'\n{table(outcomes)}\n')
    print(f'{passed} passed, {failed} failed, {skipped} skipped in {time.perf_counter() - start:.0f} s')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
