"""The texts of a run: which they are by default, and that what the model writes is written once."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

import depthcut
import tiny
from depthcut.calibration import self_samples
from depthcut.model.units import sizes_from_config
from depthcut.process.memory import resident_bytes
from depthcut.run import prune
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, prepare
from depthcut.run.texts import settle_texts, written_at_once

TEXTS = {"calibration_samples": 2, "calibration_length": 16, "evaluation_samples": 2, "evaluation_length": 16}

pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model."""
    return tiny.save(tmp_path_factory.mktemp("texts") / "llama")


def test_the_model_writes_its_text_once_for_search_and_repair_and_a_killed_run(folder, tmp_path, monkeypatch):
    """The text is `self` where none is named; what search and repairs learn from begins with the same sequences."""
    asked = TEXTS | {"remove": "1", "repair_samples": 5, "speed": False}
    texts = []

    def run(**changes):
        return depthcut.prune(str(folder), output=tmp_path / "out", **asked, **changes)

    def killed(loaded, *_):
        texts.append(loaded.texts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune, "repair", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    monkeypatch.setattr(self_samples, "_write", lambda *_: pytest.fail("it was written again"))
    result = run(resume=True)
    (searched, repaired) = (texts[0][use].input_ids for use in ("calibration", "repair"))
    assert torch.equal(repaired[:2], searched) and len(repaired) == 5
    assert result.plan.calibration.source == "self"
    assert yaml.safe_load((result.output / "recipe.yaml").read_text())["calibration"] == "self"
    (line,) = (result.output / "written.jsonl").read_text().splitlines()[1:]
    assert json.loads(line)["ids"] == repaired.tolist()


def test_the_model_writes_its_share_of_a_mixture(folder):
    recipe = Recipe.build(model=str(folder), **TEXTS, remove="1", calibration="self+stdlib", repair="none")
    source = find_model(recipe)
    texts = load(prepare(recipe, source)).texts
    alone = [
        load(prepare(recipe.model_copy(update={"calibration": text, "calibration_samples": 1}), source)).calibration
        for text in ("self", "stdlib")
    ]
    assert texts["calibration"].description.source == "self+stdlib"
    assert torch.equal(texts["calibration"].input_ids, torch.cat([samples.input_ids for samples in alone]))
    assert texts["calibration"].document_digests == alone[0].document_digests | alone[1].document_digests


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "self"),
        ({"method": "shortgpt", "repair": "none"}, "stdlib"),
        ({"method": "shortgpt", "repair": "refit"}, "self"),
        ({"memory_budget": "paged"}, "stdlib"),
    ],
)
def test_the_default_text_is_written_by_the_model_where_it_decides_much_and_weights_stay(folder, changes, text):
    if "memory_budget" in changes:
        changes = {"memory_budget": f"{resident_bytes() // 2**20 + 140}MiB"}
    recipe = Recipe.build(model=str(folder), remove="1", **changes)
    source = find_model(recipe)
    if "memory_budget" in changes:
        source = SimpleNamespace(weight_bytes=2**40, config=source.config)
    settled = settle_texts(recipe, source)
    assert settled.calibration == text
    assert settle_texts(settled, source) is settled


def test_as_many_sequences_are_written_at_once_as_memory_holds(folder):
    source = find_model(Recipe.build(model=str(folder), remove="1"))
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    (_, of_one), (most, of_most) = (written_at_once(sizes, 300, 100, budget) for budget in (0, 2**40))
    assert of_one >= 100 * sum(size.kv_bytes_per_token for size in sizes.units.values())
    assert of_most == most * of_one
    assert [written_at_once(sizes, 300, 100, round(budget * of_one))[0] for budget in (0.5, 3.5, 7)] == [1, 3, 7]
