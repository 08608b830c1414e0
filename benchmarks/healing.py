"""What a few updates heal: LoRA, the head with the last blocks, and distillation, each from the same pruned model.

    python benchmarks/healing.py --data DIR

Removed are the --blocks of least Block Influence. All train on the same first 1024 x 128 tokens of the C4 sample, with
the defaults of each repair but for the number and size of updates; measured in float32 on C4 that none of them saw
and on the first 32 x 512 tokens of WikiText-2 test, its rows joined by the end token.
"""

import argparse
import json
import time
from pathlib import Path

from depthcut.calibration import parse_source, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, parse_repairs
from depthcut.surgery import apply

NUM_TRAINING, LENGTH = 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--blocks", default="12,13,14,15,16,17,25,26")
    parser.add_argument("--repairs", default="none,lora,partial,distill")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("out/healing.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    tokenizer = source.load_tokenizer()
    c4 = parse_source(f"{options.data / 'c4_sample.jsonl.gz'},order=first")
    wikitext = parse_source(f"{options.data / 'wikitext2_raw_test.jsonl.gz'},order=first")
    train = sample_text(c4, tokenizer, num_samples=NUM_TRAINING, length=LENGTH, seed=0, purpose="calibration")
    unseen = {"num_samples": 64, "length": LENGTH, "seed": 0, "exclude": train.document_digests}
    texts = {
        "C4, unseen": sample_text(c4, tokenizer, purpose="evaluation", **unseen),
        "WikiText-2 test": sample_text(wikitext, tokenizer, num_samples=32, length=512, seed=0, purpose="evaluation"),
    }
    dense = DecoderStream(source.load_model(), source.architecture)
    layers = {int(layer) for layer in options.blocks.split(",")}
    removed = frozenset(
        unit for unit in source.architecture.units(source.provenance.num_blocks) if unit.layer in layers
    )
    pruned = apply(dense.model, source.architecture, removed)
    damage = Damage(dense, removed, train, texts["C4, unseen"], 2**30, batch_size=options.batch_size)
    table: dict[str, dict[str, float]] = {}
    for name in options.repairs.split(","):
        began, model = time.perf_counter(), pruned
        if name != "none":
            ((_, repair),) = parse_repairs(f"{name},steps={options.steps},batch_size={options.batch_size}")
            model = repair.repair(damage, pruned).model
        table[name] = {"seconds": round(time.perf_counter() - began, 1)}
        for text, samples in texts.items():
            for found in compare_language(dense, {name: DecoderStream(model, source.architecture)}, samples):
                table.setdefault(found.model, {})[f"{text}: {found.name}"] = round(found.value, 4)
        print(name, table[name], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
