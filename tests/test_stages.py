"""The stages of a run as commands: what they make together is what `prune` makes in one go."""

import json

import pytest
import torch
from safetensors.torch import load_file

import depthcut
import tiny
from depthcut.export import hf
from depthcut.results import Repair, read_list
from depthcut.types import Plan

LENGTH, REPAIR_SAMPLES = 32, 64
RUN = tiny.SHORT_RUN | {
    "calibration_length": LENGTH,
    "repair_samples": REPAIR_SAMPLES,
    "method": "greedy,swap=false",
    "unit": "block",
}
LEARN = ["--repair-samples", REPAIR_SAMPLES, "--calibration-length", LENGTH]
TEXTS = ["--evaluation-samples", "2", "--evaluation-length", "16", "--no-speed", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama")


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    """The whole run in one go."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.reload_in_process(patch)
        patch.setattr(hf, "GREEDY_TOKENS", 4)
        output = tmp_path_factory.mktemp("pruned") / "out"
        return depthcut.prune(str(dense), output=output, **RUN).output


def same_weights(one, other):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_search_apply_and_repair_are_prune(dense, pruned, tmp_path, command):
    found, cut, repaired = tmp_path / "found", tmp_path / "cut", tmp_path / "repaired"
    options = ["--remove", 2, "--unit", "block", "--method", "greedy,swap=false", "--calibration-samples", 4]
    printed = command("search", dense, "-o", found, *options, "--calibration-length", LENGTH, "--device", "cpu")
    assert "next: depthcut apply" in printed
    assert Plan.from_file(found / "plan.json") == Plan.from_file(pruned / "plan.json")
    assert not list(found.glob("*.safetensors"))
    command("apply", dense, found / "plan.json", "-o", cut, *TEXTS)
    command("repair", cut, "-o", repaired, *LEARN, *TEXTS)
    assert read_list(Repair, repaired / "repair.json") == read_list(Repair, pruned / "repair.json")
    assert not same_weights(cut, repaired)
    assert same_weights(repaired, pruned)


def test_a_repair_goes_on_from_an_earlier_one(pruned, tmp_path, command):
    command("repair", pruned, "-o", tmp_path / "twice", "--repair", "bias", *LEARN, *TEXTS)
    first, second = read_list(Repair, tmp_path / "twice" / "repair.json")
    assert (first.method, second.method) == ("refit", "bias")
    assert [first] == list(read_list(Repair, pruned / "repair.json"))
    # What the second begins with is what the first left, on the same held-out text.
    assert second.before == pytest.approx(first.after, rel=tiny.ROUNDING)


@pytest.mark.parametrize(("units", "more"), [("2-3", []), ("3-4", ["--one-based"]), ("2.attn,2.ffn,3", [])])
def test_units_removed_by_name_are_those_of_a_plan(units, more, dense, tmp_path, command):
    command("remove", dense, "--units", units, *more, "-o", tmp_path / "out", *TEXTS)
    plan = Plan.from_file(tmp_path / "out" / "plan.json")
    assert (plan.method, plan.unit, plan.budget) == ("by hand", "block", "remove 2")
    assert [str(unit) for unit in plan.removed] == ["2.attn", "2.ffn", "3.attn", "3.ffn"]
    kept, all_of = load_file(tmp_path / "out" / "model.safetensors"), load_file(dense / "model.safetensors")
    for index, source in enumerate([0, 1, 4, 5]):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(kept[name.format(index)], all_of[name.format(source)])
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_layer_map_says_which_dense_sublayer_each_one_was(dense, tmp_path, command):
    """Also where an attention was put together with the feed-forward part of another block."""
    command("remove", dense, "--units", "1.ffn,2.attn,4", "-o", tmp_path / "out", *TEXTS)
    kept, all_of = load_file(tmp_path / "out" / "model.safetensors"), load_file(dense / "model.safetensors")
    found = json.loads((tmp_path / "out" / "layer_map.json").read_text())
    assert found == [{"attn": 0, "ffn": 0}, {"attn": 1, "ffn": 2}, {"attn": 3, "ffn": 3}, {"attn": 5, "ffn": 5}]
    for index, block in enumerate(found):
        for kind, name in (("attn", "self_attn.q_proj"), ("ffn", "mlp.down_proj")):
            of_dense = all_of[f"model.layers.{block[kind]}.{name}.weight"]
            assert torch.equal(kept[f"model.layers.{index}.{name}.weight"], of_dense)


def test_a_plan_by_hand_needs_nothing_but_steps(dense, tmp_path, command):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"steps": [{"remove": ["2.attn"]}, {"remove": ["4.ffn"]}]}))
    command("apply", dense, plan, "-o", tmp_path / "both", *TEXTS)
    written = Plan.from_file(tmp_path / "both" / "plan.json")
    assert [str(unit) for unit in written.removed] == ["2.attn", "4.ffn"]
    assert written.unit == "sublayer"
    assert written.unit_sizes.keys() == {f"{layer}.{kind}" for layer in range(6) for kind in ("attn", "ffn")}
    command("apply", dense, plan, "--steps", 1, "-o", tmp_path / "one", *TEXTS)
    assert [str(unit) for unit in Plan.from_file(tmp_path / "one" / "plan.json").removed] == ["2.attn"]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"remove": ["9.attn"]}], "the plan names 9.attn, and the model has blocks 0 to 5"),
        ([{"remove": ["2.attn"]}, {"remove": ["2.attn"]}], "the plan removes 2.attn twice"),
        ([{"remove": ["2.attention"]}], "'2.attention' is no unit"),
    ],
)
def test_a_plan_by_hand_that_is_wrong(steps, words, dense, tmp_path, command):
    (tmp_path / "plan.json").write_text(json.dumps({"steps": steps}))
    assert words in command("apply", dense, tmp_path / "plan.json", "-o", tmp_path / "out", *TEXTS, code=2)
    assert not (tmp_path / "out").exists()


def test_refusals(dense, pruned, tmp_path, command):
    output = ["-o", tmp_path / "out", *TEXTS]
    assert "cannot remove '6': this model has no such units" in command("remove", dense, "--units", 6, *output, code=2)
    assert "no unit is named" in command("remove", dense, "--units", ",", *output, code=2)
    assert "name a repair" in command("repair", pruned, "--repair", "none", *output, code=2)
    assert "cannot read" in command("repair", dense, *output, code=2)
    assert "choose another directory" in command("repair", pruned, "-o", pruned, code=2)
    assert "not for" in command("repair", pruned, "--dense", pruned, *output, code=2)
