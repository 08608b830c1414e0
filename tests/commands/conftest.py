"""A command that has to end with one sentence and exit code 2, before weights load, having written nothing."""

import pytest

import tiny
from depthcut.model.load import ModelSource

SMALL = {
    "--calibration-samples": "2",
    "--calibration-length": "16",
    "--evaluation-samples": "2",
    "--evaluation-length": "16",
    "--method": "shortgpt",
}


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def weights_stay_unread(monkeypatch):
    def fail(*_):
        raise AssertionError("weights were loaded before a problem was reported that needs none")

    monkeypatch.setattr(ModelSource, "load_model", fail)


@pytest.fixture
def error(exit_code, capsys, tmp_path):
    """`error(words...)`: the one sentence that a command ends with, having written nothing."""

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        code = exit_code(*words)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scoring")]
        assert code == 2, lines
        assert len(lines) == 1 and lines[0].startswith("depthcut: "), lines
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0].removeprefix("depthcut: ")

    return run


@pytest.fixture
def prune_error(error, llama, tmp_path):
    """`prune_error("--option", "value", ...)`: the sentence for `depthcut prune` on the tiny model."""

    def run(*options, model=llama, output=tmp_path / "out"):
        words = [str(option) for option in options]
        if "--remove" not in words and "--budget" not in words:
            words += ["--remove", "2"]
        for option, value in SMALL.items():
            words += [] if option in words else [option, value]
        return error("prune", model, "-o", output, *words)

    return run
