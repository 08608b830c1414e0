"""The examination of a type without a row must find the rows that are known, and say of the others what is wrong."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import tiny
from depthcut.model.architectures import FAMILIES, Architecture, Branch, find_architecture
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


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("diffllama", {}, "its blocks compute with their index or their number"),
        ("minicpm3", tiny.LATENT | {"q_lora_rank": 16}, "its blocks compute with their index or their number"),
        ("doge", {}, r"its mlp reads more than stream \+ self_attn"),
        ("opt", {}, r"its blocks call 3 modules with matrices \(self_attn, fc1, fc2\), not 2"),
        ("lfm2", {}, "its blocks are of different kinds"),
        ("gemma3n_text", {}, "its last blocks read keys and values of earlier ones"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(family, changes, reason):
    with pytest.raises(
        InputError, match=f"'{family}' cannot be pruned: they have no row, and on examination .*{reason}"
    ):
        examine(tiny.config(family, **changes))


def test_a_row_is_source_that_makes_it():
    for family in KNOWN:
        made = eval(f"{{{row(family, FAMILIES[family])}}}", {"Architecture": Architecture, "Branch": Branch})
        assert made == {family: FAMILIES[family]}


@torch.no_grad()
def test_an_unknown_type_is_examined_told_and_pruned(tmp_path, capsys):
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
