"""What a run writes: every file, that it is the model in memory, and numbers of both models."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoTokenizer

import depthcut
import tiny
from depthcut.results import Measurement, read_list
from depthcut.types import Plan, ScoreTable
from example_run import FAMILIES, IDENTITY, OPTIONS, TEXTS, WRITTEN, logits, read, reloaded

QUANTITIES = {"perplexity", "loss", "parameters", "blocks", "kv_bytes_per_token", "bytes_on_disk", "decoding_bytes"}
AGAINST_DENSE = {"kl_to_dense", "loss/difference", "draft_acceptance", "draft_acceptance_greedy"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_directory_holds_everything_readable_by_everyone(pruned, family):
    folder = pruned(family).output
    assert {file.name for file in folder.iterdir()} == WRITTEN
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert not [file for file in folder.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_written_model_is_the_one_in_memory_bit_for_bit(pruned, family):
    result = pruned(family)
    model = reloaded(result.output)
    assert torch.equal(logits(model), logits(result.model))
    in_memory = result.model.state_dict()
    assert model.state_dict().keys() == in_memory.keys()
    assert all(torch.equal(tensor, in_memory[name]) for name, tensor in model.state_dict().items())
    assert model.config.num_hidden_layers == tiny.NUM_BLOCKS - 2
    text = "Sixteen letters, and some more: ü."
    assert AutoTokenizer.from_pretrained(result.output)(text)["input_ids"] == tiny.tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2"])
def test_per_layer_configuration_is_that_of_the_kept_blocks(pruned, models, family):
    result = pruned(family)
    removed = {unit.layer for unit in result.plan.removed}
    kept = [kind for layer, kind in enumerate(tiny.SLIDING["layer_types"]) if layer not in removed]
    assert read(result.output, "config.json")["layer_types"] == kept
    assert read(models[family], "config.json")["layer_types"] == tiny.SLIDING["layer_types"]


def test_the_plan_says_what_was_removed_in_which_order_and_what_it_took(pruned, models):
    result = pruned()
    plan = read(result.output)
    assert Plan.from_file(result.output / "plan.json") == result.plan
    assert plan["unit"] == "block" and plan["method"] == "shortgpt" and plan["budget"] == "remove 2"
    assert [step["applied"] for step in plan["steps"]] == [True, True] + [False] * (len(plan["steps"]) - 2)
    assert plan["steps"][0]["remove"] == [f"{IDENTITY}.attn", f"{IDENTITY}.ffn"]
    objectives = [step["objective"] for step in plan["steps"]]
    assert objectives == sorted(objectives)
    assert plan["cost"]["unit_evaluations"] == 2 * tiny.NUM_BLOCKS * TEXTS["calibration_samples"]
    assert "candidate_evaluations" in plan["cost"] and "seconds" not in plan["cost"]
    seconds = {row["name"]: row["value"] for row in read(result.output, "results.json") if row["model"] == "search"}
    assert seconds == {"search_seconds": result.plan.cost.seconds} and result.plan.cost.seconds > 0
    assert plan["model"]["source"] == str(models["llama"]) and plan["model"]["dtype"] == "float32"
    assert plan["model"]["num_blocks"] == tiny.NUM_BLOCKS and re.fullmatch("[0-9a-f]{64}", plan["model"]["digest"])
    assert plan["calibration"]["num_samples"] == 2 and plan["calibration"]["length"] == 16
    assert plan["calibration"]["source"] == "stdlib"


@pytest.mark.parametrize("family", FAMILIES)
def test_results_hold_every_quantity_of_both_models(pruned, family):
    result = pruned(family)
    rows = read(result.output, "results.json")
    assert read_list(Measurement, result.output / "results.json") == list(result.measurements)
    by_name = {(row["name"], row["model"]): row for row in rows}
    assert {name for name, model in by_name if model == "dense"} == QUANTITIES
    assert {name for name, model in by_name if model == "pruned"} == QUANTITIES | AGAINST_DENSE
    model = result.plan.model
    assert {row["source"] for row in rows} == {f"{model.source}, {model.digest}, {model.dtype}"}
    for row in rows:
        assert {"name", "value", "unit", "model", "data", "stderr", "samples", "software", "device"} <= row.keys()
    for model, weights in (("dense", reloaded(result.plan.model.source)), ("pruned", result.model)):
        count = sum(parameter.numel() for parameter in weights.parameters())
        assert by_name["parameters", model]["value"] == count
        assert by_name["perplexity", model]["stderr"] > 0 and by_name["perplexity", model]["samples"] == 2
        assert "stdlib" in by_name["perplexity", model]["data"]
    files = result.output.glob("*.safetensors")
    assert by_name["bytes_on_disk", "pruned"]["value"] == sum(file.stat().st_size for file in files)
    sizes = result.plan.unit_sizes
    saved = sum(sizes[str(unit)].parameters for unit in result.plan.removed)
    assert by_name["parameters", "dense"]["value"] - by_name["parameters", "pruned"]["value"] == saved


def test_speed_is_measured_of_both_models_side_by_side(models):
    measured = depthcut.prune(str(models["gpt2"]), **(OPTIONS | {"speed": True, "evaluation_length": 64})).measurements
    timed = [row for row in measured if "second" in row.name or "speedup" in row.name]
    speeds = {(row.name, row.model): row.value for row in timed if not row.name.startswith("draft")}
    phases = ("prompt", "decode", "short_decode")
    names = {f"{phase}_tokens_per_second" for phase in phases}
    ratios = {f"{phase}_{ratio}" for phase in phases for ratio in ("speedup", "ideal_speedup")}
    assert {name for name, model in speeds if model == "dense"} == names
    assert {name for name, model in speeds if model == "pruned"} == names | ratios
    assert min(speeds.values()) > 0


def test_one_sequence_has_no_standard_error_and_results_stay_json(models, tmp_path):
    depthcut.prune(str(models["llama"]), output=tmp_path / "out", **(OPTIONS | {"evaluation_samples": 1}))
    text = (tmp_path / "out" / "results.json").read_text()
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert all(row["stderr"] is None for row in rows)


def test_a_fresh_process_finds_the_same_model(models, tmp_path, request):
    request.getfixturevalue("read_afresh")  # after what lets the other tests reload in this process
    result = depthcut.prune(str(models["gemma3_text"]), output=tmp_path / "out", **OPTIONS)
    assert result.output == tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "file"),
    [("recipe", "recipe.yaml"), ("plan", "plan.json"), ("scores", "scores.json"), ("results", "results.json")],
)
def test_artefacts_are_valid_and_follow_the_printed_schema(pruned, command, name, file):
    path = pruned().output / file
    assert command("validate", path) == f"{path} is valid\n"
    schema = json.loads(command("schema", name))
    content = yaml.safe_load(path.read_text())
    assert list(violations(content, schema, schema)) == []
    damaged = [*content[:-1], content[-1] | {"x": 1}] if isinstance(content, list) else content | {"x": 1}
    assert list(violations(damaged, schema, schema)) == ["x is not allowed"]


TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}


def violations(value, schema, root):
    """What of a JSON value breaks a schema, as far as our schemas go."""
    if "$ref" in schema:
        yield from violations(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
        return
    if "anyOf" in schema:
        tried = [list(violations(value, choice, root)) for choice in schema["anyOf"]]
        yield from min(tried, key=len)
        return
    if "type" in schema and schema["type"] != "boolean" and not isinstance(value, TYPES[schema["type"]]):
        yield f"{value!r} is no {schema['type']}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{value!r} is none of those allowed"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{value!r} is not like {schema['pattern']}"
    if isinstance(value, list):
        for item in value:
            yield from violations(item, schema.get("items", {}), root)
    if isinstance(value, dict):
        yield from (f"{name} is missing" for name in schema.get("required", ()) if name not in value)
        properties, further = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, item in value.items():
            if name in properties:
                yield from violations(item, properties[name], root)
            elif further is False:
                yield f"{name} is not allowed"
            elif isinstance(further, dict):
                yield from violations(item, further, root)


def test_a_score_table_reads_back_as_it_was(pruned):
    result = pruned()
    assert ScoreTable.from_file(result.output / "scores.json") == result.scores
