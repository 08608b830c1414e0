"""The first numbers of the page: how much smaller the model is, at what cost, and how much faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from depthcut.report.removal import removed_list
from depthcut.report.table import DENSE, UNKNOWN, Row
from depthcut.results import Repair
from depthcut.types import Plan

HEAD_DISTANCES = {
    "logit_distance": "squared difference of the logits",
    "embedding_distance": "cosine distance of the embeddings",
}
"""What stands in place of perplexity where a model predicts no tokens."""


@dataclass(frozen=True)
class KeyNumber:
    """One part of the answer: a large number with what it means and what it comes from."""

    term: str
    value: str
    meaning: str
    notes: tuple[str, ...]


def answer(plan: Plan, rows: Sequence[Row], retained: str = "", repairs: Sequence[Repair] = ()) -> list[KeyNumber]:
    """The page's first numbers: how much smaller, at what cost, how much faster.

    Args:
        retained: the share of the tasks' scores that is left; empty where that was not measured.
        repairs: of the model, which say what text it was fitted to.
    """
    by_name = {row.name: row for row in reversed(rows)}  # of several data sets the first one answers
    figures = [
        _figure("Removed", by_name.get("parameters"), "parameters", "", [removed_list(plan)]),
        _cost_figure(by_name, retained, plan, repairs),
        _speed_figure(by_name),
    ]
    return [figure for figure in figures if figure is not None]


def _figure(term: str, row: Row | None, meaning: str, measure: str, notes: Sequence[str]) -> KeyNumber | None:
    if row is None or row.pruned == UNKNOWN:
        return None
    if not row.change:
        return KeyNumber(term, row.pruned, meaning + measure, tuple(notes))
    return KeyNumber(term, row.change, meaning, (f"{row.dense} → {row.pruned}{measure}", *notes))


def _cost_figure(by_name: Mapping[str, Row], retained: str, plan: Plan, repairs: Sequence[Repair]) -> KeyNumber | None:
    """Perplexity; of a model that predicts no tokens, how far what it gives is from the dense model's."""
    for name, meaning in HEAD_DISTANCES.items():
        if distance := _pruned_text(by_name, name):
            row = by_name[name]
            text = row.data.partition(" (")[0]
            others = [f"{model}: {text}" for model, text in row.values.items() if model not in (DENSE, "pruned")]
            return KeyNumber("Cost", distance, meaning, (*([f"on {text}"] if text else []), *others))
    return _figure("Cost", by_name.get("perplexity"), "perplexity", "", _cost_notes(by_name, retained, plan, repairs))


def kind_note(plan: Plan, repairs: Sequence[Repair], data: str) -> str:
    """Whether text that measured is of a kind that something was fitted to; empty where that is not known.

    Args:
        data: of the measurement, which begins with the SOURCE.
    """
    described = [plan.calibration, *(repair.text for repair in repairs if repair.kept)]
    fitted = {kind for text in described if text is not None for kind in _kinds(text.source)}
    measured = _kinds(data.partition(" (")[0])
    if not fitted or not measured:
        return ""
    names = " and ".join(sorted(fitted))
    if measured & fitted:
        return f"a kind of text that was fitted to ({names}); other kinds lose more"
    return f"a kind of text that nothing was fitted to; all was fitted to {names}"


def _kinds(source: str) -> set[str]:
    """The names in a SOURCE, without their settings."""
    return {part.partition(",")[0].strip() for part in source.split("+")} - {""}


def _cost_notes(by_name: Mapping[str, Row], retained: str, plan: Plan, repairs: Sequence[Repair]) -> list[str]:
    perplexity, divergence = by_name.get("perplexity"), _pruned_text(by_name, "kl_to_dense")
    notes: list[str] = []
    if perplexity is not None:
        text = perplexity.data.partition(" (")[0]  # the name of the text; its details are a note of the table
        kind = kind_note(plan, repairs, perplexity.data)
        notes += [f"on {text}{', ' if kind else ''}{kind}"] if text else []
        notes += [f"{model}: {text}" for model, text in perplexity.values.items() if model not in (DENSE, "pruned")]
    notes += [f"KL to dense {divergence} nats per token"] if divergence else []
    kept = [repair for repair in repairs if repair.kept and repair.objective == "kl"]
    if kept:
        was = f"{kept[0].before:.3f} → {kept[-1].after:.3f}"
        notes.append(f"KL on {kept[-1].held_out.source}, the kind repaired on, by repair {was}")
    notes += [f"{retained} of the tasks' accuracy retained"] if retained else []
    return notes


def _speed_figure(by_name: Mapping[str, Row]) -> KeyNumber | None:
    """Decoding: the speed-up if it was measured in pairs, else tokens per second; with prompt and cache as notes."""
    prompt = _pruned_text(by_name, "prompt_speedup") or _change(by_name, "prompt_tokens_per_second")
    ideal, cache = _pruned_text(by_name, "decode_ideal_speedup"), _change(by_name, "kv_bytes_per_token")
    parts = (("ideal", ideal), ("reading a prompt", prompt), ("KV cache", cache))
    notes = tuple(f"{what} {text}" for what, text in parts if text)
    paired = _pruned_text(by_name, "decode_speedup")
    if not paired and "decode_tokens_per_second" not in by_name and prompt:
        ideal = _pruned_text(by_name, "prompt_ideal_speedup")
        return KeyNumber("Speed", prompt, "reading a text", (f"ideal {ideal}",) if ideal else ())
    if paired:
        return KeyNumber("Speed", paired, "decoding", notes)
    return _figure("Speed", by_name.get("decode_tokens_per_second"), "decoding", " tokens/s", notes)


def _pruned_text(by_name: Mapping[str, Row], name: str) -> str:
    row = by_name.get(name)
    return "" if row is None or row.pruned == UNKNOWN else row.pruned


def _change(by_name: Mapping[str, Row], name: str) -> str:
    row = by_name.get(name)
    return "" if row is None else row.change
