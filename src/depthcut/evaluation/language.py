"""Perplexity of the dense model and of others, and their KL to the dense one, on the same tokens in one pass each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from depthcut.ablation.objectives import KL, POSITIONS_AT_ONCE, Loss
from depthcut.calibration import Samples
from depthcut.evaluation.paired import DIFFERENCE
from depthcut.model.stream import Batch, DecoderStream, Run
from depthcut.types import Measurement


@torch.no_grad()
def compare_language(
    dense: DecoderStream,
    others: Mapping[str, DecoderStream],
    samples: Samples,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Corpus perplexity of every model; of the others KL to dense, and the difference of the loss to the dense one's.

    perplexity = exp(total negative log-likelihood / total predicted tokens), over every token but each sequence's
    first. KL(P_dense || P_pruned) is in nats per token, over every position. Pads are left out. Standard errors are
    over sequences, that of the difference over the sequences' differences. Logits are computed in pieces, so the
    vocabulary times the length never stands in memory. Costs one forward pass of each model, and one more vocabulary
    projection of the dense one for each further model.

    Args:
        others: pruned models by name.
    """
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in others}
    predicted: list[torch.Tensor] = []
    present: list[torch.Tensor] = []
    rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
    for together in dense.together(len(rows), 4 * dense.stream_bytes(samples.input_ids[rows[0]])):
        given = [(samples.input_ids[rows[i]], samples.attention_mask[rows[i]]) for i in together]
        reference = _run_all(dense, given)
        for name, other in others.items():
            for ours, theirs in zip(reference, _run_all(other, given), strict=True):
                sums[name].append(_sums_of_batch(dense, ours, other, theirs))
        for batch, _ in reference:
            predicted.append(_predicts(batch).sum(dim=-1).cpu())
            present.append(batch.token_mask.sum(dim=-1).cpu())
            advance(len(batch.input_ids))

    num_predicted, num_present = torch.cat(predicted), torch.cat(present)
    totals = {name: torch.cat(parts, dim=1) for name, parts in sums.items()}
    dense_nll = next(iter(totals.values()))[0]
    data = f"{samples.description.source} ({samples.description.detail})"
    measurements = []
    for name, nll in [("dense", dense_nll), *((name, total[1]) for name, total in totals.items())]:
        mean, error = _mean_per_token(nll, num_predicted)
        perplexity = math.exp(mean)
        measurements += [
            _measurement(
                "perplexity",
                perplexity,
                None if error is None else perplexity * error,
                "perplexity",
                name,
                data,
                len(nll),
            ),
            _measurement("loss", mean, error, "nats per token", name, data, len(nll)),
        ]
    for name, total in totals.items():
        mean, error = _mean_per_token(total[2], num_present)
        measurements.append(_measurement("kl_to_dense", mean, error, "nats per token", name, data, len(total[2])))
        mean, error = _mean_per_token(total[1] - dense_nll, num_predicted)
        measurements.append(
            _measurement("loss" + DIFFERENCE, mean, error, "nats per token", name, data, len(dense_nll))
        )
    return measurements


def _measurement(
    name: str, value: float, stderr: float | None, unit: str, model: str, data: str, samples: int
) -> Measurement:
    return Measurement(name=name, value=value, stderr=stderr, unit=unit, model=model, data=data, samples=samples)


def _predicts(batch: Batch) -> torch.Tensor:
    """(sequences, length) bool: positions that are there and whose next token is."""
    tokens = batch.token_mask
    return torch.nn.functional.pad(tokens[:, :-1] & tokens[:, 1:], (0, 1))


_Run = tuple[Batch, torch.Tensor]
"""A batch, and its stream before the final norm."""


def _run_all(stream: DecoderStream, given: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[_Run]:
    batches = [stream.prepare(*ids_and_mask) for ids_and_mask in given]
    return list(zip(batches, stream.run_together([Run(batch) for batch in batches]), strict=True))


def _sums_of_batch(dense: DecoderStream, ours: _Run, other: DecoderStream, theirs: _Run) -> torch.Tensor:
    """Dense NLL, the other model's NLL and KL, summed over each sequence: (3, sequences), float64."""
    batch = theirs[0]
    predicts, tokens = _predicts(batch), batch.token_mask
    targets = torch.nn.functional.pad(batch.input_ids[:, 1:], (0, 1))
    sums = torch.zeros(3, len(targets), dtype=torch.float64)
    pieces = zip(dense.logits(*ours), other.logits(*theirs), strict=True)
    for (positions, dense_piece), (_, other_piece) in pieces:
        for row in range(len(targets)):
            at = (row, positions)
            sums[:, row] += _sums(dense_piece[row], other_piece[row], targets[at], predicts[at], tokens[at])
    return sums


def _sums(
    dense: torch.Tensor, other: torch.Tensor, targets: torch.Tensor, predicts: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Dense NLL, the other model's NLL and KL, summed over one sequence's positions in float64."""
    sums = torch.zeros(3, dtype=torch.float64)
    loss, kl = Loss(), KL()
    for begin in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(begin, begin + POSITIONS_AT_ONCE)
        p, q = dense[part].float(), other[part].float()
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
