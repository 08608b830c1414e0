"""`depthcut score`: every metric of every unit."""

from __future__ import annotations

from depthcut.commands.options import Given, Output, Overwrite, takes
from depthcut.commands.terminal import print_scores
from depthcut.run.options import CALIBRATION, MODEL


@takes(MODEL, "metric", CALIBRATION, "batch_size", "seed", without=("save_dtype",))
def score(options: Given, output_dir: Output, overwrite: Overwrite = False) -> None:
    """Score every block and sublayer by all metrics of the hidden states, in one pass, and by --metric."""
    from depthcut.run.recipe import Recipe
    from depthcut.run.score import score_model

    print_scores(score_model(Recipe.build(**options), output_dir, overwrite=overwrite))
    print(f"\nwritten to {output_dir / 'scores.json'}")
