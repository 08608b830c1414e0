"""A tiny model with a block that does nothing, and commands run in this process."""

import functools
import json

import pytest
from example_study import IDENTITY

import tiny


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Tasks' results are kept in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A directory whose block `IDENTITY` passes the stream on as it is."""
    return tiny.save(tmp_path_factory.mktemp("studies") / "model", identity=IDENTITY, max_position_embeddings=512)


@pytest.fixture
def study(command):
    """`study(words..., code=0)`: what `depthcut study` prints, or the sentence it ends with."""
    return functools.partial(command, "study")


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Two files of multiple-choice questions, by name."""
    folder = tmp_path_factory.mktemp("questions")
    files = {}
    for name, words in (("sums", ["one", "two", "three"]), ("seas", ["blue", "green", "deep", "wide"])):
        rows = [
            {
                "question": f"{name} {number}: which comes {7 * number}th?",
                "options": words,
                "answer": number % len(words),
            }
            for number in range(12)
        ]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files
