"""Kills a search with SIGKILL at random moments and resumes it; its plan must be the uninterrupted run's.

    python benchmarks/kill_search.py --kills 20

Runs the command line on a real model. Says how often it was killed, and compares the steps of the two plans.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def command(output: Path, options: argparse.Namespace) -> list[str]:
    size = f"--calibration-samples {options.samples} --calibration-length {options.length}"
    small = "--evaluation-samples 1 --evaluation-length 64 --no-speed"
    words = f"-m depthcut prune {options.model} --unit sublayer --remove {options.remove} {size} {small}"
    return [sys.executable, *words.split(), "-o", str(output)]


def wait_for_progress(child: subprocess.Popen[bytes], journal: Path) -> None:
    """Returns when the child has added a result to the journal, or has ended."""
    size = journal.stat().st_size if journal.exists() else 0
    while child.poll() is None and not (journal.exists() and journal.stat().st_size > size):
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--remove", default="3")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="64")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="most that a run goes on after its first new result")
    parser.add_argument("--output", type=Path, default=Path("out/kill"))
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    whole, killed = options.output / "whole", options.output / "killed"

    began = time.perf_counter()
    subprocess.run(command(whole, options), check=True, capture_output=True)
    duration = time.perf_counter() - began
    print(f"uninterrupted: {duration:.0f} s")

    chance, kills = random.Random(0), 0
    while not killed.exists():
        child = subprocess.Popen([*command(killed, options), "--resume"], stdout=subprocess.DEVNULL)
        if kills < options.kills:
            wait_for_progress(child, options.output / ".killed.unfinished" / "journal.jsonl")
            time.sleep(chance.uniform(0, options.seconds))
            kills += child.poll() is None
            child.kill()
        assert child.wait() in (0, -signal.SIGKILL), child.returncode
    steps = [json.loads((folder / "plan.json").read_text())["steps"] for folder in (whole, killed)]
    print(f"killed {kills} times; plans equal: {steps[0] == steps[1]}")
    found = {"kills": kills, "equal plans": int(steps[0] == steps[1])}
    (options.output / "found.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(steps[0] != steps[1])


if __name__ == "__main__":
    main()
