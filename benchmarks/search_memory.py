"""Peak memory of a search whose dense probabilities alone would take 3.2 GB: 32 x 512 tokens on SmolLM2.

    python benchmarks/search_memory.py

Runs the first removals of the default search and prints the process's peak resident memory.
"""

import argparse
import json
import resource
from pathlib import Path

from depthcut.ablation.ablation import Ablation
from depthcut.ablation.memory import DEFAULT_MEMORY_BUDGET
from depthcut.calibration import parse_source, sample_text
from depthcut.methods.budget import Budget
from depthcut.methods.greedy import Greedy
from depthcut.methods.problem import Problem
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import measure_sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of the calibration text")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--remove", default="1")
    parser.add_argument("--unit", default="block")
    parser.add_argument("--memory-budget", type=int, default=DEFAULT_MEMORY_BUDGET, help="bytes")
    parser.add_argument("--output", type=Path, default=Path("out/search_memory.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    samples = sample_text(
        parse_source(options.data),
        source.load_tokenizer(),
        num_samples=options.samples,
        length=options.length,
        seed=0,
        purpose="calibration",
    )
    stream = DecoderStream(source.load_model(), source.architecture)
    problem = Problem(
        architecture=source.architecture,
        num_blocks=len(stream.blocks),
        sizes=measure_sizes(stream.model, source.architecture),
        unit=options.unit,
        budget=Budget.parse(options.remove, None),
        ablation=Ablation(stream, samples, "kl", memory_budget=options.memory_budget),
    )
    steps = Greedy(swap=False).path(problem)
    vocabulary = stream.model.get_output_embeddings().weight.shape[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    dense = options.samples * options.length * vocabulary * 4
    print(
        f"{len(steps)} removals on {options.samples} x {options.length} tokens, budget {options.memory_budget:,} bytes:"
    )
    print(f"peak resident memory {peak / 1e9:.2f} GB; dense log-probabilities alone {dense / 1e9:.2f} GB")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"peak resident GB": peak / 1e9, "dense log-probabilities GB": dense / 1e9}
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
