"""Every repair in closed form at equal text: perplexity and KL to dense on text that neither search nor repair saw.

    python benchmarks/quality.py --data DIR      # finds the plans
    python benchmarks/repair.py --data DIR

Removed is what `greedy pairs (default)` found at 4 and 8 of 30 blocks' worth of parameters, on the first 16 x 512
tokens of the C4 sample; repairs see --samples x 512 tokens from the same start. Measured in float32 as in quality.py.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from depthcut.calibration import parse_source, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage, parse_repairs, repair_and_judge
from depthcut.surgery import apply
from depthcut.types import Step

JUDGING_SHARE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--plans", type=Path, default=Path("out/quality"), help="what quality.py wrote")
    parser.add_argument("--plan", default="greedy-pairs-(default)-8.json")
    parser.add_argument("--steps", default="4,8")
    parser.add_argument("--repairs", default="none;bias;low-rank;linear;refit", help="joined with semicolons")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--mixed", action="store_true", help="half of them from the training part of WikiText-2")
    parser.add_argument("--dtype", default="auto", help="of the models; the tables are of float32")
    parser.add_argument("--output", type=Path, default=Path("out/repair.json"))
    options = parser.parse_args()

    source = resolve(options.model, dtype=options.dtype)
    tokenizer = source.load_tokenizer()
    c4 = parse_source(f"{options.data / 'c4_sample.jsonl.gz'},order=first")
    wikitext = parse_source(f"{options.data / 'wikitext2_raw_test.jsonl.gz'},join=lines,order=first")
    size = {"length": 512, "seed": 0}
    train = f"{options.data / 'wikitext2_raw_train_part.jsonl.gz'},join=lines"
    seen = parse_source(f"{options.data / 'c4_sample.jsonl.gz'}+{train}") if options.mixed else c4
    samples = sample_text(seen, tokenizer, num_samples=options.samples, **size, purpose="calibration")
    texts = {
        "C4, unseen": sample_text(
            c4, tokenizer, num_samples=16, **size, purpose="evaluation", exclude=samples.document_digests
        ),
        "WikiText-2 test": sample_text(wikitext, tokenizer, num_samples=32, **size, purpose="evaluation"),
    }
    text, held_out = samples.split(options.samples - max(1, options.samples // JUDGING_SHARE))
    dense = DecoderStream(source.load_model(), source.architecture)
    path = [Step.model_validate(step) for step in json.loads((options.plans / options.plan).read_text())]
    rows = []
    for count in map(int, options.steps.split(",")):
        removed = frozenset(unit for step in path[:count] for unit in step.remove)
        cut = apply(dense.model, source.architecture, removed)
        for name in options.repairs.split(";"):
            began, model, records = time.process_time(), cut, []
            for method, repair in parse_repairs(name):
                damage = Damage(dense, removed, text, held_out, 2**31)
                model, record = repair_and_judge(method, repair, damage, model)
                records.append(record)
            row = {"removed": count, "repair": name, "processor seconds": round(time.process_time() - began)}
            row["kept"] = all(record.kept for record in records)
            if records:
                row["held-out KL"] = [round(records[0].before, 4), round(records[-1].after, 4)]
            for where, unseen in texts.items():
                for found in compare_language(dense, {"model": DecoderStream(model, source.architecture)}, unseen):
                    if found.model == "model" and found.name != "loss":
                        row[f"{where}: {found.name}"] = round(found.value, 4)
            rows.append(row)
            print(row, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
