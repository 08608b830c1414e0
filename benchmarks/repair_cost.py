"""Processor seconds of a repair, and what it reaches: the plan, the text and the settings are those of a finished run.

    make demo
    python benchmarks/repair_cost.py out/demo [--repairs 'refit;refit,reads=false']

Processor seconds of all threads, with the judging before and after, so that other load does not count; to compare two
versions, run it with each of them on the PYTHONPATH. KL to dense on the held-out sixteenth of the repair text, which
decides whether a repair is kept, and on the run's evaluation text.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import yaml
from machine import machine

from depthcut.evaluation.language import compare_language
from depthcut.model.stream import DecoderStream
from depthcut.run.recipe import Recipe
from depthcut.run.repair import repair
from depthcut.run.session import find_model, load, prepare
from depthcut.surgery import apply
from depthcut.types import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="what depthcut prune wrote")
    parser.add_argument("--repairs", default="refit", help="joined with semicolons")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("out/repair_cost.json"))
    options = parser.parse_args()

    written = yaml.safe_load((options.run / "recipe.yaml").read_text())
    plan = Plan.model_validate_json((options.run / "plan.json").read_text())
    rows = []
    for name in options.repairs.split(";"):
        recipe = Recipe.build(**(written | {"repair": name, "dtype": options.dtype}))
        loaded = load(prepare(recipe, find_model(recipe)))
        cut = apply(loaded.stream.model, loaded.source.architecture, plan.removed)
        began = time.process_time()
        model, records = repair(loaded, plan, cut, None)
        row = {"repair": name, "processor seconds": round(time.process_time() - began, 1)}
        row["held-out KL"] = [round(records[0].before, 4), round(records[-1].after, 4)]
        candidates = {"model": DecoderStream(model, loaded.source.architecture)}
        for found in compare_language(loaded.stream, candidates, loaded.evaluation):
            if found.model == "model" and found.name in ("loss", "kl_to_dense"):
                row[found.name] = round(found.value, 4)
        print(row, flush=True)
        rows.append(row)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
