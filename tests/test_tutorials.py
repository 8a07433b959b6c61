"""The tutorials: made for a student, with exercises whose solutions run, and still saying what they said when they were written."""
import ast
import base64
import json
import multiprocessing
import os
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / 'nbs/tutorials'
TUTORIALS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob('*.ipynb'))]
TOLERANCE = 4.  # mean difference of a figure's pixels, of 255: what another processor or version of a library may shift
NUMBER = re.compile(r'-?\d+(?:\.\d+)?')
def cells(path, kind=None):
    """The cells of a notebook as (kind, source, outputs)."""
    found = [(cell['cell_type'], ''.join(cell['source']), cell.get('outputs', [])) for cell in json.loads(path.read_text())['cells']]
    return [cell for cell in found if kind in (None, cell[0])]


def hidden(source): return source.startswith('#| hide')


def said(outputs):
    """What a cell says: its printed text, the texts of its values, and its figures as pixels."""
    text, figures = '', []
    for output in outputs:
        if output['output_type'] == 'stream': text += ''.join(output['text'])
        elif output['output_type'] == 'error': text += f'{output["ename"]}: {output["evalue"]}'
        else:
            data = output['data']
            text += ''.join(data.get('text/markdown', data.get('text/plain', '')))
            if 'image/png' in data: figures.append(np.asarray(Image.open(BytesIO(base64.b64decode(''.join(data['image/png'])))).convert('RGB'), np.float32))
    return text, figures


def execute(source, target):
    """Run a notebook as a reader does, in this process."""
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb, write_nb
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith('jaxtyping')]  # conftest's: readers have no checks of shapes
    os.chdir(source.parent)
    notebook = read_nb(source)
    CaptureShell(source, profile=False).run_all(notebook, exc_stop=True)
    write_nb(notebook, target)


def near(new, kept):
    """Words are equal, and numbers as near as another processor, which rounds otherwise, keeps them; small counts are equal."""
    if NUMBER.sub('#', new) != NUMBER.sub('#', kept): return False
    pairs = zip(NUMBER.findall(new), NUMBER.findall(kept), strict=True)
    return all(abs(float(a) - float(b)) <= .05 + .1 * abs(float(b)) for a, b in pairs)


def test_numbers_may_be_rounded_otherwise():
    assert near('iou 0.65 of 4', 'iou 0.63 of 4')
    assert not near('iou 0.95 of 4', 'iou 0.63 of 4') and not near('iou 0.65 of 5', 'iou 0.65 of 4') and not near('auc 0.65', 'iou 0.65')


def test_there_are_tutorials(): assert len(TUTORIALS) >= 5


@pytest.mark.parametrize('path', TUTORIALS)
def test_a_picture_comes_before_the_prose(path):
    kinds = [kind for kind, _, outputs in cells(path) if kind == 'markdown' or said(outputs)[1]]
    assert kinds[:2] == ['markdown', 'code'], 'after the title comes a figure'


@pytest.mark.parametrize('path', TUTORIALS)
def test_outputs_are_kept_and_small(path):
    everything = [said(outputs) for _, _, outputs in cells(path, 'code')]
    figures = [figure for _, several in everything for figure in several]
    assert len(figures) >= 3
    assert max(figure.shape[1] for figure in figures) <= 800, 'figures are at most 10 inches of 80 dots'
    assert path.stat().st_size < 900_000
    assert not any(output['output_type'] == 'error' or output.get('name') == 'stderr' for _, _, outputs in cells(path) for output in outputs)


@pytest.mark.parametrize('path', TUTORIALS)
def test_exercises_have_folded_solutions_that_run(path):
    text = '\n'.join(source for _, source, _ in cells(path, 'markdown'))
    exercises = re.split(r'^\*\*\d\. ', text.partition('## Exercises')[2], flags=re.M)[1:]
    assert 3 <= len(exercises) <= 4
    run = [source for _, source, _ in cells(path, 'code') if hidden(source)]
    for exercise in exercises:
        question, _, answer = exercise.partition('<details><summary>Solution</summary>')
        assert question.strip() and '</details>' in answer
        code = re.search(r'```python\n(.*?)```', answer, re.S)[1].strip()
        assert any(code in source and 'assert' in source for source in run), f'no hidden cell runs and tests:\n{code}'


@pytest.mark.parametrize('path', TUTORIALS)
def test_hidden_cells_say_nothing_and_stand_where_nobody_reads(path):
    code = cells(path, 'code')
    assert not any(outputs for _, source, outputs in code if hidden(source))
    first = next(i for i, (_, source, _) in enumerate(code[1:], start=1) if hidden(source))
    assert all(hidden(source) for _, source, _ in code[first:]), 'solutions that run come after everything that is read'


@pytest.mark.parametrize('path', TUTORIALS)
def test_links_stay_in_the_project_and_lead_somewhere(path):
    for _, source, outputs in cells(path):
        everything = source + said(outputs)[0]
        assert not re.search(r'https?://|www\.|<(script|img|iframe|link)\b', everything)
        for target in re.findall(r'\]\(([^)]+)\)', source) if '](' in source else ():
            if re.fullmatch(r'[\w./-]+\.ipynb', target): assert (path.parent / target).is_file(), f'{path.name} links to {target}'


@pytest.mark.parametrize('path', TUTORIALS)
def test_seeds_are_fixed_and_no_clock_is_read(path):
    code = '\n'.join(re.sub(r'^[%#].*$', '', source, flags=re.M) for _, source, _ in cells(path, 'code'))
    names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)} | {alias.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {'time', 'datetime', 'getcwd'}
    assert 'default_rng()' not in code


@pytest.mark.parametrize('path', TUTORIALS)
def test_run_again_it_says_the_same(path, tmp_path):
    again = tmp_path / path.name
    process = multiprocessing.get_context('fork').Process(target=execute, args=(path, again))  # with what is loaded here: nothing of ours, no model, no thread
    process.start()
    process.join()
    assert process.exitcode == 0 and again.is_file()
    for number, ((_, source, kept), (_, _, now)) in enumerate(zip(cells(path), cells(again), strict=True)):
        (text, figures), (new_text, new_figures) = said(kept), said(now)
        assert near(new_text, text), f'cell {number} says {new_text[:300]!r} and not {text[:300]!r}:\n{source[:300]}'
        assert len(new_figures) == len(figures), f'cell {number} has another number of figures'
        for old, new in zip(figures, new_figures):
            assert new.shape == old.shape, f'the figure of cell {number} has another size'
            assert np.abs(new - old).mean() <= TOLERANCE, f'the figure of cell {number} differs by {np.abs(new - old).mean():.1f} of 255'
