"""Where a pruned model comes from: the facts that the page and the card both list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from depthcut.report.table import value_text
from depthcut.types import Measurement, Plan, TextDescription


def provenance(plan: Plan, measurements: Sequence[Measurement], software: Mapping[str, str]) -> list[tuple[str, str]]:
    """Terms and their texts, in the order of the pipeline; what is not known is left out."""
    model = plan.model
    kind = [model.model_type, f"{model.num_blocks} blocks", model.dtype]
    if model.quantisation:
        kind.append(f"dequantised from {model.quantisation}")
    facts = [
        ("Model", model.source),
        ("Revision", model.revision or ""),
        ("Kind", ", ".join(kind)),
        ("Model digest", model.digest),
        ("Calibration", _text_words(plan.calibration) if plan.calibration else "none"),
        ("Calibration digest", plan.calibration.digest if plan.calibration else ""),
        ("Search", f"{plan.method} over {_CANDIDATES[plan.unit]}, seed {plan.seed}"),
        ("Budget", plan.budget),
        ("Objective", plan.objective or ""),
        ("Protected", ", ".join(str(unit) for unit in plan.protected)),
        ("Cost of the search", _cost_words(plan)),
        ("Measured on", _distinct(measurement.device for measurement in measurements)),
        ("Software", ", ".join(f"{name} {version}" for name, version in software.items())),
    ]
    return [(term, text) for term, text in facts if text]


_CANDIDATES = {
    "block": "blocks",
    "pair": "pairs of adjacent sublayers",
    "attn": "attentions",
    "ffn": "FFNs",
    "sublayer": "sublayers",
}


def _text_words(text: TextDescription) -> str:
    size = f"{text.num_samples} × {text.length} tokens, seed {text.seed}"
    return f"{text.source} ({text.detail}), {size}" if text.detail else f"{text.source}, {size}"


def _cost_words(plan: Plan) -> str:
    cost = plan.cost
    parts = [
        f"{cost.candidate_evaluations:,} candidates" if cost.candidate_evaluations else "",
        f"{cost.unit_evaluations:,} evaluations of a unit" if cost.unit_evaluations else "",
        f"{value_text(cost.seconds, 'number')} s" if cost.seconds else "",
    ]
    return ", ".join(part for part in parts if part)


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
