"""Kills ranks of a torchrun job, or the whole job, with SIGKILL at random moments; its plan must be one process's.

    python benchmarks/kill_ranks.py --kills 20

Every other kill is of one rank, which torchrun then starts anew with the others; the rest are of the whole job, which
is given again with --resume and another number of ranks. Says how many kills there were, whether the plans are equal
byte for byte, and how many values were evaluated twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

RESTARTS = 1000


def options_of(model: str, options: argparse.Namespace) -> list[str]:
    size = f"--calibration-samples {options.samples} --calibration-length {options.length} --seed 0"
    small = "--evaluation-samples 1 --evaluation-length 64 --no-speed --repair none --device cpu"
    return f"prune {model} --unit sublayer --remove {options.remove} {size} {small}".split()


def start(num_ranks: int, words: list[str]) -> subprocess.Popen[bytes]:
    flags = f"--nproc-per-node {num_ranks} --rdzv-backend c10d --rdzv-endpoint localhost:0 --max-restarts {RESTARTS}"
    command = [sys.executable, "-m", "torch.distributed.run", *flags.split(), "-m", "depthcut", *words, "--resume"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines_in(folder: Path) -> list[str]:
    """The results in all journals of the unfinished run."""
    texts = [file.read_text() for file in folder.glob("journal*.jsonl")]
    return [line for text in texts for line in text.split("\n")[1:-1]]


def wait_for_progress(job: subprocess.Popen[bytes], folder: Path) -> None:
    """Returns when a rank has found something new, or the job has ended."""
    known = len(lines_in(folder))
    while job.poll() is None and len(lines_in(folder)) <= known:
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--remove", default="3")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="64")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="most that a run goes on after its first new result")
    parser.add_argument("--output", type=Path, default=Path("out/kill-ranks"))
    options = parser.parse_args()
    # Sums of another number of threads may round differently.
    os.environ["OMP_NUM_THREADS"] = "1"
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    whole, killed = options.output / "whole", options.output / "killed"
    folder = options.output / ".killed.unfinished"
    words = options_of(options.model, options)
    subprocess.run([sys.executable, "-m", "depthcut", *words, "-o", str(whole)], check=True, capture_output=True)

    chance, of_ranks, of_jobs = random.Random(0), 0, 0
    repeated: set[str] = set()
    while not killed.exists():
        job = start(chance.choice([2, 3]), [*words, "-o", str(killed)])
        while of_ranks + of_jobs < options.kills and job.poll() is None:
            wait_for_progress(job, folder)
            time.sleep(chance.uniform(0, options.seconds))
            repeated |= {line for line, count in Counter(lines_in(folder)).items() if count > 1}
            ranks = psutil.Process(job.pid).children() if job.poll() is None else []
            if not ranks:
                break
            if of_ranks <= of_jobs:
                of_ranks += 1
                chance.choice(ranks).kill()
                psutil.wait_procs(ranks, timeout=120)
                continue
            of_jobs += 1
            for process in [psutil.Process(job.pid), *ranks]:
                process.send_signal(signal.SIGKILL)
            job.wait()
        job.wait()
    equal = (whole / "plan.json").read_bytes() == (killed / "plan.json").read_bytes()
    print(f"killed {of_ranks} ranks and {of_jobs} jobs; plans equal: {equal}; evaluated twice: {len(repeated)}")
    found = {"killed ranks": of_ranks, "killed jobs": of_jobs, "equal plans": int(equal), "repeated": len(repeated)}
    (options.output / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(not equal or bool(repeated))


if __name__ == "__main__":
    main()
