"""Where a pruned model comes from: the facts that the page and the card both list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from depthcut.report.table import value_text
from depthcut.results import Measurement, Repair
from depthcut.types import Plan, TextDescription


def provenance(
    plan: Plan, measurements: Sequence[Measurement], software: Mapping[str, str], repairs: Sequence[Repair] = ()
) -> list[tuple[str, str]]:
    """Terms and their texts, in the order of the pipeline; what is not known is left out."""
    model = plan.model
    kind = [model.model_type, f"{model.num_blocks} blocks", model.dtype]
    if model.quantisation:
        kind.append(f"{'dequantised from' if model.format == 'gguf' else 'quantised as'} {model.quantisation}")
    facts = [
        ("Model", model.source),
        ("Revision", model.revision or ""),
        ("Adapter, merged", model.adapter or ""),
        ("Kind", ", ".join(kind)),
        ("Model digest", model.digest),
        ("Calibration", _text_words(plan.calibration) if plan.calibration else "none"),
        ("Calibration digest", plan.calibration.digest if plan.calibration else ""),
        ("Search", f"{plan.method} over {_CANDIDATES[plan.unit]}, seed {plan.seed}"),
        ("Budget", plan.budget),
        ("Objective", plan.objective or ""),
        ("Protected", ", ".join(str(unit) for unit in plan.protected)),
        ("Cost of the search", _cost_words(plan, measurements)),
        *(("Repair", _repair_words(repair)) for repair in repairs),
        ("Left out", _left_out_words(measurements)),
        ("Evaluation", _distinct(m.data for m in measurements if m.name in ON_TEXT)),
        ("Measured on", _distinct(measurement.device for measurement in measurements)),
        ("Software", ", ".join(f"{name} {version}" for name, version in software.items())),
    ]
    return [(term, text) for term, text in facts if text]


def _left_out_words(measurements: Sequence[Measurement]) -> str:
    counts = {row.model: int(row.value) for row in measurements if row.name == "prediction_layers"}
    if counts.get("dense", 0) <= counts.get("pruned", 0):
        return ""
    return (
        f"the layers behind the last block that predict further tokens (MTP; {counts['dense']} of them), which "
        "transformers does not load and which were trained on what the last block of the dense model gives"
    )


ON_TEXT = ("perplexity", "kl_to_dense", "logit_distance", "embedding_distance")
"""What is measured on a text."""

_CANDIDATES = {
    "block": "blocks",
    "pair": "pairs of adjacent sublayers",
    "attn": "attentions",
    "ffn": "FFNs",
    "sublayer": "sublayers",
}


@dataclass(frozen=True)
class RepairRow:
    """One repair as the page's table shows it.

    Attributes:
        steps: step and loss of a training, as texts.
    """

    method: str
    objective: str
    before: str
    after: str
    kept: str
    steps: tuple[tuple[str, str], ...]


def repair_row(repair: Repair) -> RepairRow:
    """The texts of one repair."""
    before, after = (value_text(value, "number") for value in (repair.before, repair.after))
    steps = tuple((str(step), value_text(loss, "number")) for step, loss in repair.curve)
    return RepairRow(repair.method, repair.objective, before, after, "yes" if repair.kept else "no, undone", steps)


def _repair_words(repair: Repair) -> str:
    row = repair_row(repair)
    settings = ", ".join(f"{name} {value}" for name, value in repair.settings.items())
    held_out = repair.held_out
    return (
        f"{repair.method} ({settings}), fitted to {_text_words(repair.text)}; {repair.objective} {row.before} → "
        f"{row.after} on {held_out.num_samples} × {held_out.length} held-out tokens{'' if repair.kept else ', undone'}"
    )


def _text_words(text: TextDescription) -> str:
    size = f"{text.num_samples} × {text.length} tokens, seed {text.seed}"
    return f"{text.source} ({text.detail}), {size}" if text.detail else f"{text.source}, {size}"


def _cost_words(plan: Plan, measurements: Sequence[Measurement]) -> str:
    cost = plan.cost
    seconds = [measurement.value for measurement in measurements if measurement.name == "search_seconds"]
    parts = [
        f"{cost.candidate_evaluations:,} candidates" if cost.candidate_evaluations else "",
        f"{cost.unit_evaluations:,} evaluations of a unit" if cost.unit_evaluations else "",
        f"{value_text(seconds[-1], 'number')} s" if seconds else "",
    ]
    return ", ".join(part for part in parts if part)


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
