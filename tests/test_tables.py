"""Tables: of even columns, and never broken by what stands in a cell."""
from pathlib import Path

import pytest

from synseg_kit.tables import markdown_table, text_table


def test_columns_are_even_and_end_without_blanks():
    assert text_table([('a', 'bb', ''), ('ccc', 'd', 'e'), ('', '', '')]) == 'a    bb\nccc  d   e\n'


def test_a_cell_cannot_break_a_row():
    head, line, row = markdown_table([('a|b', 'c'), ('x\ny', None)]).split('\n')
    assert (head, line, row) == ('| a\\|b | c |', '|---|---|', '| x y | None |')


def test_a_heading_alone_is_a_table(): assert text_table([('a', 'b')]) == 'a  b' and markdown_table([('a', 'b')]) == '| a | b |\n|---|---|'


def test_rows_of_other_lengths_are_refused():
    with pytest.raises(ValueError): text_table([('a', 'b'), ('c', 'd', 'e')])


def test_the_kinds_of_a_parameter_do_not_break_the_table_of_a_run():
    from synseg_kit.runs import Parameter, RunNotebook
    notebook = RunNotebook(Path('job.ipynb'), (Parameter('size', 'int | None', None, 'in pixels'),), {'smoke': {}})
    assert notebook._repr_markdown_().split('\n')[2] == '| size | int \\| None | None | in pixels |'
