"""The whole product on tiny models: what is written, that it is the model in memory, and that runs can be trusted."""

import functools
import json
import re
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import depthcut
import tiny
from depthcut.export import VerificationError, hf
from depthcut.importance import METRICS
from depthcut.methods.problem import SEARCHES
from depthcut.model.load import ModelSource
from depthcut.preview.dry_run import preview as look_ahead
from depthcut.repairs.refit import Refit
from depthcut.results import Measurement, Repair, read_list
from depthcut.run import measure, plan, write
from depthcut.run.export import export_model
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, prepare
from depthcut.types import InputError, Latency, Plan, ScoreTable

FAMILIES = ("llama", "gemma3_text", "gpt2", "qwen2")
IDENTITY = 3
TEXTS = {"calibration_samples": 2, "calibration_length": 16, "evaluation_samples": 2, "evaluation_length": 16}
OPTIONS = TEXTS | {"method": "shortgpt", "unit": "block", "remove": "2", "speed": False}
WRITTEN = {
    "README.md",
    "config.json",
    "generation_config.json",
    "layer_map.json",
    "model.safetensors",
    "plan.json",
    "recipe.yaml",
    "report.html",
    "results.json",
    "scores.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
QUANTITIES = {"perplexity", "loss", "parameters", "blocks", "kv_bytes_per_token", "bytes_on_disk"}
AGAINST_DENSE = {"kl_to_dense", "loss/difference", "draft_acceptance", "draft_acceptance_greedy"}


pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of dense models in which block `IDENTITY` passes the stream on as it is, by family."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.save(root / family, family, identity=IDENTITY) for family in FAMILIES}


@pytest.fixture(scope="module")
def pruned(models, tmp_path_factory):
    """`pruned(family)`: the result of one run, written once for this module."""
    root = tmp_path_factory.mktemp("pruned")
    results = {}

    def run(family="llama"):
        if family not in results:
            results[family] = depthcut.prune(str(models[family]), output=root / family, **OPTIONS)
        return results[family]

    return run


def words(options):
    """Options of the Python functions as words of the command line."""
    given = []
    for name, value in options.items():
        option = name.replace("_", "-")
        given += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", value]
    return given


def read(folder, name="plan.json"):
    return json.loads((folder / name).read_text())


def preview(model, **changes):
    """The plan of a run that writes nothing."""
    return look_ahead(Recipe.build(model=str(model), **(OPTIONS | changes))).plan


def without_cost(plan):
    return plan | {"cost": None}


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.samples().input_ids).logits


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


# What is written


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


def test_a_fresh_process_finds_the_same_model(models, tmp_path, monkeypatch):
    monkeypatch.undo()  # what the other tests reload in this process is here reloaded as for a user
    result = depthcut.prune(str(models["gemma3_text"]), output=tmp_path / "out", **OPTIONS)
    assert result.output == tmp_path / "out"


# What is removed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "metric"),
    [("shortgpt", None), *(("one-shot", entry.name) for entry in METRICS if entry.make().reads != "weights")],
)
def test_a_planted_identity_block_goes_first(models, family, method, metric):
    plan = preview(models[family], method=method, metric=metric, remove="1")
    assert {unit.layer for unit in plan.removed} == {IDENTITY}
    assert plan.steps[0].objective == pytest.approx(0, abs=tiny.ROUNDING)


def test_a_contiguous_window_goes_where_the_identity_is(models):
    plan = preview(models["llama"], method="uidl", remove="1")
    assert {unit.layer for unit in plan.removed} == {IDENTITY}


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_an_identity_block_changes_nothing(models, family):
    result = depthcut.prune(str(models[family]), **(OPTIONS | {"remove": "1"}))
    assert torch.equal(logits(result.model), logits(reloaded(models[family])))
    measured = {(row.name, row.model): row.value for row in result.measurements}
    assert measured["kl_to_dense", "pruned"] == pytest.approx(0, abs=tiny.ROUNDING)
    assert measured["perplexity", "pruned"] == measured["perplexity", "dense"]
    assert result.output is None


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_nothing_gives_the_dense_model_bit_for_bit(models, family, tmp_path):
    result = depthcut.prune(str(models[family]), output=tmp_path / "out", **(OPTIONS | {"remove": "0"}))
    dense, model = reloaded(models[family]), reloaded(tmp_path / "out")
    assert result.plan.removed == ()
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), logits(dense))
    measured = {(row.name, row.model): row.value for row in result.measurements}
    assert measured["kl_to_dense", "pruned"] == 0


