"""Perplexity of both models and KL of the pruned model to the dense one, on the same tokens in one pass each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from depthcut.calibration import Samples
from depthcut.model.stream import DecoderStream
from depthcut.objectives import KL, POSITIONS_AT_ONCE, Loss
from depthcut.types import Measurement


@torch.no_grad()
def compare_language(
    dense: DecoderStream,
    pruned: DecoderStream,
    samples: Samples,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Corpus perplexity of both models, and KL to dense.

    perplexity = exp(total negative log-likelihood / total predicted tokens), over every token but each sequence's
    first. KL(P_dense || P_pruned) is in nats per token, over every position. Pads are left out. Standard errors are
    over sequences. Logits are computed in pieces, so the vocabulary times the length never stands in memory. Costs one
    forward pass of each model.
    """
    nll: dict[str, list[torch.Tensor]] = {"dense": [], "pruned": []}
    kl: list[torch.Tensor] = []
    predicted: list[torch.Tensor] = []
    present: list[torch.Tensor] = []
    for begin in range(0, len(samples.input_ids), batch_size):
        ids = samples.input_ids[begin : begin + batch_size]
        mask = samples.attention_mask[begin : begin + batch_size]
        batches = {name: stream.prepare(ids, mask) for name, stream in (("dense", dense), ("pruned", pruned))}
        finals = {"dense": dense.run(batches["dense"]), "pruned": pruned.run(batches["pruned"])}
        tokens = batches["dense"].token_mask
        # A position predicts the next token where both are there.
        predicts = torch.nn.functional.pad(tokens[:, :-1] & tokens[:, 1:], (0, 1))
        targets = torch.nn.functional.pad(batches["dense"].input_ids[:, 1:], (0, 1))
        sums = torch.zeros(3, len(ids), dtype=torch.float64)
        pieces = zip(
            dense.logits(batches["dense"], finals["dense"]),
            pruned.logits(batches["pruned"], finals["pruned"]),
            strict=True,
        )
        for (positions, dense_piece), (_, pruned_piece) in pieces:
            for row in range(len(ids)):
                sums[:, row] += _sums(
                    dense_piece[row],
                    pruned_piece[row],
                    targets[row, positions],
                    predicts[row, positions],
                    tokens[row, positions],
                )
        nll["dense"].append(sums[0])
        nll["pruned"].append(sums[1])
        kl.append(sums[2])
        predicted.append(predicts.sum(dim=-1).cpu())
        present.append(tokens.sum(dim=-1).cpu())
        advance(len(ids))

    data = f"{samples.description.source} ({samples.description.detail})"
    num_sequences = len(samples.input_ids)
    measurements = []
    for name, sequences in nll.items():
        mean, error = _mean_per_token(torch.cat(sequences), torch.cat(predicted))
        perplexity = math.exp(mean)
        for measure, unit, value, stderr in (
            ("perplexity", "perplexity", perplexity, None if error is None else perplexity * error),
            ("loss", "nats per token", mean, error),
        ):
            measurements.append(
                Measurement(
                    name=measure, value=value, unit=unit, model=name, data=data, stderr=stderr, samples=num_sequences
                )
            )
    mean, error = _mean_per_token(torch.cat(kl), torch.cat(present))
    measurements.append(
        Measurement(
            name="kl_to_dense",
            value=mean,
            unit="nats per token",
            model="pruned",
            data=data,
            stderr=error,
            samples=num_sequences,
        )
    )
    return measurements


def _sums(
    dense: torch.Tensor, pruned: torch.Tensor, targets: torch.Tensor, predicts: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Dense NLL, pruned NLL and KL, summed over one sequence's positions in float64."""
    sums = torch.zeros(3, dtype=torch.float64)
    loss, kl = Loss(), KL()
    for begin in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(begin, begin + POSITIONS_AT_ONCE)
        p, q = dense[part].float(), pruned[part].float()
        follows = targets[part]
        sums[0] += loss.at_positions((), p, follows)[predicts[part]].double().sum().cpu()
        sums[1] += loss.at_positions((), q, follows)[predicts[part]].double().sum().cpu()
        sums[2] += kl.at_positions(kl.reference(p), q, follows)[present[part]].double().sum().cpu()
    return sums


def _mean_per_token(sums: torch.Tensor, counts: torch.Tensor) -> tuple[float, float | None]:
    """Mean over all tokens and its standard error over sequences (of a ratio of sums); one sequence has none."""
    mean = sums.sum() / counts.sum()
    if len(sums) < 2:
        return float(mean), None
    deviation = (sums - mean * counts) / counts.double().mean()
    return float(mean), float(deviation.std() / math.sqrt(len(sums)))
