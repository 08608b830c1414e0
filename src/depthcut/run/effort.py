"""How much a run takes upon itself, as one word: samples, lengths, the search and the chain of repairs.

What a word stands for is written into the recipe, and what is given beside it stays as it is given. `RUNGS` go from
the least to the most; `--minutes` chooses among them by their estimates.
"""

from __future__ import annotations

from typing import Any

RUNGS: tuple[dict[str, Any], ...] = (
    {"calibration_samples": 4, "calibration_length": 128, "repair_samples": 16},
    {"calibration_samples": 8, "calibration_length": 128, "repair_samples": 32},
    {"calibration_samples": 8, "calibration_length": 256, "repair_samples": 32},
    {"calibration_samples": 8, "calibration_length": 256, "repair_samples": 64},
    {"calibration_samples": 16, "calibration_length": 256, "repair_samples": 64},
    {"calibration_samples": 16, "calibration_length": 512, "repair_samples": 64},
    {"calibration_samples": 16, "calibration_length": 512, "repair_samples": 64, "repair": "refit+seam"},
    {"calibration_samples": 16, "calibration_length": 512, "repair_samples": 128, "repair": "refit+seam"},
    {"calibration_samples": 32, "calibration_length": 512, "repair_samples": 128, "repair": "refit+seam"},
    {"calibration_samples": 32, "calibration_length": 512, "repair_samples": 256, "repair": "refit+seam,steps=400"},
    {"calibration_samples": 64, "calibration_length": 512, "repair_samples": 512, "repair": "refit+seam,steps=800"},
)
"""Each takes longer than the one before it."""

EFFORTS = {"quick": RUNGS[2], "normal": RUNGS[5], "high": RUNGS[7], "max": RUNGS[9]}
"""What each word stands for."""


def with_effort(given: dict[str, Any]) -> dict[str, Any]:
    """Options, and what their `effort` stands for where it is not among them."""
    return EFFORTS.get(given.get("effort") or "", {}) | given