def test_protected_units_stay(models):
    plan = preview(models["llama"], protect=(str(IDENTITY), "0.attn"))
    assert not {IDENTITY, 0} & {unit.layer for step in plan.steps for unit in step.remove}
    assert [str(unit) for unit in plan.protected] == ["0.attn", f"{IDENTITY}.attn", f"{IDENTITY}.ffn"]


@pytest.mark.parametrize(("budget", "name"), [("parameters=0.8", "parameters"), ("kv=0.7", "kv_bytes_per_token")])
def test_a_budget_is_met_and_not_by_more_than_a_step(models, budget, name):
    options = OPTIONS | {"remove": None, "budget": budget}
    result = depthcut.prune(str(models["llama"]), **options)
    measured = {(row.name, row.model): row.value for row in result.measurements}
    share = float(budget.split("=")[1])
    step = measured[name, "dense"] / tiny.NUM_BLOCKS
    assert share * measured[name, "dense"] - step < measured[name, "pruned"] <= share * measured[name, "dense"]


@pytest.mark.parametrize("method", ["greedy", "shortgpt"])
def test_a_latency_budget_is_met_by_what_was_measured(models, monkeypatch, method):
    measured = Latency(token_seconds=1.0, unit_seconds={"attn": 0.02, "ffn": 0.1})
    monkeypatch.setattr(plan, "measure_latency", lambda *_: measured)
    options = OPTIONS | {"remove": None, "budget": "latency=0.7", "method": method, "repair": "none"}
    removed = depthcut.prune(str(models["llama"]), **options).plan.removed
    saved = sum(measured.unit_seconds[unit.kind] for unit in removed)
    assert 0.3 <= saved < 0.3 + 0.12


def test_the_model_can_write_its_own_calibration_text(models, tmp_path):
    options = OPTIONS | {"calibration": "self"}
    first, second = (depthcut.prune(str(models["llama"]), output=tmp_path / name, **options) for name in ("one", "two"))
    assert first.plan.calibration.source == "self" and "written by the model" in first.plan.calibration.detail
    assert first.plan.calibration == second.plan.calibration
    assert {unit.layer for unit in first.plan.steps[0].remove} == {IDENTITY}
    other = preview(models["llama"], calibration="self", seed=1)
    assert other.calibration.digest != first.plan.calibration.digest


def test_two_runs_with_a_seed_give_one_plan_and_another_seed_reads_other_text(models):
    def plan(**changes):
        return without_cost(preview(models["llama"], **changes).model_dump())

    assert plan(seed=3) == plan(seed=3)
    assert plan(seed=3)["calibration"]["digest"] != plan(seed=4)["calibration"]["digest"]
    orders = {str(plan(method="random", seed=seed)["steps"]) for seed in range(4)}
    assert len(orders) > 1


def test_other_methods_are_measured_beside_at_equal_parameters(models, capsys):
    # A window of three blocks beside block 2 is there for ShortGPT, which takes single ones, but not for UIDL.
    options = OPTIONS | {"remove": "3", "protect": ("2",), "compare": ("shortgpt", "uidl", "deepest-first")}
    result = depthcut.prune(str(models["llama"]), **options)
    measured = {(row.name, row.model): row.value for row in result.measurements}
    assert measured["blocks", "shortgpt"] == measured["blocks", "pruned"] == 3
    assert measured["kl_to_dense", "shortgpt"] == measured["kl_to_dense", "pruned"]

    result = depthcut.prune(str(models["llama"]), **(options | {"remove": "4"}))
    models_measured = {row.model for row in result.measurements}
    assert models_measured == {"dense", "pruned", "shortgpt", "deepest-first", "search"}
    assert "not compared with uidl: no window of unprotected blocks" in capsys.readouterr().err


# Plans found before


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
        with pytest.raises(InputError, match=f"the form {form} cannot hold this model: .* was replaced with a module"):
            export_model(str(tmp_path / "out"), form, tmp_path / form)
        assert not (tmp_path / form).exists()


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
    monkeypatch.setattr(ModelSource, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=r"the plan was made for .*llama.* not for .*other"):
        depthcut.apply(str(other), pruned().output / "plan.json", output=tmp_path / "out", **TEXTS)
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


