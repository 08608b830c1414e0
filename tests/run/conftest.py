"""Dense models and runs that the tests of runs share."""

import pytest

import depthcut
import tiny
from example_run import FAMILIES, IDENTITY, OPTIONS


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories of dense models in which block `IDENTITY` passes the stream on as it is, by family."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.save(root / family, family, identity=IDENTITY) for family in FAMILIES}


@pytest.fixture(scope="session")
def pruned(models, tmp_path_factory):
    """`pruned(family)`: the result of one run, written once."""
    root = tmp_path_factory.mktemp("pruned")
    results = {}

    def run(family="llama"):
        if family not in results:
            results[family] = depthcut.prune(str(models[family]), output=root / family, **OPTIONS)
        return results[family]

    return run


@pytest.fixture(autouse=True)
def _reloads_in_this_process(quick_reload):
    pass
