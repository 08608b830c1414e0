"""Quantisation on either side of pruning: perplexity of the dense and the pruned model, before, after and between.

    python benchmarks/quality.py --data DIR      # finds the plans
    python benchmarks/quantised.py --data DIR

Removed is what `greedy pairs (default)` found at --steps blocks' worth of parameters on C4; nothing is repaired.
Measured on text that the search did not see.
"""

import argparse
import json
from pathlib import Path

import torch

from depthcut.calibration import parse_source, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.export.quantised import quantise
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.surgery import apply
from depthcut.types import Step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--plans", type=Path, default=Path("out/quality"), help="what quality.py wrote")
    parser.add_argument("--plan", default="greedy-pairs-(default)-8.json")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("out/quantised.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    tokenizer = source.load_tokenizer()
    c4 = parse_source(f"{options.data / 'c4_sample.jsonl.gz'},order=first")
    wikitext = parse_source(f"{options.data / 'wikitext2_raw_test.jsonl.gz'},join=lines,order=first")
    size = {"length": 512, "seed": 0}
    searched = sample_text(c4, tokenizer, num_samples=16, **size, purpose="calibration")
    of_texts = {"num_samples": options.samples, **size, "purpose": "evaluation"}
    texts = {
        "C4, unseen": sample_text(c4, tokenizer, **of_texts, exclude=searched.document_digests),
        "WikiText-2 test": sample_text(wikitext, tokenizer, **of_texts),
    }
    path = [Step.model_validate(step) for step in json.loads((options.plans / options.plan).read_text())]
    removed = frozenset(unit for step in path[: options.steps] for unit in step.remove)
    dense = source.load_model()
    pruned = apply(dense, source.architecture, removed)
    models = {"pruned": lambda: pruned}
    for scheme in ("int8", "nf4"):
        models[scheme] = lambda scheme=scheme: quantise(dense, scheme)
        models[f"pruned, then {scheme}"] = lambda scheme=scheme: quantise(pruned, scheme)
        models[f"{scheme}, then pruned"] = lambda scheme=scheme: apply(
            quantise(dense, scheme), source.architecture, removed
        )
    table = {}
    stream = DecoderStream(dense, source.architecture)
    for name, make in models.items():
        other = DecoderStream(make(), source.architecture)
        for text, samples in texts.items():
            for found in compare_language(stream, {name: other}, samples):
                table.setdefault(found.model, {})[f"{text}: {found.name}"] = round(found.value, 4)
        print(name, table[name], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
