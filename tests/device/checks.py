"""What is found on a device beside whole runs: by name, a function of the device. Those of the CPU are the measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.model.architectures import find_architecture
from depthcut.model.device import has_float64
from depthcut.model.stream import DecoderStream
from depthcut.repairs import solving
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments
from depthcut.run import on_model
from depthcut.run.recipe import Recipe
from depthcut.studies.compare import compare
from depthcut.types import Unit

RIDGES = (1e-3, 0.03, 0.3)
INPUTS, TARGETS = 300, 40
ACROSS = {"model.embed_tokens": 0, "model.norm": 1, "lm_head": 1, "model.rotary_emb": 0} | {
    f"model.layers.{layer}": int(layer > 2) for layer in range(tiny.NUM_BLOCKS)
}


def moments(device: str, room: int | None = None) -> dict[str, Any]:
    """A map of moments that are summed on a device.

    Args:
        room: bytes that they may take there.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(800, INPUTS, generator=generator)
    noise = torch.randn(800, TARGETS, generator=generator) * torch.logspace(-1, 2, TARGETS)
    targets = inputs @ torch.randn(INPUTS, TARGETS, generator=generator) + noise
    limited = room is not None and device != "cpu"
    if limited:
        extension = torch.standin.extension
        extension.set_limit(0, extension.used(0) + room)
    sums = Moments(INPUTS, TARGETS, precise=False)
    try:
        for begin in range(0, 800, 100):
            rows = slice(begin, begin + 100)
            sums.add(
                *(values[rows].to(device) for values in (inputs, targets, torch.ones(800))),
                HELD_OUT if begin % 400 == 300 else FITTED,
            )
        matrix, left = sums.solve(RIDGES)
    finally:
        if limited:
            extension.set_limit(0, 0)
    if device != "cpu":
        # In the room that there is the sums lie on the device, else on the host, whence they come to it in panels.
        held = 2 * 8 * INPUTS * (INPUTS + TARGETS)
        assert (matrix.device.type == "cpu") == (room is not None)
        assert room is None or room < 3 * held
    return {"matrix": matrix.tolist(), "left": left.tolist()}


def short_at_solving(device: str) -> dict[str, Any]:
    """Where the sums find room, and what solves them does not."""
    return moments(device, 2 * 8 * INPUTS * (INPUTS + TARGETS) + 8 * INPUTS * INPUTS)


def short_at_once(device: str) -> dict[str, Any]:
    """Where not even the sums find room."""
    return moments(device, 8 * INPUTS * INPUTS)


def without_float64(device: str) -> dict[str, Any]:
    """On a device that has none, as Apple's."""
    if device == "cpu":
        return moments(device)
    looked_for = (has_float64, solving.is_quick_in_float64)
    try:
        torch.standin.extension.set_narrow(1, True)
        for each in looked_for:
            each.cache_clear()
        return moments("standin:1")
    finally:
        torch.standin.extension.set_narrow(1, False)
        for each in looked_for:
            each.cache_clear()


def across(device: str) -> dict[str, Any]:
    """A model whose first blocks lie on one device and whose last ones on the other."""
    model = tiny.model()
    if device != "cpu":
        from accelerate import dispatch_model

        places = {name: f"standin:{place}" for name, place in ACROSS.items()}
        model = dispatch_model(model, places, main_device="standin:0")
    ids = tiny.samples(8, 16).input_ids
    table = on_model.score(model, ids)
    plan = on_model.search(model, ids, budget=2, unit="pair", method="greedy,swap=false")
    # The attention of block 3 goes behind the feed-forward part of block 2, which lies elsewhere.
    pruned = on_model.remove(model, [Unit(2, "ffn"), Unit(3, "attn")])
    before = [tensor.clone() for tensor in model.state_dict().values()]
    repaired, records = on_model.repair(model, pruned, tiny.samples(16, 16, seed=1).input_ids)
    assert all(torch.equal(old, new) for old, new in zip(before, model.state_dict().values(), strict=True))
    ran = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    logits = pruned(ids.to(pruned.device)).logits
    assert not ran, f"the copy runs the dense model's {ran[0]}"
    if device != "cpu":
        places = {parameter.device.index for parameter in repaired.parameters()}
        assert places == {0, 1}
    return {
        "scores": [scores.values for scores in table.scores],
        "removed": [str(unit) for unit in plan.removed],
        "objectives": [step.objective for step in plan.steps],
        "repaired": [(record.before, record.after, record.kept) for record in records],
        "logits": logits[:, -1, :50].tolist(),
        "compared": [(m.model, m.name, m.value) for m in on_model.compare(model, repaired, ids)],
    }


def study(device: str) -> dict[str, Any]:
    """Two methods, as cut and repaired."""
    texts = {"calibration": "stdlib", "calibration_samples": 4, "calibration_length": 16, "speed": False}
    with TemporaryDirectory() as folder:
        model = tiny.save(Path(folder) / "model", "llama")
        recipe = Recipe.build(model=str(model), device=device, evaluation_samples=2, evaluation_length=16, **texts)
        output = Path(folder) / "study"
        compare(recipe, output, methods=["shortgpt", "magnitude"], ratios=["20%"], repairs=["none", "refit"])
        tables = json.loads((output / "study.json").read_text())["tables"]
        # The others hold seconds.
        return {table["name"]: table["rows"] for table in tables if table["name"] in ("perplexity", "kl_to_dense")}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device.

    Attributes:
        copied: results that came to the host.
        asked: single values that were looked at, and results as large as their contents say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copied = self.asked = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = next((tensor for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor)), None)
        if given is not None and given.device.type != "cpu":
            indices = [index for index in args[1] if index is not None] if op is torch.ops.aten.index.Tensor else []
            self.copied += op is torch.ops.aten._to_copy.default and str(kwargs.get("device", "")) == "cpu"
            self.asked += (
                op in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
                or op is torch.ops.aten.masked_select.default
                or any(index.dtype == torch.bool for index in indices)
            )
        return op(*args, **kwargs)


def waits(device: str) -> dict[str, Any]:
    """How often the host waits for the device in a round: once for each set and batch, with pads or without.

    transformers asks once or twice more for each piece of logits, here one, whether sequences are packed and whether
    there are pads.
    """
    model = tiny.model().to(device)
    model.tie_weights()
    stream = DecoderStream(model, find_architecture(model.config))
    plain = tiny.samples(4, 40)
    mask = plain.attention_mask.clone()
    mask[:, 30:] = 0
    found = {}
    for name, samples in {"plain": plain, "padded": replace(plain, attention_mask=mask)}.items():
        objective = Ablation(stream, samples, "kl", batch_size=2)
        sets = [frozenset({unit}) for unit in stream.units]
        # The first makes what the others compare with, and keeps which positions count.
        objective.evaluate(sets[:1])
        with Waits() as seen:
            found[name] = objective.evaluate(sets[1:])
        evaluations = objective.num_batches * len(sets[1:])
        assert device == "cpu" or seen.copied == evaluations, (name, seen.copied / evaluations)
        assert device == "cpu" or seen.asked <= (2 if name == "padded" else 1) * evaluations
    return found


CHECKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "moments": moments,
    "moments, short at solving": short_at_solving,
    "moments, short at once": short_at_once,
    "on two devices": across,
    "study": study,
    "waits": waits,
    "moments, without float64": without_float64,
}
IN_FLOAT32 = "moments, without float64"
"""The one whose numbers are those of float32, of a system whose condition is about 1000."""

solving.PANEL = 128
