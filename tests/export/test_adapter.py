"""An adapter of the dense model on the pruned one: the same answers as on the dense model with the units bypassed."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from depthcut.model.architectures import FAMILIES
from depthcut.model.bypass import bypass
from depthcut.run.apply import apply_plan
from depthcut.run.by_hand import plan_of_units
from depthcut.run.export import export_model
from depthcut.run.recipe import Recipe
from depthcut.types import InputError, Plan

TEXTS = {"evaluation_samples": 2, "evaluation_length": 16, "speed": False, "device": "cpu", "repair": "none"}
TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]


pytestmark = pytest.mark.usefixtures("quick_reload")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("dense") / "llama", "llama")


def make_adapter(dense, folder, **settings):
    """An adapter with random weights, as peft writes it."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(dense), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(folder)
    return folder


def cut(dense, units, output):
    apply_plan(Recipe.build(model=str(dense), **TEXTS), lambda source: plan_of_units(source, units), output)
    return output


@torch.no_grad()
def logits(folder, adapter, removed=()):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).eval()
    with bypass(model.get_base_model(), FAMILIES["llama"], removed):
        return model(input_ids=tiny.samples().input_ids).logits


@pytest.mark.parametrize("units", ["2-3", "1.ffn,2.attn"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers_to_transform": [0, 4, 5]},
        {"rank_pattern": {"model.layers.4.self_attn.q_proj": 3}, "alpha_pattern": {"layers.4.self_attn.q_proj": 16}},
    ],
    ids=["all", "some layers", "patterns"],
)
def test_the_adapted_pruned_model_answers_as_the_adapted_dense_one_bypassed(dense, tmp_path, units, settings):
    adapter = make_adapter(dense, tmp_path / "adapter", **settings)
    pruned = cut(dense, units, tmp_path / "cut")
    export_model(str(pruned), f"adapter,path={adapter}", tmp_path / "carried")
    removed = Plan.from_file(pruned / "plan.json").removed
    wanted = logits(dense, adapter, removed)
    assert torch.equal(logits(pruned, tmp_path / "carried"), wanted)
    # The adapter does something: without it the answers are others.
    with torch.no_grad():
        assert not torch.equal(AutoModelForCausalLM.from_pretrained(pruned)(tiny.samples().input_ids).logits, wanted)


def test_what_was_left_out_is_said_and_the_rest_keeps_its_bytes(dense, tmp_path):
    adapter = make_adapter(dense, tmp_path / "adapter")
    export_model(str(cut(dense, "2", tmp_path / "cut")), f"adapter,path={adapter}", tmp_path / "carried")
    left_out = json.loads((tmp_path / "carried" / "left_out.json").read_text())
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "carried"))
    assert set(left_out) == {name for name in before if ".layers.2." in name}
    assert len(before) == len(after) + len(left_out)
    for name, tensor in after.items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        assert torch.equal(tensor, before[name.replace(f".layers.{layer}.", f".layers.{layer + (layer > 1)}.")])


def test_refusals(dense, tmp_path):
    pruned, adapter = cut(dense, "2", tmp_path / "cut"), make_adapter(dense, tmp_path / "adapter")
    with pytest.raises(InputError, match="give its folder: adapter,path=FOLDER"):
        export_model(str(pruned), "adapter", tmp_path / "out")
    with pytest.raises(InputError, match="holds no adapter of peft: it has no adapter_config.json"):
        export_model(str(pruned), f"adapter,path={dense}", tmp_path / "out")
    with pytest.raises(InputError, match="config.json does not say which model this was made from"):
        export_model(str(dense), f"adapter,path={adapter}", tmp_path / "out")
    alone = make_adapter(dense, tmp_path / "alone", layers_to_transform=[2])
    with pytest.raises(InputError, match="nothing of the adapter .* would remain"):
        export_model(str(pruned), f"adapter,path={alone}", tmp_path / "out")
    mixed = cut(dense, "1.ffn,2.attn", tmp_path / "mixed")
    some = make_adapter(dense, tmp_path / "some", layers_to_transform=[1])
    with pytest.raises(InputError, match="made of one that it changes and one that it does not"):
        export_model(str(mixed), f"adapter,path={some}", tmp_path / "out")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace(".layers.5.", ".layers.6."): tensor for name, tensor in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(InputError, match="the adapter changes block 6, and the dense model .* has blocks 0 to 5"):
        export_model(str(pruned), f"adapter,path={adapter}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
