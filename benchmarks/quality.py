"""Every method at equal calibration and equal parameters removed: perplexity and KL to dense on unseen text.

    python benchmarks/quality.py --data ../shared/data

Calibration: the first 16 x 512 tokens of the C4 sample. Measured in float32 on the next C4 text (the calibration's
domain) and on the first 32 x 512 tokens of WikiText-2 test. Paths are cut where 4 and 8 of 30 blocks' parameters
are gone. Searches run in --search-dtype. Plans are kept in the output folder; one that is there is not searched again.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from depthcut.ablation.ablation import Ablation
from depthcut.calibration import parse_source, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.importance.static import static_scores
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import SEARCHES, Problem
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.process.journal import Journal
from depthcut.run.recipe import Recipe
from depthcut.run.session import pose_problem
from depthcut.surgery import apply
from depthcut.types import ScoreTable, Step, Unit

METHODS = {
    "shortgpt": ("block", lambda: SEARCHES.find("shortgpt").make()),
    "uidl": ("block", lambda: SEARCHES.find("uidl").make()),
    "greedy blocks by loss (SLEB)": ("block", lambda: Greedy(objective="loss", swap=False)),
    "greedy sublayers by js (FinerCut)": ("sublayer-count", lambda: Greedy(objective="js", swap=False, joint=False)),
    "evolutionary over blocks (EvoPress)": ("block", lambda: replace(SEARCHES.find("evopress").make(), generations=20)),
    "greedy blocks": ("block", Greedy),
    "greedy pairs (default)": ("pair", Greedy),
    "greedy pairs with 4 x the exchanges": ("pair", lambda: Greedy(effort=0.32)),
    "greedy sublayers at cost": ("sublayer", Greedy),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--blocks", default="4,8")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--search-dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("out/quality"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = options.methods.split(",")

    source = resolve(options.model)
    tokenizer = source.load_tokenizer()
    c4 = f"{options.data / 'c4_sample.jsonl.gz'},order=first"
    wikitext = f"{options.data / 'wikitext2_raw_test.jsonl.gz'},join=lines,order=first"
    size = {"num_samples": options.samples, "length": options.length, "seed": 0}
    calibration = sample_text(parse_source(c4), tokenizer, **size, purpose="calibration")
    texts = {
        "C4, unseen": sample_text(
            parse_source(c4), tokenizer, **size, purpose="evaluation", exclude=calibration.document_digests
        ),
        "WikiText-2 test": sample_text(
            parse_source(wikitext), tokenizer, num_samples=32, length=512, seed=0, purpose="evaluation"
        ),
    }
    dense = DecoderStream(source.load_model(), source.architecture)
    fast = DecoderStream(replace_dtype(source, options.search_dtype).load_model(), source.architecture)
    counts = [int(count) for count in options.blocks.split(",")]
    others = {}
    for name in chosen:
        for count in counts:
            removed = find(name, count, max(counts), source, fast, calibration, options.output)
            others[f"{name} / {count}"] = DecoderStream(
                apply(dense.model, source.architecture, removed), dense.architecture
            )
    table = {}
    for text, samples in texts.items():
        for found in compare_language(dense, others, samples):
            table.setdefault(found.model, {})[f"{text}: {found.name}"] = round(found.value, 4)
    (options.output / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        print(f"{name:42}", *(f"{key} {value:9.3f} " for key, value in row.items() if "loss" not in key))


def replace_dtype(source, dtype):
    return replace(source, provenance=source.provenance.model_copy(update={"dtype": dtype}))


def find(name, count, largest, source, stream, calibration, folder) -> tuple[Unit, ...]:
    """The units that a method removes where that many blocks' worth of parameters has to go."""
    unit, make = METHODS[name]
    recipe = Recipe(model=source.provenance.source, unit=unit.removesuffix("-count"), remove=str(largest))
    problem = pose_problem(recipe, source)
    block = sum(size.parameters for part, size in problem.sizes.units.items() if part.layer == 0)

    def budget(num_blocks: int) -> Budget:
        if unit in ("block", "pair"):
            return Budget("count", num_blocks)
        return Budget("parameters", 1 - num_blocks * block / problem.sizes.parameters)

    # Smaller sets are cut from the path to the largest, where the method makes one.
    nested = unit != "sublayer" and not name.startswith(("uidl", "evolutionary"))
    target = budget(largest if nested else count)
    file = folder / f"{name.replace(' ', '-')}-{largest if nested else count}.json"
    if not file.is_file():
        search, began = make(), time.perf_counter()
        if search.needs == "scores":
            scores, angular = static_scores(stream, calibration, 1)
            table = ScoreTable(
                model=source.provenance, calibration=calibration.description, scores=tuple(scores), angular=angular
            )
            problem = replace(problem, budget=target, scores=table)
        else:
            settings = {"objective": search.objective, "dtype": str(stream.model.dtype)}
            journal = Journal(folder / f"journal-{search.objective}.jsonl", settings)
            ablation = Ablation(stream, calibration, search.objective, journal=journal)
            # A count-driven sublayer search (FinerCut) knows no sizes: it goes on until the parameters are gone.
            posed = replace(problem, budget=target, ablation=ablation)
            problem = Unpriced(**vars_of(posed)) if unit == "sublayer-count" else posed
        steps = search.path(problem)
        file.write_text(json.dumps([step.model_dump(mode="json") for step in steps], indent=1))
        print(f"{name}: {len(steps)} steps, {time.perf_counter() - began:.0f} s", flush=True)
    steps = [Step.model_validate(step) for step in json.loads(file.read_text())]
    num_taken = replace(problem, budget=budget(count)).num_steps(steps)
    return tuple(part for step in steps[:num_taken] for part in step.remove)


class Unpriced(Problem):
    """A problem in which every unit counts the same until the parameters are gone."""

    def saving(self, group, removed):
        return 1.0


def vars_of(problem: Problem) -> dict:
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__ if name != "units"}


if __name__ == "__main__":
    with torch.no_grad():
        main()