# Runs that do not end


@pytest.mark.parametrize("stage", ["verify_directory", "write_report"])
def test_a_killed_run_leaves_no_output_and_can_be_resumed(pruned, models, tmp_path, monkeypatch, stage):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **OPTIONS, **changes)

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, stage, kill)
        with pytest.raises(Killed):
            run()
    assert [file.name for file in tmp_path.iterdir()] == [".out.unfinished"]
    with pytest.raises(InputError, match=r"pass --resume to go on with it, or --overwrite to throw it away"):
        run()
    with pytest.raises(InputError, match="was begun with other options"):
        depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **(OPTIONS | {"remove": "3"}))

    with monkeypatch.context() as patch:
        patch.setattr(plan, "static_scores", lambda *_: pytest.fail("the scores were computed again"))
        result = run(resume=True)
    assert without_cost(read(tmp_path / "out")) == without_cost(read(pruned().output))
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    assert {file.name for file in result.output.iterdir()} == WRITTEN
    assert torch.equal(logits(reloaded(result.output)), logits(pruned().model))


def test_overwriting_begins_anew(models, tmp_path, monkeypatch):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **(OPTIONS | changes))

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    run(overwrite=True, remove="3")
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    (tmp_path / "out" / "model-00002-of-00002.safetensors").write_text("of a larger model")
    run(overwrite=True, remove="1")
    assert {file.name for file in (tmp_path / "out").iterdir()} == WRITTEN
    assert reloaded(tmp_path / "out").config.num_hidden_layers == tiny.NUM_BLOCKS - 1


def test_an_output_stays_while_its_replacement_fails(models, tmp_path, monkeypatch):
    def run(**changes):
        return depthcut.prune(str(models["llama"]), output=tmp_path / "out", **(OPTIONS | changes))

    run()
    before = (tmp_path / "out" / "plan.json").read_text()
    monkeypatch.setattr(write, "verify_directory", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(remove="1", overwrite=True)
    assert (tmp_path / "out" / "plan.json").read_text() == before


def test_one_process_at_a_time_works_on_an_output(models, tmp_path, monkeypatch):
    def run(*_):
        with pytest.raises(InputError, match="another process is working on"):
            depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **OPTIONS)

    monkeypatch.setattr(write, "verify_directory", run)
    depthcut.prune(str(models["llama"]), output=tmp_path / "out", **OPTIONS)
    assert {file.name for file in tmp_path.iterdir()} == {"out"}


def test_a_model_that_was_written_wrongly_does_not_appear(models, tmp_path, monkeypatch, command):
    def write_wrongly(model, tokenizer, folder):
        made = shutil.copytree(models["llama"], folder.parent / "wrong")
        hf.write_directory(model, tokenizer, folder)
        shutil.copy(made / "model.safetensors", folder)
        shutil.rmtree(made)

    monkeypatch.setattr(write, "write_directory", write_wrongly)
    message = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS), code=1)
    assert message.splitlines()[-1].startswith("depthcut: the written model holds beside the model's the tensor model.")
    assert not (tmp_path / "out").exists()
    with pytest.raises(VerificationError):
        depthcut.prune(str(models["llama"]), output=tmp_path / "out", resume=True, **_as_recipe(models))


def _as_recipe(models):
    recipe = Recipe.build(model=str(models["llama"]), **OPTIONS)
    return {name: value for name, value in recipe.model_dump().items() if name != "model"}


def test_ctrl_c_says_how_to_go_on(models, tmp_path, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "compare", interrupt)
    message = command("prune", models["llama"], "-o", tmp_path / "out", *words(OPTIONS), code=130)
    assert message.splitlines()[-1] == "depthcut: interrupted; the same command with --resume goes on"
    assert [file.name for file in tmp_path.iterdir()] == [".out.unfinished"]


def test_a_command_that_cannot_be_resumed_leaves_nothing(pruned, models, tmp_path, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "compare", interrupt)
    plan = pruned().output / "plan.json"
    command("apply", models["llama"], plan, "-o", tmp_path / "out", "--evaluation-length", "16", code=130)
    assert not list(tmp_path.iterdir())


# The other commands


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
