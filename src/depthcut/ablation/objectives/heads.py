"""`class-logits` and `embedding-cosine`: how far what other heads give is from what the dense model gives.

Both compare at every position, since a causal model's output there is what it gives of the text that ends there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depthcut.ablation.objectives import OBJECTIVES, Objective, Reference, dot
from depthcut.model.heads import HeadKind


@dataclass(frozen=True)
class ClassLogits(Objective):
    """Mean squared difference of the logits of a classifier, reward model or reranker, over its classes."""

    @property
    def measure(self) -> str:
        return "squared logits"

    @property
    def head(self) -> HeadKind:
        return "classes"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (dense,)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (pruned - reference[0]).square().mean(dim=-1)


@dataclass(frozen=True)
class EmbeddingCosine(Objective):
    """1 - cosine of the pooled embeddings."""

    @property
    def measure(self) -> str:
        return "cosine distance"

    @property
    def head(self) -> HeadKind:
        return "embedding"

    def reference(self, dense: torch.Tensor) -> Reference:
        return (torch.nn.functional.normalize(dense, dim=-1),)

    def at_positions(self, reference: Reference, pruned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1 - dot(reference[0], torch.nn.functional.normalize(pruned, dim=-1))


OBJECTIVES.register(
    "class-logits",
    ClassLogits,
    summary="mean squared difference of the logits; of classifiers and reward models",
    source="ours",
)
OBJECTIVES.register(
    "embedding-cosine",
    EmbeddingCosine,
    summary="cosine distance of the pooled embeddings; of embedding models",
    source="ours",
)
