"""What all tests share: no network, one thread, shapes checked, and no GPU test where there is none."""
import os

os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='Agg', TOKENIZERS_PARALLELISM='false')
os.environ.setdefault('OMP_NUM_THREADS', '1')

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook('synseg_kit', 'beartype.beartype')  # every shape in a signature holds wherever a test walks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def root():
    """The project's root folder."""
    return ROOT


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker('gpu')]
    if not marked: return
    import torch
    if torch.cuda.is_available(): return
    for item in marked: item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
