"""What searches cost and find: objective against unit evaluations, for prefix reuse, plain lazy and ours.

    python benchmarks/search_cost.py --data ../shared/data/c4_sample.jsonl.gz

One unit evaluation is one attention or feed-forward part run on one calibration sequence. The naive loop evaluates
every candidate of every round by whole forward passes; its count is a formula, its path is that of prefix reuse. Counts
are exact, seconds are the processor's, of this machine. Writes a JSON file and prints a table.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.calibration import parse_source, sample_text
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes
from depthcut.types import Step


def plain_lazy(problem: Problem) -> list[Step]:
    """Textbook lazy greedy: stale values order the queue; the first that stays first when evaluated anew goes."""
    ablation, removed, steps = problem.ablation, frozenset(), []
    now = ablation([])
    stale = {}
    while not problem.is_met(removed):
        ablation.rebase(removed)
        fresh = set()
        queue = problem.candidates(removed)
        while True:
            group = min(queue, key=lambda c: stale.get(c, -1.0))
            if group in fresh:
                break
            stale[group] = ablation(removed.union(group)) - now
            fresh.add(group)
        removed = removed.union(group)
        now = ablation(removed)
        steps.append(Step(remove=group, objective=now))
    return steps


LAZY = Greedy()
VARIANTS = {
    "lazy (default)": LAZY.path,
    "lazy without exchanges": replace(LAZY, swap=False).path,
    "lazy wider race": replace(LAZY, num_racers=12, tolerance=0.5).path,
    "lazy shorter race": replace(LAZY, standard_errors=1.0, effort=0.035).path,
    "lazy longer race": replace(LAZY, standard_errors=3.0, effort=0.08).path,
    "plain lazy": plain_lazy,
    "prefix reuse": Greedy(strategy="exhaustive", swap=False).path,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of the calibration text")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--unit", default="sublayer")
    parser.add_argument("--remove", default="15")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names joined with commas")
    parser.add_argument("--output", type=Path, default=Path("out/search_cost.json"))
    options = parser.parse_args()

    source = resolve(options.model, dtype=options.dtype)
    text = f"{options.data},order=first" if "," not in options.data and options.data != "stdlib" else options.data
    samples = sample_text(
        parse_source(text),
        source.load_tokenizer(),
        num_samples=options.samples,
        length=options.length,
        seed=0,
        purpose="calibration",
    )
    stream = DecoderStream(source.load_model(), source.architecture)
    rows = []
    for name in (name for name in VARIANTS if name in options.variants.split(",")):
        before, began = stream.unit_evaluations, time.process_time()
        ablation = Ablation(stream, samples, "kl")
        problem = Problem(
            architecture=source.architecture,
            num_blocks=len(stream.blocks),
            sizes=measure_sizes(stream.model, source.architecture),
            unit=options.unit,
            budget=Budget.parse(options.remove, None),
            ablation=ablation,
        )
        steps = VARIANTS[name](problem)
        row = {
            "variant": name,
            "unit_evaluations": stream.unit_evaluations - before,
            "candidate_evaluations": round(ablation.candidate_evaluations, 2),
            "naive_unit_evaluations": naive(problem, steps, len(samples.input_ids)),
            "processor_seconds": round(time.process_time() - began, 1),
            "path": ["+".join(map(str, step.remove)) for step in steps],
            "objectives": [step.objective for step in steps],
        }
        row["share_of_naive"] = row["unit_evaluations"] / row["naive_unit_evaluations"]
        rows.append(row)
        every_fifth = " ".join(f"{row['objectives'][i]:.4f}" for i in range(4, len(steps), 5)) or row["objectives"][-1]
        print(
            f"{name:22} {row['unit_evaluations']:8} unit evaluations, naive/{1 / row['share_of_naive']:.1f}, "
            f"{row['candidate_evaluations']:6.1f} candidates, {row['processor_seconds']:6.1f} s, kl {every_fifth}",
            flush=True,
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    setting = {"options": vars(options) | {"output": str(options.output)}, "threads": torch.get_num_threads()}
    options.output.write_text(json.dumps(setting | {"rows": rows}, indent=1) + "\n")


def naive(problem: Problem, steps: list[Step], num_sequences: int) -> int:
    """Unit evaluations of the loop of whole forward passes over the same rounds."""
    removed, total = set(), 0
    for step in steps:
        kept = len(problem.units) - len(removed)
        total += num_sequences * sum(kept - len(group) for group in problem.candidates(removed))
        removed |= set(step.remove)
    return total


if __name__ == "__main__":
    main()
