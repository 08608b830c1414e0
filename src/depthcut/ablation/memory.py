"""The memory that an ablation keeps between evaluations; used by the ablation itself and by estimates of a run."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BYTES = 4
DEFAULT_MEMORY_BUDGET = 2**30
EXCERPTS_SHARE_OF_BUDGET = 4
"""Budget of the ablation on the whole text, divided by that of the one on excerpts."""


def reference_bytes(num_positions: float, vocabulary: int) -> float:
    """Most bytes that an objective keeps of the dense logits at some positions."""
    return num_positions * (vocabulary + 1) * FLOAT_BYTES


def stride_that_fits(stream_bytes: float, num_units: int, per_position: int, budget: int) -> int:
    """Distance, in units, of cached hidden states such that they take at most half of a budget.

    Args:
        stream_bytes: hidden states of the whole text at one position.
        per_position: distance, in units, of the positions at which a pass can start.
    """
    stride = per_position
    while stream_bytes * num_units // stride > budget // 2 and stride < num_units:
        stride += per_position
    return stride


def bytes_of_next(grid_bytes: float, budget: int) -> float:
    """Most bytes kept of sets that may be the next base: two of them, at most an eighth of a budget."""
    return min(2 * grid_bytes, budget // 8)


@dataclass(frozen=True)
class Kept:
    """What an ablation keeps of a text.

    Attributes:
        next_bytes: hidden states of sets that may be the next base, if the search uses such.
        most_bytes: hidden states, references, and the text's embeddings and dense outputs, which have no limit.
        all_references: whether all references stay in memory; otherwise they are computed again each time.
    """

    most_bytes: float
    next_bytes: float
    all_references: bool


def kept_of(
    num_positions: float, hidden_bytes: int, vocabulary: int, *, num_units: int, per_position: int, budget: int
) -> Kept:
    """What will be kept.

    Args:
        num_positions: tokens of the text.
        hidden_bytes: of one token's hidden state.
        num_units: of the model.
        per_position: distance, in units, of the positions at which a pass can start.
        budget: bytes, as given to `Ablation`.
    """
    stream = num_positions * hidden_bytes
    grid = stream * num_units // stride_that_fits(stream, num_units, per_position, budget)
    references = reference_bytes(num_positions, vocabulary)
    following = bytes_of_next(grid, budget)
    left = budget - min(budget // 2, grid) - following
    return Kept(2 * stream + grid + min(references, left), following, references <= left)
