"""The pruned model as a draft of its own dense model: how often a drafted token is accepted, and what that would bring.

In speculative decoding a draft model proposes tokens one by one and the dense model checks them all in one pass. A
drafted token x is accepted with probability min(1, p(x) / q(x)) (p dense, q draft), so in the mean over drafts with
the sum of min(p, q) over the vocabulary; greedily where both have the same most likely token. Source: Leviathan et
al., arXiv 2211.17192, definition 3.1, theorem 3.5, equation (1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from depthcut.results import Measurement

LONGEST_DRAFT = 8
SAMPLING, GREEDY = "draft_acceptance", "draft_acceptance_greedy"


def accepted(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """(positions,) chance in [0, 1] that a token drawn from q is accepted.

    Args:
        log_p: (positions, vocabulary) log-probabilities of the dense model.
        log_q: of the draft.
    """
    return torch.minimum(log_p, log_q).exp().sum(dim=-1)


def agreed(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """(positions,) bool, where both models have the same most likely token."""
    return log_p.argmax(dim=-1) == log_q.argmax(dim=-1)


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens that one pass of the dense model yields, its own one included, if acceptances are independent."""
    return sum(acceptance**count for count in range(drafted + 1))


def expected_speedup(acceptance: float, drafted: int, draft_share: float, token_share: float) -> float:
    """Decoding speed with drafts over that without.

    Args:
        drafted: tokens of a draft.
        draft_share: seconds of a token of the draft model over those of a decoded token of the dense one.
        token_share: seconds of a token that the dense model reads, as of a prompt, over those of one that it decodes. A
            check takes as long as decoding one token, or as reading all of them where that is longer.
    """
    return expected_tokens(acceptance, drafted) / (drafted * draft_share + max(1.0, (drafted + 1) * token_share))


def with_drafts(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements, and behind them the best speed-up as a draft that follows for every timed model.

    Args:
        measurements: acceptances, and speeds of prompts and of decoding at a short context, of the dense model too.
    """
    values = {(measurement.name, measurement.model): measurement.value for measurement in measurements}
    speeds: Mapping[str, tuple[float, float]] = {
        model: (values["prompt_tokens_per_second", model], value)
        for (name, model), value in values.items()
        if name == "short_decode_tokens_per_second"
    }
    rows = list(measurements)
    if "dense" not in speeds:
        return rows
    reading, decoding = speeds["dense"]
    for name in (SAMPLING, GREEDY):
        for acceptance in [row for row in measurements if row.name == name and row.model in speeds]:
            draft_share = decoding / speeds[acceptance.model][1]
            best = max(
                (expected_speedup(acceptance.value, drafted, draft_share, decoding / reading), drafted)
                for drafted in range(1, LONGEST_DRAFT + 1)
            )
            rows.append(
                Measurement(
                    name=name.replace("acceptance", "speedup"),
                    value=best[0],
                    unit="ratio",
                    model=acceptance.model,
                    data=f"{best[1]} tokens a draft, acceptance on {acceptance.data}",
                )
            )
    return rows
