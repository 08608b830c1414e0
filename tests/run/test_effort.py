"""Effort in one word or in minutes: what it chooses, and that what is given stays."""

from dataclasses import replace

import pytest
import torch
import yaml

import tiny
from depthcut.commands import prune
from depthcut.preview import minutes
from depthcut.preview.device_profiles import measure_here
from depthcut.preview.minutes import recipe_within
from depthcut.process.workspace import work_folder
from depthcut.run.effort import EFFORTS, RUNGS
from depthcut.run.recipe import Recipe
from depthcut.types import InputError

CHOSEN = ("calibration_samples", "calibration_length", "num_repair_samples", "repair")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return {"model": str(tiny.save(tmp_path_factory.mktemp("effort") / "llama")), "remove": "1"}


def chosen(recipe):
    return {name: getattr(recipe, name) for name in CHOSEN}


@pytest.mark.parametrize("effort", EFFORTS)
def test_what_an_effort_stands_for_is_in_the_recipe_and_what_is_given_stays(effort):
    recipe = Recipe.build(model="x", remove="1", effort=effort, calibration_length=96)
    rung = EFFORTS[effort]
    assert recipe.calibration_length == 96 and recipe.calibration_samples == rung["calibration_samples"]
    assert recipe.repair == rung.get("repair") and recipe.repairs
    written = yaml.safe_load(recipe.to_yaml())
    assert Recipe.build(**written) == recipe
    assert rung in RUNGS


def test_normal_is_the_default():
    assert chosen(Recipe.build(model="x", remove="1", effort="normal")) == chosen(Recipe.build(model="x", remove="1"))


def test_the_command_line_tells_what_was_given_from_defaults(given, tmp_path, monkeypatch, command):
    recipes = []
    monkeypatch.setattr(prune, "_run", lambda recipe, *_, **__: recipes.append(recipe))
    command(
        "prune", given["model"], "--remove", "1", "--effort", "quick", "--calibration-samples", 16, "-o", tmp_path / "o"
    )
    assert recipes[0].calibration_samples == 16 and recipes[0].calibration_length == 256


def test_minutes_choose_among_rungs_and_an_unfinished_run_keeps_what_was_chosen(given, tmp_path, monkeypatch):
    here = replace(measure_here(torch.float32, 32, 64, device="cpu", seconds=0.02), flops_per_second=1e9)
    monkeypatch.setattr(minutes, "measure_here", lambda *_, **__: here)
    least, fewest = recipe_within(given, 1e-9, tmp_path / "out")
    most, seconds = recipe_within(given, 1e9, tmp_path / "out")
    assert chosen(least) == chosen(Recipe.build(**given, **RUNGS[0]))
    assert chosen(most) == chosen(Recipe.build(**given, **RUNGS[-1])) and 0 < seconds < 6e10
    part, within = recipe_within(given, (fewest + seconds) / 120, tmp_path / "out")
    assert fewest < within <= (fewest + seconds) / 2 and chosen(part) != chosen(most)
    assert recipe_within(given | {"speed": False}, 1e9, tmp_path / "out")[1] < seconds, "timing takes its time, too"
    kept, _ = recipe_within(given | {"calibration_samples": 3}, 1e9, tmp_path / "out")
    assert kept.calibration_samples == 3
    few, _ = recipe_within(given | {"repair_samples": 8}, 1e9, tmp_path / "out")
    assert few.repair is None and few.calibration_samples > least.calibration_samples
    folder = work_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "recipe.yaml").write_text(least.to_yaml())
    assert recipe_within(given, 1e9, tmp_path / "out") == (least, None)


def test_what_cannot_be_chosen_is_said(given, tmp_path):
    with pytest.raises(InputError, match="0 minutes are no time to work in"):
        recipe_within(given, 0, tmp_path / "out")
    with pytest.raises(InputError, match="give one of them"):
        recipe_within(given | {"effort": "high"}, 5, tmp_path / "out")
