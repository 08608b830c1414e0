"""Weights that are missing, cut off or closed are named before they load."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiny
from depthcut.model.load import resolve
from depthcut.types import InputError
from example_run import words

OPTIONS = tiny.SHORT_RUN | {"unit": "block", "repair": "none", "calibration": "stdlib"}


NOBODY = 65534


@pytest.fixture
def shards(tmp_path):
    """A model in several files."""
    folder = tmp_path / "model"
    tiny.save(folder)
    tiny.model(vocab_size=tiny.BYTE_VOCABULARY).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_missing_shard_is_named_before_weights_load(shards, tmp_path, told):
    missing = sorted(shards.glob("*.safetensors"))[1]
    missing.unlink()
    lines = told("prune", shards, "-o", tmp_path / "out", *words(OPTIONS), code=2)
    assert lines == [
        f"depthcut: {shards} lacks {missing.name}, which model.safetensors.index.json names; download the model again"
    ]


@pytest.mark.parametrize("kept", [0, 7, -1])
def test_a_shard_that_was_cut_off_is_named(shards, tmp_path, told, kept):
    damaged = sorted(shards.glob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:kept])
    lines = told("prune", shards, "-o", tmp_path / "out", *words(OPTIONS), code=2)
    assert len(lines) == 1 and f"{damaged} is damaged" in lines[0]
    assert not list(tmp_path.glob("*out*"))


def test_an_index_that_is_no_list_is_named(shards):
    (shards / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is no list of shards"):
        resolve(str(shards))


@contextmanager
def as_nobody():
    """Without the superuser's rights, whom no mode stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_shard_without_permission_is_named(shards):
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        folder = shutil.copytree(shards, Path(scratch) / "model")
        closed = sorted(folder.glob("*.safetensors"))[0]
        closed.chmod(0)
        with as_nobody(), pytest.raises(InputError, match="cannot be read: Permission denied; see to") as refused:
            resolve(str(folder))
        assert str(closed) in str(refused.value)
