"""depthcut makes large language models shallower: which blocks and sublayers can go, removed for real and measured.

    import depthcut
    result = depthcut.prune("smollm2", remove="25%", output="out/smollm2-25")

Everything heavy is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthcut.model.bypass import bypass
    from depthcut.model.load import resolve
    from depthcut.model.stream import DecoderStream
    from depthcut.results import Measurement
    from depthcut.run.api import apply, prune, score
    from depthcut.run.on_model import compare, remove, repair, search, tokens
    from depthcut.run.recipe import Recipe
    from depthcut.run.result import Result
    from depthcut.types import InputError, Plan, Scores, ScoreTable, Unit

__version__ = "0.1.0"

_HOMES = {
    name: f"depthcut.{home}"
    for home, names in {
        "run.api": "apply prune score",
        "run.on_model": "compare remove repair search tokens",
        "run.recipe": "Recipe",
        "run.result": "Result",
        "model.bypass": "bypass",
        "model.load": "resolve",
        "model.stream": "DecoderStream",
        "results": "Measurement",
        "types": "InputError Plan Scores ScoreTable Unit",
    }.items()
    for name in names.split()
}

__all__ = [
    "DecoderStream",
    "InputError",
    "Measurement",
    "Plan",
    "Recipe",
    "Result",
    "ScoreTable",
    "Scores",
    "Unit",
    "apply",
    "bypass",
    "compare",
    "prune",
    "remove",
    "repair",
    "resolve",
    "score",
    "search",
    "tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'depthcut' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
