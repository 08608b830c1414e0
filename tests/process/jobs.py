"""The command line under torchrun, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import example_run

SMALL = {"calibration_samples": 6, "calibration_length": 16, "evaluation_samples": 2, "evaluation_length": 16}
OPTIONS = SMALL | {"dtype": "float32", "device": "cpu", "repair": "none", "speed": False, "remove": "2"}


def torchrun(num_ranks, words, script=("-m", "depthcut"), **options):
    """A job of ranks on this machine, as a running process."""
    flags = ["--nproc-per-node", str(num_ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    for name, value in options.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *flags, *map(str, script), *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def words(model, output, **options):
    """The options of `prune` as on the command line."""
    return ["prune", str(model), "-o", str(output), *map(str, example_run.words(OPTIONS | options))]
