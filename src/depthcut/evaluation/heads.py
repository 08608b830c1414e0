"""How far what other heads give is from the dense model's: the logits of a classifier or reward model, an embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from depthcut.ablation.comparator import ComparedBatch
from depthcut.ablation.objectives import OF_HEAD, find_objective
from depthcut.calibration import Samples
from depthcut.evaluation.language import mean_per_token
from depthcut.model.heads import HeadKind
from depthcut.model.stream import DecoderStream
from depthcut.results import Measurement

NAMES: dict[HeadKind, str] = {"classes": "logit_distance", "embedding": "embedding_distance"}
"""What the distance is called, by head."""


@torch.no_grad()
def compare_heads(
    dense: DecoderStream,
    others: Mapping[str, DecoderStream],
    samples: Samples,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Mean distance of the other models' output from the dense one's over all positions, each the end of a text.

    Of classifiers the squared difference of the logits, mean over the classes; of embedding models 1 - cosine of the
    pooled embeddings. Standard errors are over sequences. Costs one forward pass of each model.

    Args:
        others: pruned models by name.
    """
    objective = find_objective(OF_HEAD[dense.head])
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in others}
    counts: list[torch.Tensor] = []
    for begin in range(0, len(samples.input_ids), batch_size):
        rows = slice(begin, begin + batch_size)
        given = samples.input_ids[rows], samples.attention_mask[rows]
        batch = dense.prepare(*given)
        compared = ComparedBatch(batch, dense.run(batch), batch.token_mask, keeps_references=True)
        for name, stream in others.items():
            of_other = stream.prepare(*given)
            totals, _ = compared.compare(objective, dense, stream, of_other, stream.run(of_other))
            sums[name].append(totals)
        counts.append(compared.scored.sum(dim=-1).cpu())
        advance(len(batch.input_ids))
    found = []
    for name in others:
        mean, error = mean_per_token(torch.cat(sums[name]), torch.cat(counts))
        found.append(
            Measurement(
                name=NAMES[dense.head],
                value=mean,
                stderr=error,
                unit=objective.measure,
                model=name,
                data=f"{samples.description.source} ({samples.description.detail})",
                samples=len(samples.input_ids),
            )
        )
    return found
