"""Perplexity of the dense model and of others, and their KL to the dense one, on the same tokens in one pass each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from depthcut.ablation.comparator import following, predicting, walk
from depthcut.ablation.objectives import nll as nll_of
from depthcut.ablation.objectives.kl import KL
from depthcut.calibration import Samples
from depthcut.evaluation.draft import GREEDY, SAMPLING, accepted, agreed
from depthcut.evaluation.paired import DIFFERENCE
from depthcut.model.device import widest_type
from depthcut.model.stream import Batch, DecoderStream, Pass
from depthcut.results import Measurement

SUMS = 4
"""What is summed up of a pruned model over the positions of a sequence: NLL, KL, acceptance sampled and greedy."""


@torch.no_grad()
def compare_language(
    dense: DecoderStream,
    others: Mapping[str, DecoderStream],
    samples: Samples,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Corpus perplexity of every model; of the others KL to dense, acceptance as drafts, and the difference of loss.

    perplexity = exp(total negative log-likelihood / total predicted tokens), over every token but each sequence's
    first. KL(P_dense || P_pruned) in nats per token and acceptances (`draft.py`) are over every position. Pads are left
    out. Standard errors are
    over sequences, that of the difference over the sequences' differences. Logits are computed in pieces, so the
    vocabulary times the length never stands in memory. Costs one forward pass and one vocabulary projection of each
    model, the dense one too; a piece of the logits of every model is in memory at a time.

    Args:
        others: pruned models by name.
    """
    sums: list[torch.Tensor] = []
    predicted: list[torch.Tensor] = []
    present: list[torch.Tensor] = []
    rows = [slice(begin, begin + batch_size) for begin in range(0, len(samples.input_ids), batch_size)]
    streams = [dense, *others.values()]
    pieces = dense.pieces(batch_size)
    # What one batch keeps: its final stream in every model, and beside them what a block works with.
    kept_bytes = (len(streams) + 2) * dense.stream_bytes(samples.input_ids[rows[0]])
    for together in dense.together(len(rows), kept_bytes):
        given = [(samples.input_ids[rows[i]], samples.attention_mask[rows[i]]) for i in together]
        runs = [_run_all(stream, given) for stream in streams]
        for of_batch in zip(*runs, strict=True):
            sums.append(pieces.run(partial(_sums_of_batch, streams, of_batch)))
        for batch, _ in runs[0]:
            predicted.append(predicting(batch.token_mask).sum(dim=-1).cpu())
            present.append(batch.token_mask.sum(dim=-1).cpu())
            advance(len(batch.input_ids))

    num_predicted, num_present = torch.cat(predicted), torch.cat(present)
    dense_nll, *totals_of_others = torch.cat(sums, dim=1)
    totals = {name: totals_of_others[place * SUMS : (place + 1) * SUMS] for place, name in enumerate(others)}
    data = f"{samples.description.source} ({samples.description.detail})"
    measurements = []
    for name, nll in [("dense", dense_nll), *((name, total[0]) for name, total in totals.items())]:
        mean, error = mean_per_token(nll, num_predicted)
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
        mean, error = mean_per_token(total[1], num_present)
        measurements.append(_measurement("kl_to_dense", mean, error, "nats per token", name, data, len(dense_nll)))
        for measure, accepted_sums in ((SAMPLING, total[2]), (GREEDY, total[3])):
            mean, error = mean_per_token(accepted_sums, num_present)
            measurements.append(_measurement(measure, mean, error, "share of tokens", name, data, len(dense_nll)))
        mean, error = mean_per_token(total[0] - dense_nll, num_predicted)
        measurements.append(
            _measurement("loss" + DIFFERENCE, mean, error, "nats per token", name, data, len(dense_nll))
        )
    return measurements


def _measurement(
    name: str, value: float, stderr: float | None, unit: str, model: str, data: str, samples: int
) -> Measurement:
    return Measurement(name=name, value=value, stderr=stderr, unit=unit, model=model, data=data, samples=samples)


_Run = tuple[Batch, torch.Tensor]
"""A batch, and its stream before the final norm."""


def _run_all(stream: DecoderStream, given: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[_Run]:
    batches = [stream.prepare(*ids_and_mask) for ids_and_mask in given]
    return list(zip(batches, stream.run_together([Pass(batch) for batch in batches]), strict=True))


def _sums_of_batch(streams: Sequence[DecoderStream], runs: Sequence[_Run], piece_bytes: int) -> torch.Tensor:
    """Of each sequence the dense NLL, then every other model's `SUMS`: (1 + SUMS * others, sequences), float64.

    Args:
        streams: the models, the dense one first.
        runs: the same batch in each of them.
        piece_bytes: of logits that are made of each at a time.
    """
    batch = runs[0][0]
    predicts, tokens, targets = predicting(batch.token_mask), batch.token_mask, following(batch.input_ids)
    sums: list[torch.Tensor | int] = [0] * len(targets)
    walks = [walk(stream, *run, piece_bytes) for stream, run in zip(streams, runs, strict=True)]
    for of_models in zip(*walks, strict=True):
        at = of_models[0][0]
        place = of_models[0][1].device
        beside = (values[at].to(place) for values in (targets, predicts, tokens))
        sums[at[0]] = sums[at[0]] + _sums([logits for _, logits in of_models], *beside)
    return torch.stack(sums, dim=1).cpu().double()  # type: ignore[arg-type]


def _sums(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, predicts: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """The same, summed over one sequence's positions. Each model's log-probabilities are made once and serve both."""
    kl, exact = KL(), widest_type(logits[0].device)
    log_p = logits[0].log_softmax(dim=-1)
    reference = kl.reference_of(log_p)
    values = [(nll_of(log_p, targets), predicts)]
    for other in logits[1:]:
        log_q = other.log_softmax(dim=-1)
        values.append((nll_of(log_q, targets), predicts))
        values.append((kl.of_log_probabilities(reference, log_q), present))
        values.append((accepted(log_p, log_q), present))
        values.append((agreed(log_p, log_q), present))
    # Choosing positions would wait for the device.
    return torch.stack([torch.where(counted, value.to(exact), 0).sum() for value, counted in values])


def mean_per_token(sums: torch.Tensor, counts: torch.Tensor) -> tuple[float, float | None]:
    """Mean over all tokens and its standard error over sequences (of a ratio of sums); one sequence has none."""
    mean = sums.sum() / counts.sum()
    if len(sums) < 2:
        return float(mean), None
    deviation = (sums - mean * counts) / counts.double().mean()
    return float(mean), float(deviation.std() / math.sqrt(len(sums)))
