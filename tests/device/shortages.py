"""What is found where a device runs out of memory in the middle: as for `checks.py`."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable
from typing import Any, TypeVar

import torch

import tiny
from depthcut.ablation.ablation import Ablation
from depthcut.model.architectures import find_architecture
from depthcut.model.shortage import forget
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, repair_and_judge
from depthcut.repairs.refit import Refit
from depthcut.surgery import apply
from depthcut.types import Unit

SHARES = (0.7, 0.45)
"""Of what the work takes where there is no limit."""
PAIR = frozenset({Unit(2, "ffn"), Unit(3, "attn")})

Found = TypeVar("Found")


def within(device: str, shares: tuple[float, ...], work: Callable[[], Found]) -> list[Found]:
    """What a work finds where its device gives it less and less; on the CPU the same as often."""
    if device == "cpu":
        return [work() for _ in shares]
    extension, found = torch.standin.extension, []
    gc.collect()
    before = extension.used(0)
    extension.reset_peak(0)
    work()
    taken = extension.peak(0) - before
    for share in shares:
        gc.collect()
        said = io.StringIO()
        forget()
        extension.set_limit(0, before + int(share * taken))
        try:
            with contextlib.redirect_stderr(said):
                found.append(work())
        finally:
            extension.set_limit(0, 0)
        assert "no memory" in said.getvalue(), (share, taken)
        assert said.getvalue().count("\n") == len(set(said.getvalue().splitlines())), said.getvalue()
    return found


def on(device: str) -> DecoderStream:
    model = tiny.model().to(device)
    model.tie_weights()
    return DecoderStream(model, find_architecture(model.config))


@torch.no_grad()
def search(device: str) -> dict[str, Any]:
    """Objectives of two rounds; hidden states and references are kept as if there were a gigabyte."""
    stream, samples = on(device), tiny.samples(8, 64)

    def work() -> list[list[float]]:
        stream_of_work = DecoderStream(stream.model, stream.architecture)
        objective = Ablation(stream_of_work, samples, "kl", batch_size=8)
        rounds = []
        for base in (frozenset(), frozenset({stream.units[3]})):
            objective.rebase(base)
            rounds.append(objective.evaluate([base | {unit} for unit in stream.units if unit not in base]))
        return rounds

    return {"rounds": within(device, SHARES, work)}


@torch.no_grad()
def refit(device: str) -> dict[str, Any]:
    """Weights after a repair."""
    stream = on(device)

    def work() -> tuple[float, list[float]]:
        damage = Damage(stream, PAIR, tiny.samples(16, 48), tiny.samples(6, 48, seed=5), 2**30, batch_size=8)
        pruned = apply(stream.model, stream.architecture, PAIR)
        model, record = repair_and_judge("refit", Refit(), damage, pruned)
        return record.after, [float(parameter.double().square().sum()) for parameter in model.parameters()]

    return {"repaired": within(device, SHARES, work)}


SHORTAGES: dict[str, Callable[[str], dict[str, Any]]] = {"short in a search": search, "short in refit": refit}
