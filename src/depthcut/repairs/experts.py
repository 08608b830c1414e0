"""Down projections of a block's experts, solved one after the other: each on the tokens that reach it, for what is
still missing of the stream once those before it are solved.

All together would be one regression on the inputs of every expert, which is hundreds of times too wide. The one that
most tokens reach comes first. One that too few reach is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from depthcut.model.watch import Call
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments
from depthcut.repairs.projections import Weight, reading_name


@dataclass(frozen=True)
class Routed:
    """A batch's tokens, which experts they reach, and how much of what these write reaches the stream.

    Attributes:
        given: (tokens, hidden) what the experts read.
        missing: (tokens, hidden) what they would have to add; falls as experts are solved.
        experts: (tokens, k), by index.
        factors: (tokens, k).
        weights: (tokens,) how much a token counts; 0 of pads.
        held_out: (tokens,) bool.
        device: where the experts are run; all tensors here may lie elsewhere.
    """

    given: torch.Tensor
    missing: torch.Tensor
    experts: torch.Tensor
    factors: torch.Tensor
    weights: torch.Tensor
    held_out: torch.Tensor
    device: torch.device


@dataclass(frozen=True)
class SolvedExperts:
    """What was found for the experts of a block.

    Attributes:
        change: (experts, hidden, inputs) of the down projections.
        gained: (hidden,) by how much the held-out error falls.
        num_solved, num_left_alone: experts, by whether enough tokens reached them.
    """

    change: torch.Tensor
    gained: torch.Tensor
    num_solved: int
    num_left_alone: int


def routing(call: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """What experts were given, (tokens, hidden), and index and weight of those that each token reaches, (tokens, k).

    None where a token reaches several experts that are given it on different scales (Llama 4 with more than one).
    """
    values = [value for value in (*call.others, *call.keywords.values()) if isinstance(value, torch.Tensor)]
    if values:
        index, weights = sorted(values, key=torch.is_floating_point)
        return call.given.view(len(index), -1), index, weights
    given = call.given.view(len(Weight(call.module, "down_proj").matrix), -1, call.given.shape[-1])
    reached = given.ne(0).any(dim=-1)
    if bool((reached.sum(dim=0) > 1).any()):
        return None
    return given.sum(dim=0), reached.int().argmax(dim=0)[:, None], reached.any(dim=0)[:, None].to(given.dtype)


def inner(experts: nn.Module, expert: int, given: torch.Tensor) -> torch.Tensor:
    """(tokens, inputs) what the down projection of one expert is given for (tokens, hidden)."""
    name = reading_name(experts)
    bias = getattr(experts, f"{name}_bias", None)
    matrix = Weight(experts, name).matrix[expert].to(given.device)
    read = linear(given, matrix, None if bias is None else bias[expert].to(given.device))
    if name == "up_proj":
        return experts.act_fn(read)  # type: ignore[no-any-return, operator]
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(read)  # type: ignore[no-any-return, operator]
    gate, up = read.chunk(2, dim=-1)
    return up * experts.act_fn(gate)  # type: ignore[no-any-return, operator]


def solve_experts(
    experts: nn.Module,
    batches: Sequence[Routed],
    solve: Callable[[Moments], tuple[torch.Tensor, torch.Tensor]],
    *,
    tokens_per_input: float,
    widest: bool,
    sums: Callable[[int, int], Moments],
) -> SolvedExperts:
    """Solves the down projections of all experts that enough tokens reach.

    Args:
        batches: of all the text; what is missing of the stream is what is left when this returns.
        tokens_per_input: tokens that have to reach an expert, for each input of its down projection.
        widest: whether a projection may change in any way; else only by a map of what it gave.
        sums: makes moments for so many inputs and targets.
    """
    down = Weight(experts, "down_proj").matrix
    counts = sum(
        (
            torch.bincount(batch.experts[batch.weights > 0].flatten(), minlength=len(down))[: len(down)]
            for batch in batches
        ),
        start=torch.zeros(len(down), dtype=torch.long),
    )
    change = torch.zeros_like(down, memory_format=torch.contiguous_format)
    gained = torch.zeros(down.shape[1], dtype=torch.float64)
    enough = [
        expert
        for expert in counts.argsort(descending=True, stable=True).tolist()
        if counts[expert] >= max(1, tokens_per_input * down.shape[2])
    ]
    for expert in enough:
        moments = sums(down.shape[2] if widest else down.shape[1], down.shape[1])
        for batch, tokens, features in _reaching(experts, expert, batches, widest):
            for part in (FITTED, HELD_OUT):
                chosen = batch.held_out[tokens] == (part == HELD_OUT)
                of_part = tokens[chosen]
                missing, weights = (values[of_part].to(batch.device) for values in (batch.missing, batch.weights))
                moments.add(features[chosen.to(batch.device)], missing, weights, part)
        found, left = solve(moments)
        gained += ((1 - left) * moments.energy).cpu().double()
        for batch, tokens, features in _reaching(experts, expert, batches, widest):
            batch.missing[tokens] -= linear(features, found.to(features)).to(batch.missing)
        change[expert] = (found if widest else found @ down[expert].to(found)).to(change)
    return SolvedExperts(change, gained, len(enough), len(down) - len(enough))


def _reaching(
    experts: nn.Module, expert: int, batches: Sequence[Routed], widest: bool
) -> Iterator[tuple[Routed, torch.Tensor, torch.Tensor]]:
    """Of each batch the tokens that count and reach an expert, (reached,), and their features, (reached, inputs)."""
    for batch in batches:
        tokens, place = torch.where((batch.experts == expert) & (batch.weights > 0)[:, None])
        if len(tokens):
            features = inner(experts, expert, batch.given[tokens].to(batch.device))
            if not widest:
                features = linear(features, Weight(experts, "down_proj").matrix[expert].to(features))
            yield batch, tokens, features * batch.factors[tokens, place, None].to(features)
