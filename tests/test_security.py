"""Security: weights are safetensors and nothing else, no code comes with a model, and prompts are text and nothing else."""
import ast
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from synseg_kit.classes import ClassSet
from synseg_kit.datasets import Example, Sample, SampleWriter
from synseg_kit.families import load_pipeline
from synseg_kit.prompts import Mention, Prompt
from synseg_kit.training import SegmenterSettings, build_segmenter, load_encoder, no_pickles


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark): self.mark = mark

    def __reduce__(self): return os.mkdir, (str(self.mark),)


@pytest.fixture
def evil(tmp_path):
    """Write a pickle that runs code; gives how to write one, and the mark that it leaves."""
    mark = tmp_path / 'it-ran'

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Evil(mark)))
        return path
    yield write
    assert not mark.exists(), 'a pickle was opened'


def test_the_pickle_of_these_tests_does_run_code(tmp_path):
    with pytest.raises(FileExistsError):
        for _ in range(2): pickle.loads(pickle.dumps(Evil(tmp_path / 'mark')))


def calls(root):
    """Every call in the library: file and node."""
    for path in sorted((root / 'synseg_kit').glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call): yield path.name, node


OPENERS = ('torch.load', 'torch.hub', 'pickle.', 'cloudpickle.', 'dill.', 'joblib.', 'shelve.', 'marshal.', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'pandas.read_pickle')


def test_the_library_opens_no_pickles(root):
    for name, node in calls(root):
        function = ast.unparse(node.func)
        assert not function.startswith(OPENERS), f'{name}: {ast.unparse(node)}'
        for word in node.keywords:
            assert (word.arg, ast.unparse(word.value)) not in {('allow_pickle', 'True'), ('trust_remote_code', 'True'), ('weights_only', 'False'), ('use_safetensors', 'False')}, f'{name}: {ast.unparse(node)}'


def test_models_of_other_libraries_are_asked_for_safetensors(root):
    seen = 0
    for name, node in calls(root):
        function = ast.unparse(node.func)
        if not function.endswith('.from_pretrained') or function.endswith(('Config.from_pretrained', 'Tokenizer.from_pretrained')): continue
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert options.get('use_safetensors') == 'True' or None in options, f'{name}: {ast.unparse(node)}'  # None: `**settings`
        seen += 1
    assert seen >= 3


def test_a_pipeline_with_pickled_weights_is_refused(tmp_path, evil):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model/model_index.json').write_text(json.dumps({'_class_name': 'StableDiffusionPipeline', 'unet': ['diffusers', 'UNet2DConditionModel']}))
    evil(tmp_path / 'model/unet/diffusion_pytorch_model.bin')
    (tmp_path / 'model/unet/config.json').write_text('{}')
    with pytest.raises(ValueError, match='pickled weights only'): load_pipeline(tmp_path / 'model')


@pytest.mark.parametrize('name', ['model.pth', 'model.bin', 'model.ckpt'])
def test_an_encoder_with_pickled_weights_is_refused(tmp_path, evil, name):
    with pytest.raises(ValueError, match=r'needed is a \.safetensors file'): load_encoder(torch.nn.Linear(1, 1), evil(tmp_path / name))


def test_a_pickle_that_is_called_safetensors_is_not_opened_as_one(tmp_path, evil):
    with pytest.raises(Exception, match='(?i)header|safetensors|invalid'): load_encoder(torch.nn.Linear(1, 1), evil(tmp_path / 'model.safetensors'))


def test_mask2former_with_pickled_weights_is_refused(tmp_path, evil):
    from transformers import Mask2FormerConfig
    Mask2FormerConfig().save_pretrained(tmp_path / 'model')
    evil(tmp_path / 'model/pytorch_model.bin')
    settings = SegmenterSettings(architecture='mask2former', encoder_weights=str(tmp_path / 'model'))
    with pytest.raises(OSError, match='safetensors'): build_segmenter(settings, 3)


def test_what_is_downloaded_by_name_is_not_unpickled(tmp_path, evil, monkeypatch):
    """timm opens pickles where a model has no safetensors; here the download is a file that is there."""
    import timm.models._hub as hub
    file = evil(tmp_path / 'pytorch_model.bin')
    monkeypatch.setattr(hub, '_get_safe_alternatives', lambda name: iter(()))
    monkeypatch.setattr(hub, 'hf_hub_download', lambda *arguments, **options: str(file))
    monkeypatch.setattr(hub, 'cached_download', lambda *arguments, **options: str(file), raising=False)
    monkeypatch.setattr(hub, 'download_cached_file', lambda *arguments, **options: str(file), raising=False)
    monkeypatch.setattr('timm.models._builder.download_cached_file', lambda *arguments, **options: str(file), raising=False)
    with pytest.raises(ValueError, match='pytorch_model.bin has pickled weights, which can run code'): build_segmenter(SegmenterSettings(encoder='tu-resnet18', encoder_weights='imagenet'), 3)


def test_pickles_are_refused_for_a_while_only(tmp_path):
    torch.save({'a': 1}, tmp_path / 'mine.pt')
    with no_pickles(), pytest.raises(ValueError, match='mine.pt has pickled weights'): torch.load(tmp_path / 'mine.pt')
    assert torch.load(tmp_path / 'mine.pt') == {'a': 1}


@pytest.mark.parametrize('text', ['../../../outside cat', '/etc/passwd cat', '$(touch pwned) cat', 'a cat\n{"file_name": "../evil.jpg"}', 'cat\u0000', 'cat", "file_name": "../x', '<script>alert(1)</script> cat'])
def test_prompts_are_text_and_nothing_else(tmp_path, monkeypatch, text):
    """Files are named by numbers, and a prompt stands in JSON, where it stays one line and one value."""
    monkeypatch.chdir(tmp_path)
    pets = ClassSet('pets', ('cat',))
    start = text.index('cat')
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    sample = Sample(image, Example(image, np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32)), Prompt(text, (Mention(1, start, start + 3),)), 1)
    with SampleWriter(tmp_path / 'data', pets, 1, 1) as writer:
        writer.write(0, [sample])
        dataset = writer.finish()
    assert dataset.names == ('000000',) and dataset.metadata[0]['text'] == text and len((tmp_path / 'data/metadata.jsonl').read_text().split('\n')) == 2
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob('*')} == {'data'}
    assert len([p for p in (tmp_path / 'data').rglob('*') if p.is_file()]) == 8
