"""The before/after table: measurements as rows of text, the same on the page, the card and the terminal.

Decides what a measurement is called and how its number is written. A name that is not listed here gets a row
too, from its own name and unit. A change is relative to the dense model; beyond +100 % it reads better as a
ratio, and speeds are always one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol

from depthcut.results import DECODING_BYTES, Measurement

Scale = Literal["number", "count", "bytes", "ratio"]

DENSE = "dense"
SEARCH = "search"
"""The model name of measurements of the search itself, which no table of models shows."""
UNKNOWN = "–"


@dataclass(frozen=True)
class Row:
    """One quantity, for every model it was measured on.

    Attributes:
        label: for people, with the unit of measure where the number alone does not say it.
        data: the text or setting that the numbers were measured on; empty where there is none.
        values: by model, in the order of appearance; `–` where the model has no such measurement.
        changes: by model other than the dense one; empty text where there is nothing to compare with.
    """

    name: str
    label: str
    data: str
    values: dict[str, str]
    changes: dict[str, str]

    @property
    def dense(self) -> str:
        return self.values.get(DENSE, UNKNOWN)

    @property
    def pruned(self) -> str:
        return self.values.get("pruned", UNKNOWN)

    @property
    def change(self) -> str:
        return self.changes.get("pruned", "")

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's texts after its label, one for each name of `columns`."""
        texts: list[str] = []
        for model, value in self.values.items():
            texts.append(value)
            if model in self.changes:
                texts.append(self.changes[model])
        return tuple(texts)


class Noted(Protocol):
    """A row of a table that says what its numbers were measured on."""

    @property
    def data(self) -> str: ...


@dataclass(frozen=True)
class _Quantity:
    """How one kind of number is written; `digits` are significant ones, used where no standard error says better."""

    label: str
    scale: Scale = "number"
    digits: int = 3
    as_ratio: bool = False


_QUANTITIES = {
    "parameters": _Quantity("Parameters", "count", digits=4),
    "blocks": _Quantity("Blocks"),
    "prediction_layers": _Quantity("Layers that predict further tokens (MTP)"),
    "bytes_on_disk": _Quantity("Size on disk", "bytes"),
    "kv_bytes_per_token": _Quantity("KV cache per token", "bytes"),
    DECODING_BYTES: _Quantity("Weights and cache while decoding", "bytes"),
    "perplexity": _Quantity("Perplexity", digits=4),
    "kl_to_dense": _Quantity("KL to dense, nats per token"),
    "logit_distance": _Quantity("Logits, mean squared difference to dense"),
    "embedding_distance": _Quantity("Embeddings, cosine distance to dense"),
    "loss/difference": _Quantity("Loss, difference to dense, nats per token"),
    "draft_acceptance": _Quantity("Draft for the dense model, tokens accepted"),
    "draft_acceptance_greedy": _Quantity("Draft, greedy, tokens accepted"),
    "draft_speedup": _Quantity("Draft, expected speed-up", "ratio"),
    "draft_speedup_greedy": _Quantity("Draft, greedy, expected speed-up", "ratio"),
    "prompt_tokens_per_second": _Quantity("Prompt, tokens/s", as_ratio=True),
    "decode_tokens_per_second": _Quantity("Decoding, tokens/s", as_ratio=True),
    "prompt_speedup": _Quantity("Prompt, speed-up", "ratio"),
    "prompt_ideal_speedup": _Quantity("Prompt, ideal speed-up", "ratio"),
    "decode_speedup": _Quantity("Decoding, speed-up", "ratio"),
    "decode_ideal_speedup": _Quantity("Decoding, ideal speed-up", "ratio"),
    "short_decode_tokens_per_second": _Quantity("Decoding at short context, tokens/s", as_ratio=True),
    "short_decode_speedup": _Quantity("Decoding at short context, speed-up", "ratio"),
    "short_decode_ideal_speedup": _Quantity("Decoding at short context, ideal speed-up", "ratio"),
    "peak_memory_bytes": _Quantity("Peak memory", "bytes"),
    "kv_capacity_tokens": _Quantity("Tokens that the cache holds", "count"),
}

_PREFIXES: dict[Scale, tuple[float, tuple[str, ...]]] = {
    "number": (1.0, ("",)),
    "count": (1000.0, ("", " k", " M", " G", " T")),
    "bytes": (1024.0, (" B", " KiB", " MiB", " GiB", " TiB")),
}


def before_after(measurements: Sequence[Measurement]) -> list[Row]:
    """The rows of the before/after table, one for each name and data set, in the order of appearance.

    Of several measurements of the same thing the last one counts. Speeds of two models have no change where their
    speed-up was measured in pairs: they are of different moments, and a machine is not always equally busy.
    """
    models = _models(measurements)
    paired = {(row.name, row.model) for row in measurements if row.name.endswith("_speedup")}
    groups: dict[tuple[str, str], dict[str, Measurement]] = {}
    for measurement in (measurement for measurement in measurements if measurement.model != SEARCH):
        groups.setdefault((measurement.name, measurement.data), {})[measurement.model] = measurement
    return [_row(by_model, models, paired) for by_model in groups.values()]


