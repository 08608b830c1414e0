"""What is claimed of every family, and the proof of each claim on a random model of six blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from family_engines import LLAMA_CPP, NOT_LOOKED_UP, VLLM, conditions
from transformers import AutoConfig, PreTrainedModel

import tiny
from depthcut.export import EXPORTS
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.architectures import find_architecture
from depthcut.model.branches import Architecture
from depthcut.model.bypass import bypass
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.model.wrappers import num_blocks
from depthcut.repairs import Damage, repair_and_judge
from depthcut.repairs.refit import Refit
from depthcut.surgery import apply
from depthcut.types import InputError

REMOVALS = ("block", "pair", "attn", "ffn")
EXPORT_FORMS = ("gguf", "nemotron-nas")
COLUMNS = (*REMOVALS, "refit", *EXPORT_FORMS, "vLLM", "llama.cpp")
YES = "yes"
UNKNOWN = "unknown: not looked up"
GREEDY_TOKENS = 4
"""Decoded with and without a cache, after a prompt that is longer than the sliding windows."""


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        pass


@functools.lru_cache(maxsize=1)
def model_of(case: str) -> tuple[PreTrainedModel, Architecture]:
    """The dense model of a case; it is not changed by any proof."""
    family, changes = tiny.CASES[case]
    model = tiny.model(family, **changes)
    return model, find_architecture(model.config)


def prove(case: str, folder: Path) -> dict[str, str]:
    """What holds for a case, by column: yes, or the reason why it is refused.

    Args:
        folder: empty; written models go there.

    Raises:
        AssertionError: something holds only half: it is neither refused nor right.
    """
    proofs: dict[str, Callable[[], str]] = {
        sort: functools.partial(_prove_removal, case, sort, folder / sort) for sort in REMOVALS
    }
    proofs["refit"] = functools.partial(_prove_refit, case)
    proofs |= {form: functools.partial(_prove_form, case, form) for form in EXPORT_FORMS}
    family = tiny.CASES[case][0]
    proofs["vLLM"] = lambda: (
        YES if family in VLLM else "no: vLLM 0.32 has no code of its own for it (its Transformers backend may run it)"
    )
    rules = conditions(family)
    known = f"{YES}: llama.cpp's own rule: {rules}" if rules else YES
    if family in NOT_LOOKED_UP:
        proofs["vLLM"] = lambda: UNKNOWN
    proofs["llama.cpp"] = lambda: (
        known if family in LLAMA_CPP else UNKNOWN if family in NOT_LOOKED_UP else "no: llama.cpp does not know it"
    )
    outcomes = {}
    for column, proof in proofs.items():
        try:
            outcomes[column] = proof()
        except InputError as refusal:
            outcomes[column] = f"no: {refusal}"
    return outcomes


@torch.no_grad()
def _prove_removal(case: str, sort: str, folder: Path) -> str:
    """Bypassed = removed bit for bit; what is written reloads in a fresh process; cached = uncached."""
    model, architecture = model_of(case)
    if sort not in tiny.removals(architecture):
        if architecture.whole:
            return "no: a block goes as a whole or not at all"
        if len(architecture.branches) == 1:
            return "no: a block is one mixer"
        return "no: both parts of a block read the same stream"
    removed = tiny.removals(architecture)[sort]
    ids = tiny.samples(num_samples=1).input_ids
    dense = model(input_ids=ids, use_cache=False).logits
    with bypass(model, architecture, removed):
        bypassed = model(input_ids=ids, use_cache=False).logits
    pruned = apply(model, architecture, removed)
    found = pruned(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, bypassed), "removed differs from bypassed"
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, dense), "the dense model was changed"
    assert not torch.allclose(found, dense, atol=1e-3), "nothing was removed"
    _check_indices(pruned, architecture)
    if sort in ("block", "pair"):
        sizes = measure_sizes(model, architecture)
        assert sizes.parameters_without(removed) == pruned.num_parameters(), "sizes of units are wrong"
    folder = folder.with_name(f"{''.join(filter(str.isalnum, case))}_{sort}")
    folder.mkdir(parents=True)
    write_directory(pruned, NoTokenizer(), folder)
    verify_directory(folder, pruned, ids)
    if sort in ("attn", "ffn"):
        loaded = resolve(str(folder)).load_model("cpu")
        tensors = loaded.state_dict()
        assert tensors.keys() == pruned.state_dict().keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in pruned.state_dict().items())
        rounding = tiny.ROUNDING * float(found.abs().max())
        # Where tensors of a mapped file are not aligned, small products round differently.
        torch.testing.assert_close(loaded(input_ids=ids, use_cache=False).logits, found, atol=rounding, rtol=0)
    else:
        assert not list(folder.glob("*.py")), "whole blocks need no code"
    return YES


def _check_indices(pruned: PreTrainedModel, architecture: Architecture) -> None:
    """Every module of a block has the block's index, and the configuration counts the blocks."""
    blocks = architecture.block_list(pruned)
    assert num_blocks(pruned.config) == len(blocks)
    for index, block in enumerate(blocks):
        for name in ("layer_idx", "layer_id"):
            found = {module.__dict__[name] for module in block.modules() if name in module.__dict__}
            own = {index, *range(index * architecture.slots, (index + 1) * architecture.slots)}
            assert found <= own, f"{name} of block {index} is {found}"


def _prove_refit(case: str) -> str:
    """A refit after a removed block brings the output nearer, and changes only the weights of what it names."""
    model, architecture = model_of(case)
    removed = tiny.removals(architecture)["block"]
    stream = DecoderStream(model, architecture)
    damage = Damage(stream, removed, tiny.samples(64, 16), tiny.samples(16, 16, seed=5), 2**30, batch_size=64)
    pruned = apply(model, architecture, removed)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    repaired, record = repair_and_judge("refit", Refit(ridges=(0.1, 1.0)), damage, pruned)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    assert repaired.config.to_dict() == pruned.config.to_dict()
    after = repaired.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: t.shape for name, t in before.items()}
    if not record.units:
        return "no: nothing that writes to the stream is one linear map"
    if not record.kept:
        return "no: on the random model the output was no nearer on held-out text, so it was undone"
    assert record.after < record.before, "refit did not help"
    kinds = {name.split(".")[1] for name in record.units}
    return YES if kinds == set(architecture.branches) else f"{', '.join(sorted(kinds))} only"


def _prove_form(case: str, form: str) -> str:
    """What the format says of the family's own default settings; tests/export proves what it then writes."""
    family, changes = tiny.CASES[case]
    # Its first version slides, those in use do not.
    settings = {"sliding_window": None} if family == "mistral" else {}
    EXPORTS.find(form).make().check(AutoConfig.for_model(family, **settings, **changes))
    return YES
