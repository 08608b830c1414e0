"""What `--dry-run` says a search takes against what it takes: FLOPs, unit evaluations and peak memory.

    python benchmarks/estimates.py

Each model is loaded, scored and searched by the default search in processes of its own; operations are counted by
torch, memory is a process's peak resident size. Writes a JSON file and prints a table.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from depthcut.model.flops import measure_work
from depthcut.model.units import empty_model
from depthcut.preview.estimate import estimate
from depthcut.process.memory import KEPT_BY_DEFAULT, Room, resident_bytes
from depthcut.run.plan import find_plan
from depthcut.run.recipe import Recipe
from depthcut.run.session import find_model, load, pose_problem, prepare

SDPA_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query, key, value, *_, **__) -> int:
    """What torch's counter does not know of: both products of the CPU's attention, on the whole square."""
    return sdpa_flop_count(query, key, value)


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={SDPA_ON_CPU: _attention_flops})


def measure(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Estimate and measurement of one model, by quantity."""
    recipe = Recipe.build(
        model=options.model,
        dtype=options.dtype,
        unit=options.unit,
        remove=options.remove,
        method=f"greedy,strategy={options.search}",
        repair="none",
        calibration="stdlib",
        calibration_samples=options.samples,
        calibration_length=options.length,
        evaluation_samples=1,
    )
    source = find_model(recipe)
    problem = pose_problem(recipe, source)
    work = measure_work(empty_model(source.config, source.dtype), source.architecture)
    gguf_bytes = (source.folder / source.gguf_file).stat().st_size if source.gguf_file else 0
    expected = estimate(
        recipe, problem, work, Room(KEPT_BY_DEFAULT, None), weight_bytes=source.weight_bytes, gguf_bytes=gguf_bytes
    )
    stages = [phase for phase in expected.phases if phase.name != "evaluate"]
    prepared = prepare(recipe, source)
    program = resident_bytes()
    loaded = load(prepared)
    if options.count == "memory":
        find_plan(loaded, problem, None)
        held = expected.weight_bytes + max(phase.working_bytes + phase.host_bytes for phase in stages)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak memory, bytes": (program + held, peak)}
    with counter() as of_forward, torch.no_grad():
        loaded.stream.model(input_ids=loaded.calibration.input_ids[:1], use_cache=False)
    with counter() as of_search:
        plan = find_plan(loaded, problem, None)[1]
    return {
        "FLOPs of a forward pass": (work.forward_flops(options.length), of_forward.get_total_flops()),
        "FLOPs of scoring and search": (sum(phase.flops for phase in stages), of_search.get_total_flops()),
        "unit evaluations": (sum(phase.unit_evaluations for phase in stages), plan.cost.unit_evaluations),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="smollm2,gemma3-270m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--unit", default="block")
    parser.add_argument("--remove", default="2")
    parser.add_argument("--search", default="lazy")
    parser.add_argument("--output", type=Path, default=Path("out/estimates.json"))
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--count", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measure(options)))
        return
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for model in options.models.split(","):
        rows[model] = {}
        # Counting takes memory of its own.
        for count in ("memory", "flops"):
            command = [sys.executable, __file__, *sys.argv[1:], "--model", model, "--count", count]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for name, (estimated, measured) in json.loads(child.stdout.splitlines()[-1]).items():
                ratio = estimated / measured
                rows[model][name] = {"estimate": estimated, "measured": measured, "ratio": ratio}
                print(f"{model:14} {name:28} {estimated:12.4g} {measured:12.4g} {ratio:6.2f}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("model", "count", "output")}
    options.output.write_text(json.dumps({"options": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