def columns(measurements: Sequence[Measurement]) -> list[str]:
    """The heads of the table after the label: the models, a `change` after each that is compared with the dense one."""
    models = _models(measurements)
    heads: list[str] = []
    for model in models:
        heads.append(model)
        if model in _compared(models):
            heads.append("change")
    return heads


def data_notes(rows: Sequence[Noted]) -> dict[str, int]:
    """The texts and settings of the rows, numbered from 1: notes to the table, since several rows share a long one."""
    texts = dict.fromkeys(row.data for row in rows if row.data)
    return {text: number for number, text in enumerate(texts, start=1)}


def dense_parameters(measurements: Sequence[Measurement]) -> float | None:
    """Parameters of the whole dense model, None where they were not measured."""
    found = [row.value for row in measurements if (row.name, row.model) == ("parameters", DENSE)]
    return found[-1] if found else None


def _models(measurements: Sequence[Measurement]) -> list[str]:
    models = dict.fromkeys(measurement.model for measurement in measurements)
    return [model for model in models if model != SEARCH]


def _compared(models: Sequence[str]) -> list[str]:
    return [model for model in models if model != DENSE] if DENSE in models else []


def _row(by_model: dict[str, Measurement], models: Sequence[str], paired: Set[tuple[str, str]]) -> Row:
    example = next(iter(by_model.values()))
    speed_up = example.name.removesuffix("_tokens_per_second") + "_speedup"
    quantity = _QUANTITIES.get(example.name) or _plain_quantity(example)
    dense = by_model.get(DENSE)
    return Row(
        name=example.name,
        label=quantity.label,
        data=example.data,
        values={
            model: value_text(by_model[model].value, quantity.scale, quantity.digits, by_model[model].stderr)
            if model in by_model
            else UNKNOWN
            for model in models
        },
        changes={
            model: change_text(dense.value, by_model[model].value, quantity.as_ratio)
            if dense is not None and model in by_model and (speed_up, model) not in paired
            else ""
            for model in _compared(models)
        },
    )


def _plain_quantity(measurement: Measurement) -> _Quantity:
    """A quantity that this module has no words for: its own name and unit."""
    label = measurement.name.replace("_", " ").replace("-", " ")
    label = label[:1].upper() + label[1:]
    if measurement.unit == "bytes":
        return _Quantity(label, "bytes")
    if measurement.unit.casefold() in ("", label.casefold()):
        return _Quantity(label, digits=4)
    return _Quantity(f"{label}, {measurement.unit}", digits=4)


def value_text(value: float, scale: Scale, digits: int = 3, stderr: float | None = None) -> str:
    """A number for people: `134.5 M`, `22.5 KiB`, `28.82 ± 0.31`.

    Args:
        scale: `count` writes thousands as k, M, G; `bytes` writes 1024 as KiB, MiB, GiB; `ratio` begins with ×.
        digits: significant digits, where no standard error tells how many there are.
        stderr: standard error, written with two significant digits; the value ends at the same decimal.
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else _signed("∞", value)
    if scale == "ratio":
        return "×" + value_text(value, "number", digits, stderr)
    base, suffixes = _PREFIXES[scale]
    magnitude = abs(value)
    index = 0
    while magnitude >= base and index < len(suffixes) - 1:
        magnitude /= base
        index += 1
    divisor, suffix = base**index, suffixes[index]
    if stderr is None and index == 0 and magnitude == int(magnitude) and magnitude < 1e6:
        return f"{_signed(str(int(magnitude)), value)}{suffix}"  # a count, not a rounded number
    if stderr is None or not math.isfinite(stderr) or stderr <= 0:
        return _signed(_significant(magnitude, digits), value) + suffix
    decimals = max(0, 1 - math.floor(math.log10(stderr / divisor)))
    number = f"{_signed(f'{magnitude:.{decimals}f}', value)} ± {stderr / divisor:.{decimals}f}"
    return f"({number}){suffix}" if suffix else number


def change_text(dense: float, other: float, as_ratio: bool = False) -> str:
    """What became of the dense model's value: `−21.1 %`, or `×1.31`; empty where there is nothing to divide by."""
    if dense == 0 or not (math.isfinite(dense) and math.isfinite(other)):
        return ""
    ratio = other / dense
    if as_ratio or ratio >= 2:
        return "×" + _signed(_significant(abs(ratio), 3), ratio)
    percent = 100 * (other - dense) / abs(dense)
    if percent == 0:
        return "0 %"
    number = f"{abs(percent):.1f}" if abs(percent) >= 1 else _significant(abs(percent), 2)
    return ("+" if percent > 0 else "−") + number + " %"


def _significant(magnitude: float, digits: int) -> str:
    """A number >= 0 with the given number of significant digits, and always all integer digits."""
    if magnitude == 0:
        return "0"
    exponent = math.floor(math.log10(magnitude))
    if exponent < -4 or exponent >= 6:
        return f"{magnitude:.{digits - 1}e}"
    return f"{magnitude:.{max(0, digits - 1 - exponent)}f}"


def _signed(number: str, value: float) -> str:
    return "−" + number if value < 0 else number
