"""Seconds that a repair's map takes where it is summed and solved: an 8B model's feed-forward width on a GPU.

    python benchmarks/moments.py --device cuda
    python benchmarks/moments.py --width 1024 --targets 256 --tokens 4096     # what a CPU does in seconds

Random tokens; `refit`'s five ridges, and inputs of which most outputs take one of two. `from the host` is the same with
sums that lie in the memory of the host and come to the device in panels, as where the device has no room for them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from machine import machine

from depthcut.model.device import chosen_device, device_label, synchronize
from depthcut.repairs.moments import FITTED, HELD_OUT, Moments
from depthcut.repairs.refit import Refit


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=14336)
    parser.add_argument("--targets", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--precise", action="store_true", help="as for float32 models and ridges below a thousandth")
    parser.add_argument("--output", type=Path, default=Path("out/moments.json"))
    options = parser.parse_args(words)

    if options.tokens < 4 * options.batch:
        sys.exit("every fourth batch chooses the ridges; give at least 4 times as many --tokens as --batch")

    device = torch.device(chosen_device(options.device))
    rows = [row(device, options, on_host=False)]
    if device.type != "cpu":
        rows.append(row(device, options, on_host=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "device": device_label(device), "rows": rows}
    options.output.write_text(json.dumps(found, indent=1) + "\n")


def row(device: torch.device, options: argparse.Namespace, *, on_host: bool) -> dict[str, object]:
    """Summing and solving one map."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(options.width, options.targets, generator=generator).to(device) / options.width**0.5
    noise = torch.logspace(-1, 1, options.targets).to(device)
    sums = Moments(options.width, options.targets, precise=options.precise)
    seconds = 0.0
    for index in range(options.tokens // options.batch):
        inputs = torch.randn(options.batch, options.width, generator=generator).to(device)
        targets = inputs @ truth + noise * torch.randn(options.batch, options.targets, generator=generator).to(device)
        weights = torch.ones(options.batch, device=device)
        synchronize(device)
        began = time.perf_counter()
        sums.add(inputs, targets, weights, HELD_OUT if index % 4 == 3 else FITTED)
        synchronize(device)
        seconds += time.perf_counter() - began
        if on_host and not index:
            sums._leave()
    began = time.perf_counter()
    matrix, left = sums.solve(Refit().ridges)
    synchronize(device)
    found = {
        "sums": "from the host" if on_host else "on the device",
        "width": options.width,
        "targets": options.targets,
        "tokens": options.tokens,
        "summing, s": round(seconds, 3),
        "solving, s": round(time.perf_counter() - began, 3),
        "error left": round(float(left.mean()), 4),
        "dtype": str(matrix.dtype),
    }
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
