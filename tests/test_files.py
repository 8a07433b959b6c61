"""Files: entirely there or not at all."""
import os
from pathlib import Path

import pytest

from synseg_kit.files import Workplace, differences, flatten, write_file, write_text


def test_a_file_is_written_aside_in_its_folder_and_renamed(tmp_path):
    seen = []

    def write(aside):
        seen.append(aside)
        aside.write_bytes(b'x')
    path = write_file(str(tmp_path / 'deep/er/picture.png'), write)
    assert path == tmp_path / 'deep/er/picture.png' and path.read_bytes() == b'x' and os.listdir(path.parent) == ['picture.png']
    assert seen[0] != path and seen[0].parent == path.parent and seen[0].suffix == '.png'


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('breaks', ['writing', 'renaming'])
def test_what_breaks_leaves_the_old_file(tmp_path, monkeypatch, breaks, error):
    def stop(*_): raise error
    path = write_text(tmp_path / 'a.txt', 'first')

    def write(aside):
        aside.write_text('sec')
        if breaks == 'writing': stop()
    with monkeypatch.context() as patch:
        if breaks == 'renaming': patch.setattr(os, 'replace', stop)
        with pytest.raises(error): write_file(path, write)
    assert path.read_text() == 'first' and os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize('name', ['notes', '.notes', 'notes.tar.gz'])
def test_any_name_and_any_letter(tmp_path, name):
    text = 'Straße, 雪\n'
    assert write_text(Path(tmp_path, name), text).read_text(encoding='utf-8') == text and os.listdir(tmp_path) == [name]


# ---- a folder that is filled

def test_what_was_put_and_not_noted_does_not_shut_the_folder(tmp_path):
    """The first part is in its place when the work breaks off before its note: the same work goes on, another one is refused."""
    with pytest.raises(KeyboardInterrupt), Workplace(tmp_path / 'x', {'size': 2}) as place:
        place.put_text('0.txt', 'first')
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path / 'x')) == ['0.txt', 'writing'] and os.listdir(tmp_path / 'x/writing') == ['about.json']
    with pytest.raises(FileExistsError, match='size is 2 there, 3 here'): Workplace(tmp_path / 'x', {'size': 3}).__enter__()
    with Workplace(tmp_path / 'x', {'size': 2}) as place: place.put_text('0.txt', 'first')
    assert os.listdir(tmp_path / 'x') == ['0.txt']


def test_notes_of_files_in_sub_folders_stay(tmp_path):
    with pytest.raises(KeyboardInterrupt), Workplace(tmp_path / 'x', {}) as place:
        place.put_text('data/0.txt', 'first')
        place.note('data/0.txt', {'samples': 3})
        assert place.standing == '1 finished files stay'
        raise KeyboardInterrupt
    with Workplace(tmp_path / 'x', {}) as place: assert place.done('data/0.txt') == {'samples': 3} and place.done('data/1.txt') is None


def test_a_workplace_that_did_nothing_leaves_nothing(tmp_path):
    with Workplace(tmp_path / 'x', {}): assert (tmp_path / 'x/writing/lock').exists()
    with pytest.raises(MemoryError), Workplace(tmp_path / 'x', {}) as place: place.put('a.txt', lambda aside: (_ for _ in ()).throw(MemoryError))
    assert not os.listdir(tmp_path)


def test_dotted_keys():
    assert flatten({}) == {} and flatten({'a': {}}) == {'a': {}} and flatten({'a': {'b': [1], 'c': {'d': None}}}) == {'a.b': [1], 'a.c.d': None}
    assert differences({'a': {}}, {}) == ['a is {} there, absent here'] and differences({}, {}) == []
