"""The examination of a type without a row must find the rows that are known, and say of the others what is wrong."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import tiny
from depthcut.model.architectures import FAMILIES, find_architecture
from depthcut.model.branches import WHOLE, Architecture, Branch
from depthcut.model.bypass import bypass
from depthcut.model.load import resolve
from depthcut.model.probe import examine, know, row
from depthcut.surgery import apply
from depthcut.types import InputError

KNOWN = ["llama", "phi3", "gemma3_text", "olmo2", "granite", "gpt2", "gpt_neox", "phi", "bloom", "mpt", "mamba2"]


@pytest.mark.parametrize("case", [*KNOWN, "falcon, two norms", "stablelm, parallel"])
def test_known_rows_are_found_anew(case):
    family, changes = tiny.CASES[case]
    config = tiny.config(family, **changes)
    assert examine(config) == find_architecture(config)


@pytest.mark.parametrize("family", ["doge", "opt", "lfm2"])
def test_where_branches_are_not_found_the_whole_block_is(family):
    found = examine(tiny.config(family))
    assert found == Architecture({"block": WHOLE}, blocks=found.blocks) and found.blocks.endswith("layers")


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(
        InputError, match="'diffllama' cannot be pruned: they have no row, and .* its blocks compute with their index"
    ):
        examine(tiny.config("diffllama"))


def test_a_row_is_source_that_makes_it():
    for family in KNOWN:
        made = eval(f"{{{row(family, FAMILIES[family])}}}", {"Architecture": Architecture, "Branch": Branch})
        assert made == {family: FAMILIES[family]}


@torch.no_grad()
def test_an_unknown_type_is_examined_told_and_pruned(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(FAMILIES, "bitnet")
    config = AutoConfig.for_model("bitnet", **tiny.SHAPE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    try:
        source = resolve(str(tmp_path))
        told = capsys.readouterr().err
        assert "'bitnet' have no row; examined, and found" in told and row("bitnet", source.architecture) in told
        assert know(config) is None
        model, ids = source.load_model("cpu"), tiny.samples(num_samples=1).input_ids
        removed = tiny.removals(source.architecture)["pair"]
        with bypass(model, source.architecture, removed):
            bypassed = model(input_ids=ids).logits
        assert torch.equal(apply(model, source.architecture, removed)(input_ids=ids).logits, bypassed)
    finally:
        FAMILIES.pop("bitnet", None)


def test_a_type_that_is_none_of_transformers_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="'llamas' are not supported; the nearest families that are: llama"):
        know(type("Config", (PreTrainedConfig,), {"model_type": "llamas"})())
