"""What a run wrote makes it again: its recipe, its plan, its scores, and every command that reads them."""

import json
import re

import pytest
import torch
import yaml

import depthcut
import tiny
from depthcut.importance import METRICS
from depthcut.methods.problem import SEARCHES
from depthcut.model.load import ModelSource
from depthcut.results import Measurement, read_list
from depthcut.types import InputError
from example_run import IDENTITY, OPTIONS, TEXTS, WRITTEN, logits, read, reloaded, without_cost, words


def test_the_recipe_beside_the_model_makes_it_again(pruned, command, tmp_path):
    first = pruned().output
    printed = command("run", first / "recipe.yaml", "-o", tmp_path / "out")
    assert "reloaded in a fresh process: logits equal bit for bit" in printed
    assert without_cost(read(tmp_path / "out")) == without_cost(read(first))
    assert read(tmp_path / "out", "scores.json") == read(first, "scores.json")
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(reloaded(first)))


def test_the_command_line_and_python_do_the_same(pruned, models, command, tmp_path):
    printed = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS))
    assert f"removed (block, shortgpt): {IDENTITY} " in printed and "Perplexity" in printed
    assert without_cost(read(tmp_path / "out")) == without_cost(read(pruned().output))
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text()) == yaml.safe_load(
        (pruned().output / "recipe.yaml").read_text()
    )


def test_applying_a_plan_gives_the_model_that_pruning_gave(pruned, models, command, tmp_path):
    first = pruned()
    evaluation = {name: value for name, value in TEXTS.items() if name.startswith("evaluation")} | {"speed": False}
    given = [models["llama"], first.output / "plan.json", "-o", tmp_path / "out", *words(evaluation)]
    command("apply", *given)
    model = reloaded(tmp_path / "out")
    assert torch.equal(logits(model), logits(first.model))
    assert read(tmp_path / "out", "config.json") == read(first.output, "config.json")
    assert read(tmp_path / "out") == read(first.output)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == WRITTEN - {"scores.json", "recipe.yaml"}

    command("apply", *given, "--steps", "1", "--overwrite")
    plan = read(tmp_path / "out")
    assert [step["applied"] for step in plan["steps"]] == [True] + [False] * (len(plan["steps"]) - 1)
    assert reloaded(tmp_path / "out").config.num_hidden_layers == tiny.NUM_BLOCKS - 1

    message = command("apply", *given, "--steps", "99", "--overwrite", code=2)
    assert f"the plan has {len(plan['steps'])} steps, so 99 of them cannot be applied" in message


def test_a_plan_of_another_model_is_refused_before_weights_load(pruned, tmp_path, monkeypatch):
    other = tiny.save(tmp_path / "other", seed=1)
    plan = pruned().output / "plan.json"
    monkeypatch.setattr(ModelSource, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=r"the plan was made for .*llama.* not for .*other"):
        depthcut.apply(str(other), plan, output=tmp_path / "out", **TEXTS)
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_a_plan_that_removes_what_is_not_there_is_refused(pruned, models, tmp_path):
    plan = read(pruned().output)
    plan["steps"][0]["remove"] = ["9.attn"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"the plan names 9\.attn, and the model has blocks 0 to 5"):
        depthcut.apply(str(models["llama"]), tmp_path / "plan.json", output=tmp_path / "out", **TEXTS)


def test_scoring_alone_finds_what_pruning_finds(pruned, models, command, tmp_path):
    calibration = {name: value for name, value in TEXTS.items() if name.startswith("calibration")}
    given = ["score", models["llama"], "-o", tmp_path / "out", *words(calibration)]
    printed = command(*given)
    assert "block-influence" in printed
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["scores.json"]
    assert read(tmp_path / "out", "scores.json") == read(pruned().output, "scores.json")
    command(*given, "--overwrite")


@pytest.mark.parametrize("method", ["deepest-first", "sequential", "random"])
def test_a_dry_run_needs_no_weights_where_the_method_needs_none(models, tmp_path, command, monkeypatch, method):
    monkeypatch.setattr(ModelSource, "load_model", lambda *_: pytest.fail("weights were loaded"))
    options = words(OPTIONS | {"method": method})
    printed = command("prune", models["llama"], "-o", tmp_path / "out", *options, "--dry-run")
    assert "nothing was written (dry run)" in printed and not re.search("^search", printed, re.MULTILINE)
    if method == "deepest-first":
        assert re.search(r"^removes +4 3$", printed, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_what_a_run_would_remove(pruned, models, tmp_path, command):
    printed = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS), "--dry-run")
    removed = list(dict.fromkeys(unit.layer for step in pruned().plan.steps if step.applied for unit in step.remove))
    assert re.search(rf"^removes +{' '.join(map(str, removed))}$", printed, re.MULTILINE)
    counts = {row.model: f"{row.value:,.0f}" for row in pruned().measurements if row.name == "parameters"}
    assert f"{counts['dense']} -> {counts['pruned']}\n" in printed
    assert re.search(rf"^score .* {2 * tiny.NUM_BLOCKS * TEXTS['calibration_samples']} ", printed, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_evaluating_a_written_model_gives_the_numbers_of_its_run(pruned, command, tmp_path):
    result = pruned()
    evaluation = {name: value for name, value in TEXTS.items() if name.startswith("evaluation")} | {"speed": False}
    command("eval", result.output, *words(evaluation), "-o", tmp_path / "again.json")
    again = {(row.name, row.model): row for row in read_list(Measurement, tmp_path / "again.json")}
    kept = {"parameters", "blocks", "kv_bytes_per_token"}
    for row in result.measurements:
        if row.name in kept:
            assert again[row.name, row.model].value == row.value
    assert again["perplexity", "pruned"].value > 1 and again["kl_to_dense", "pruned"].value > 0
    assert f"{tmp_path / 'again.json'} exists" in command("eval", result.output, "-o", tmp_path / "again.json", code=2)


def test_evaluating_against_a_model_of_another_vocabulary_is_refused(pruned, command, tmp_path):
    other = tiny.save(tmp_path / "other", vocab_size=300)
    message = command("eval", pruned().output, "--dense", other, "--evaluation-length", "16", code=2)
    assert "was not made from" in message and "it knows 259 tokens, not 300" in message


def test_the_report_is_made_again_from_the_artefacts(pruned, command, tmp_path):
    folder = pruned().output
    command("report", folder, "-o", tmp_path / "page.html")
    pages = [path.read_text() for path in (folder / "report.html", tmp_path / "page.html")]
    figures = [re.findall(r"<td[^>]*>(.*?)</td>", page) for page in pages]
    assert figures[0] == figures[1] and len(figures[0]) > tiny.NUM_BLOCKS
    assert f"depthcut run {folder / 'recipe.yaml'} -o OUT" in pages[1]


def test_every_method_metric_and_family_is_listed(command):
    printed = command("ls")
    for name in (
        *(entry.name for entry in SEARCHES),
        *(entry.name for entry in METRICS),
        "smollm2",
        "stdlib",
        "self",
        *tiny.ALL,
    ):
        assert name in printed, name
