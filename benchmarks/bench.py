"""Every benchmark at a size that fits a small machine, one after the other: JSON and one table in out/bench.

    python benchmarks/bench.py                       # what needs no data
    python benchmarks/bench.py --data DIR            # all
    python benchmarks/bench.py --only static_scores,speed

Ratios are of two things timed in one run of one benchmark, so that a busy machine blurs but does not bend them; the
table names the machine and how busy it was. DIR holds c4_sample.jsonl.gz and wikitext2_raw_test.jsonl.gz.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import machine, told
from results import flatten

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """One benchmark at its small size.

    Attributes:
        claims: what its numbers are about.
        words: its options; OUT stands for the folder of results, DATA for that of data.
        file: where in OUT its numbers are.
        shown: endings of the names of those numbers that the table shows.
    """

    name: str
    claims: str
    words: str
    file: str
    shown: tuple[str, ...]

    @property
    def needs_data(self) -> bool:
        return "DATA" in self.words


BENCHMARKS = (
    Benchmark(
        "static_scores",
        "all static metrics together cost about one forward pass",
        "--samples 2 --length 256 --rounds 5 --output OUT/static_scores.json",
        "static_scores.json",
        ("forward", "decoder"),
    ),
    Benchmark(
        "search_cost",
        "prefix reuse halves a search, lazy search takes a tenth of the naive loop",
        "--samples 4 --length 64 --unit block --remove 4 --output OUT/search_cost.json "
        "--variants=lazy~(default),plain~lazy,prefix~reuse",
        "search_cost.json",
        ("share_of_naive",),
    ),
    Benchmark(
        "search_memory",
        "a search's memory is bounded, whatever the text takes",
        "--samples 8 --length 256 --output OUT/search_memory.json",
        "search_memory.json",
        ("GB",),
    ),
    Benchmark(
        "large_model",
        "a model larger than its memory is scored, pruned and saved",
        "--gigabytes 1 --memory-budget 800MB --runs ShortGPT,~25~% --folder OUT/large --output OUT/large_model.json",
        "large_model.json",
        ("GB",),
    ),
    Benchmark(
        "kill_search",
        "a killed search goes on and finds the same plan",
        "--kills 3 --remove 2 --samples 4 --length 32 --output OUT/kill",
        "kill/found.json",
        ("kills", "equal plans"),
    ),
    Benchmark(
        "kill_ranks",
        "a job whose ranks are killed goes on, finds the same plan and evaluates nothing twice",
        "--kills 2 --remove 2 --samples 4 --length 32 --output OUT/kill-ranks",
        "kill-ranks/found.json",
        ("killed ranks", "killed jobs", "equal plans", "repeated"),
    ),
    Benchmark(
        "estimates",
        "what --dry-run says is what a search takes",
        "--models smollm2 --samples 4 --length 64 --remove 1 --output OUT/estimates.json",
        "estimates.json",
        ("ratio",),
    ),
    Benchmark(
        "moments",
        "a repair's map is summed and solved where the model is",
        "--width 1024 --targets 256 --tokens 2048 --batch 512 --output OUT/moments.json",
        "moments.json",
        ("summing, s", "solving, s"),
    ),
    Benchmark(
        "gpu",
        "what a device makes of a search",
        "--runs 1b --toy --dtype float32 --samples 2 --length 64 --output OUT/gpu.json",
        "gpu.json",
        ("seconds a candidate", "share of a product's rate here"),
    ),
    Benchmark(
        "speed",
        "what is removed is gained in the engines",
        "--engines transformers,llama.cpp --removals blocks --prompt-tokens 128 --decode-tokens 16 --rounds 3 "
        "--output OUT/speed.json",
        "speed.json",
        ("prompt_speedup", "short_decode_speedup"),
    ),
    Benchmark(
        "quality",
        "methods at equal calibration and equal parameters",
        "--data DATA --samples 4 --length 256 --blocks 4 --methods shortgpt,uidl,greedy~blocks,greedy~pairs~(default) "
        "--output OUT/quality",
        "quality/table.json",
        ("perplexity",),
    ),
    Benchmark(
        "repair",
        "repairs of the same removal at equal text",
        "--data DATA --plans OUT/quality --plan greedy-pairs-(default)-4.json --steps 4 --samples 8 "
        "--repairs none;refit --output OUT/repair.json",
        "repair.json",
        ("perplexity",),
    ),
    Benchmark(
        "healing",
        "what a few updates heal",
        "--data DATA --steps 8 --repairs none,lora,partial --output OUT/healing.json",
        "healing.json",
        ("WikiText-2 test: perplexity", "seconds"),
    ),
    Benchmark(
        "draft",
        "expected acceptance as a draft is the real one",
        "--remove 0.1 --method one-shot --search-samples 2 --repair-samples 4 --prompts 2 --tokens 16 "
        "--output OUT/draft.json",
        "draft.json",
        ("expected", "real"),
    ),
    Benchmark(
        "quantised",
        "quantisation before and after pruning",
        "--data DATA --plans OUT/quality --plan greedy-pairs-(default)-4.json --samples 2 --output OUT/quantised.json",
        "quantised.json",
        ("WikiText-2 test: perplexity",),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--only", help="names joined with commas")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [each.name for each in BENCHMARKS] if options.only is None else options.only.split(",")
    rows, failed = [], []
    for benchmark in BENCHMARKS:
        if benchmark.name not in wanted:
            continue
        if benchmark.needs_data and options.data is None:
            print(f"{benchmark.name}: left out, since it needs --data (make bench DATA=DIR)", flush=True)
            continue
        words = [
            word.replace("~", " ").replace("DATA", str(options.data)).replace("OUT", str(options.output))
            for word in benchmark.words.split()
        ]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(HERE / f"{benchmark.name}.py"), *words], capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        print(f"{benchmark.name}: {seconds:.0f} s{'' if done.returncode == 0 else ', failed'}", flush=True)
        if done.returncode:
            failed.append(benchmark.name)
            print(done.stderr[-2000:], flush=True)
            continue
        found = flatten(json.loads((options.output / benchmark.file).read_text()))
        shown = [f"{name} {value:.4g}" for name, value in found.items() if name.endswith(benchmark.shown)]
        rows.append((benchmark, seconds, shown))
    table = ["| benchmark | about | found | seconds |", "|---|---|---|---:|"]
    table += [f"| {each.name} | {each.claims} | {'; '.join(shown)} | {took:.0f} |" for each, took, shown in rows]
    text = "\n".join([*table, "", told(machine()), ""])
    (options.output / "table.md").write_text(text)
    print(text)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
