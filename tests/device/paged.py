"""A model that does not fit onto its device, scored, searched, refitted, cut and saved: `python paged.py DEVICE ...`.

On the stand-in its memory has a limit, and what is found is left beside it: plan, weights, and bytes of each round.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import depthcut
from depthcut.ablation.ablation import Ablation


def watch_rounds(rounds: list[dict[str, int]]) -> None:
    """Notes of each evaluation how many sets it has and what it brings in, of weights that do not stay."""
    evaluate = Ablation.evaluate

    def watched(self: Ablation, sets: Any, *given: Any) -> Any:
        pager = self.stream.pager
        before = 0 if pager is None else pager.bytes_read
        values = evaluate(self, sets, *given)
        if pager is not None and len(sets) > 1:
            staying = sum(parameter.nbytes for parameter in pager._staying)
            blocks = sum(parameter.nbytes for block in self.stream.blocks for parameter in block.parameters())
            rounds.append({"sets": len(sets), "read": pager.bytes_read - before, "not staying": blocks - staying})
        return values

    Ablation.evaluate = watched


def main(device: str, folder: Path, model: str, limit: int, options: dict[str, Any]) -> None:
    rounds: list[dict[str, int]] = []
    watch_rounds(rounds)
    found: dict[str, Any] = {}
    if device != "cpu":
        for place in range(torch.standin.device_count()):
            torch.standin.extension.set_limit(place, limit)
    for name, changes in options.items():
        if device != "cpu":
            torch.standin.extension.reset_peak(0)
        rounds.clear()
        # The stand-in has no fused attention, and the CPU's rounds otherwise.
        with sdpa_kernel(SDPBackend.MATH):
            # Verified where it was paged: the CPU's fresh process has the fused kernel.
            output = folder / name if changes.pop("output", False) and device != "cpu" else None
            result = depthcut.prune(model, device=device, output=output, **changes)
        save_file(
            {key: tensor.cpu().clone() for key, tensor in result.model.state_dict().items()},
            folder / f"{name}.safetensors",
        )
        found[name] = {
            "plan": [[str(unit) for unit in step.remove] for step in result.plan.steps],
            "objectives": [step.objective for step in result.plan.steps],
            "repairs": [(repair.method, repair.before, repair.after, repair.kept) for repair in result.repairs],
            "peak": 0 if device == "cpu" else torch.standin.max_memory_allocated(0),
            "rounds": list(rounds),
        }
        del result
        gc.collect()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5]))
