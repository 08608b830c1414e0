"""A run with a repair: what it is fitted to, what is measured beside it, and what it can be written as."""

import functools

import pytest
import torch

import depthcut
from depthcut.repairs.refit import Refit
from depthcut.results import Repair, read_list
from depthcut.run.export import export_model
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, prepare
from depthcut.types import InputError
from example_run import (
    IDENTITY,
    OPTIONS,
    TEXTS,
    logits,
    reloaded,
)

REPAIRED = OPTIONS | {"remove": "1", "repair": "refit", "repair_samples": 64, "calibration_samples": 2}


def test_a_repaired_model_is_measured_beside_the_one_that_was_not_and_reloads(models, tmp_path, command):
    result = depthcut.prune(str(models["qwen2"]), output=tmp_path / "out", protect=[str(IDENTITY)], **REPAIRED)
    (record,) = read_list(Repair, tmp_path / "out" / "repair.json")
    assert record == result.repairs[0]
    assert record.kept and record.after < record.before
    assert (record.text.num_samples, record.held_out.num_samples) == (60, 4)
    assert {row.model for row in result.measurements} == {"dense", "pruned", "not repaired", "search"}
    unrepaired = depthcut.apply(
        str(models["qwen2"]), tmp_path / "out" / "plan.json", output=tmp_path / "plain", speed=False, **TEXTS
    )
    assert unrepaired.repairs == () and not (tmp_path / "plain" / "repair.json").exists()
    values = {(row.name, row.model): row.value for row in result.measurements}
    plain = {(row.name, row.model): row.value for row in unrepaired.measurements}
    assert plain["parameters", "pruned"] == values["parameters", "pruned"]
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(result.model))
    assert not torch.equal(logits(result.model), logits(unrepaired.model))
    page = command("report", tmp_path / "out", "-o", tmp_path / "page.html")
    assert "written" in page and "refit (reads True" in (tmp_path / "page.html").read_text()


def test_a_search_is_followed_by_refit_and_a_ranking_by_nothing(models):
    build = functools.partial(Recipe.build, model=str(models["llama"]), remove="1")
    assert [name for name, _ in build().repairs] == ["refit"]
    assert build(method="shortgpt").repairs == []
    assert build(repair="none").repairs == []


def test_what_measures_is_never_what_a_repair_saw(models):
    recipe = Recipe.build(model=str(models["llama"]), calibration="stdlib", **REPAIRED)
    session = prepare(recipe, find_model(recipe))
    fitted_to = session.texts["repair"]
    assert not fitted_to.document_digests & session.texts["evaluation"].document_digests
    assert len(fitted_to.input_ids) == 64


def test_an_interrupted_repair_leaves_nothing_and_is_made_again(models, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Refit, "repair", interrupted)
        with pytest.raises(KeyboardInterrupt):
            depthcut.prune(str(models["llama"]), output=tmp_path / "out", **REPAIRED)
    assert not (tmp_path / "out").exists()
    resumed = depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **REPAIRED)
    at_once = depthcut.prune(str(models["llama"]), **REPAIRED)
    assert torch.equal(logits(resumed.model), logits(at_once.model))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_an_emulated_model_goes_only_where_its_modules_can_go(models, tmp_path):
    options = REPAIRED | {"repair": "low-rank,rank=2", "protect": [str(IDENTITY)]}
    assert depthcut.prune(str(models["llama"]), output=tmp_path / "out", **options).repairs[0].kept
    for form in ("gguf", "nemotron-nas", "zeroed"):
        with pytest.raises(InputError, match=f"the format {form} cannot hold this model: .* replaced with a module"):
            export_model(str(tmp_path / "out"), form, tmp_path / form)
        assert not (tmp_path / form).exists()
