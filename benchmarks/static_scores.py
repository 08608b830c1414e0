"""What all static metrics together cost: the scoring pass against a plain forward pass over the same tokens.

    python benchmarks/static_scores.py

Both run in turn, several times, in one process; the ratio is the median over rounds of the two times of a round. It is
given against a whole forward pass (with the vocabulary projection, which scoring does not need) and the decoder alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from depthcut.calibration import parse_source, sample_text
from depthcut.importance.static import static_scores
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of the text")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("out/static_scores.json"))
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
    model = source.load_model()
    stream = DecoderStream(model, source.architecture)
    ways = {
        "forward": lambda: [model(input_ids=ids[None], use_cache=False) for ids in samples.input_ids],
        "decoder": lambda: [model.base_model(input_ids=ids[None], use_cache=False) for ids in samples.input_ids],
        "scores": lambda: static_scores(stream, samples, batch_size=1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(options.rounds + 1):
        for name, work in ways.items():
            taken = seconds(work)
            if index:
                times[name].append(taken)
    ratios = {}
    for name in ("forward", "decoder"):
        ratios[name] = ratio = statistics.median(s / f for s, f in zip(times["scores"], times[name], strict=True))
        print(f"all static metrics = {ratio:.3f} x {name} ({options.samples} x {options.length} tokens, ", end="")
        print(f"{torch.get_num_threads()} threads, {options.rounds} rounds)")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"times of a": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
