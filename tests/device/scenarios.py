"""Runs of depthcut on a device, each of which leaves what it found: `python scenarios.py DEVICE FOLDER [NAME ...]`.

A process of its own, since a device that torch knows of is known to the whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import depthcut
import tiny
from device.checks import CHECKS
from device.shortages import SHORTAGES

BASE: dict[str, Any] = {
    "remove": "2",
    "calibration": "stdlib",
    "calibration_samples": 4,
    "calibration_length": 16,
    "evaluation_samples": 2,
    "evaluation_length": 16,
    "repair": "none",
    "speed": False,
    "batch_size": 2,
}
QUESTIONS = [
    {"question": "Which is a fruit?", "options": ["a stone", "an apple", "a rope"], "answer": 1},
    {"question": "Two and two?", "options": ["four", "five"], "answer": "A"},
    {"question": "The last of them?", "options": ["this", "that", "another one"], "answer": "C"},
]
HEALING: dict[str, Any] = {"method": "shortgpt", "repair_samples": 16}
WRITTEN = "written and read in a fresh process"
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"repair": None, "speed": True}),
    WRITTEN: ("llama", {"repair": None, "output": True}),
    "gemma": ("gemma3_text", {"repair": None}),
    "parallel": ("gpt_neox", {"repair": None}),
    "experts": ("qwen3_moe", {"repair": None}),
    "hybrid": ("granitemoehybrid", {}),
    "exhaustive": ("llama", {"method": "finercut", "remove": "3"}),
    "loss": ("llama", {"method": "sleb"}),
    "angular": ("llama", {"objective": "logit-angular"}),
    "l2": ("llama", {"objective": "logit-l2"}),
    "js": ("llama", {"objective": "js"}),
    "acceptance": ("llama", {"objective": "acceptance"}),
    "ceiling": ("llama", {"remove": None, "max_increase": "kl=0.2"}),
    "evopress": ("llama", {"method": "evopress"}),
    "shapley": ("llama", {"method": "shapley", "unit": "block", "max_forwards": 40}),
    "one pass": ("llama", {"method": "shortgpt"}),
    "angles": ("llama", {"method": "uidl"}),
    "importances": ("llama", {"method": "deeper-look"}),
    "one by one": ("llama", {"method": "blockpruner"}),
    "gradients": ("llama", {"method": "one-shot,metric=taylor"}),
    "window": ("llama", {"method": "window"}),
    "questions": ("llama", {"objective": "task", "calibration": "questions", "calibration_length": 60}),
    "wrong answers": ("llama", {"objective": "task-error", "calibration": "questions", "calibration_length": 60}),
    "self": ("llama", {"calibration": "self", "calibration_length": 12}),
    "linear": ("llama", {"method": "shortgpt", "repair": "linear"}),
    "bias": ("llama", {"method": "shortgpt", "repair": "bias"}),
    "low-rank": ("llama", {"method": "shortgpt", "repair": "low-rank,rank=4"}),
    "low-rank, trained": ("llama", HEALING | {"repair": "low-rank,rank=4,train=kd,steps=4,batch_size=4,warmup=1"}),
    "seam": ("llama", HEALING | {"repair": "seam,steps=6"}),
    "lora": ("llama", HEALING | {"repair": "lora,steps=4,rank=2,batch_size=4,warmup=1"}),
    "distill": ("llama", HEALING | {"repair": "distill,steps=4,rank=2,batch_size=4,warmup=1"}),
    "partial": ("llama", HEALING | {"repair": "partial,steps=4,batch_size=4,warmup=1"}),
    "generation": ("llama", {"method": "shortgpt", "generation": True}),
}


def run(name: str, device: str, folder: Path) -> dict[str, Any]:
    """One scenario: what it removed, scored and measured, and the weights that were left beside it."""
    family, changes = SCENARIOS[name]
    options = BASE | changes
    model = folder / f"model-{family}"
    if not model.is_dir():
        tiny.save(model, family)
    if options.get("calibration") == "questions":
        file = folder / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
        options["calibration"] = f"{file},order=first"
        options["calibration_samples"] = len(QUESTIONS)
    if options.pop("output", False):
        options["output"] = folder / "written"
    result = depthcut.prune(str(model), device=device, **options)
    weights = {key: tensor.detach().cpu().clone() for key, tensor in result.model.state_dict().items()}
    save_file(weights, folder / f"{name}.safetensors")
    values = [(m.model, m.name, m.value) for m in result.measurements if m.unit not in ("tokens/s", "s")]
    return {
        "device": str(result.model.device),
        "removed": [str(unit) for unit in result.plan.removed],
        "objectives": [step.objective for step in result.plan.steps],
        "scores": [] if result.scores is None else result.scores.model_dump(mode="json")["scores"],
        "repairs": [(repair.method, repair.before, repair.after, repair.kept) for repair in result.repairs],
        "measured": [
            value for value in values if not any(word in value[1] for word in ("second", "speedup", "memory"))
        ],
        "generated": [sample.model_dump(mode="json") for sample in result.generation],
    }


def main(device: str, folder: str, *names: str) -> None:
    found: dict[str, Any] = {}
    computed = CHECKS | SHORTAGES
    for name in names or (*SCENARIOS, *computed):
        try:
            # The stand-in has no fused attention, and the CPU's rounds otherwise; a fresh process takes what there is.
            with contextlib.nullcontext() if name == WRITTEN else sdpa_kernel(SDPBackend.MATH):
                found[name] = computed[name](device) if name in computed else run(name, device, Path(folder))
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
