"""Models that trainings share."""

import gc

import pytest

import tiny
from depthcut.model.architectures import FAMILIES
from depthcut.surgery import apply
from depthcut.types import Unit


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """accelerate collects garbage before every training; the libraries need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def pruned_pair():
    """A dense model, and it without two sublayers."""
    dense = tiny.model()
    removed = frozenset({Unit(1, "attn"), Unit(3, "ffn")})
    return dense, apply(dense, FAMILIES["llama"], removed), removed
