"""`depthcut score`: every static metric of every unit."""

from __future__ import annotations

import typer

from depthcut.commands.options import (
    BatchSize,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Device,
    Dtype,
    Metric,
    Model,
    Output,
    Overwrite,
    Revision,
    Seed,
    TrustRemoteCode,
    recipe_of,
)
from depthcut.commands.terminal import print_scores


def score(
    context: typer.Context,
    model: Model,
    output_dir: Output,
    metric: Metric = None,
    calibration: Calibration = "stdlib",
    calibration_samples: CalibrationSamples = 16,
    calibration_length: CalibrationLength = 512,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 4,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Score every block and sublayer by every metric of the stream in one pass, and by --metric; writes scores.json."""
    from depthcut.run.score import score_model

    recipe = recipe_of(context)
    print_scores(score_model(recipe, output_dir, overwrite=overwrite))
    print(f"\nwritten to {output_dir / 'scores.json'}")
