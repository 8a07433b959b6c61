"""Files: entirely there or not at all."""
import os
from pathlib import Path

import pytest
from synseg_kit.files import write_file, write_text


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
