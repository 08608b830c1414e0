"""What searches on models of 70 and of 400 billion parameters would take: the tables of docs/planning.md.

    python benchmarks/planning.py

Nothing is loaded: the figures follow from configurations, and hours from data sheets (`--device-profile`). Rewrites the
tables between the page's marks.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from depthcut.preview.device_profiles import find_profile
from depthcut.preview.dry_run import Preview, preview
from depthcut.preview.estimate import Phase, RunEstimate
from depthcut.run.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
SEQUENCES, LENGTH = 10, 256

MODELS = {
    "Llama-3-70B, 48 of 160 sublayers": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "A mixture of 128 experts, 8 a token, 37 of 124 sublayers": {
        "model_type": "qwen3_moe",
        "hidden_size": 6144,
        "intermediate_size": 8192,
        "moe_intermediate_size": 2560,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 62,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}
DEVICES = (("h100", 1), ("h100", 8))


def recipe(folder: str, strategy: str) -> Recipe:
    return Recipe.build(
        model=folder,
        unit="sublayer",
        remove="30%",
        search=strategy,
        repair="none",
        calibration_samples=SEQUENCES,
        calibration_length=LENGTH,
    )


def search_of(estimate: RunEstimate) -> Phase:
    return next(phase for phase in estimate.phases if phase.name == "search")


def naive(found: Preview) -> Phase:
    """Every candidate of every round by a forward pass of its own, one candidate after the other."""
    units, steps = len(found.problem.units), found.problem.likely_steps
    kept = sum((units - i) * (units - i - 1) for i in range(steps))
    score = found.estimate.phases[1]
    exhaustive = search_of(found.estimate)
    logits = exhaustive.flops - exhaustive.unit_evaluations / score.unit_evaluations * score.flops
    return replace(
        exhaustive,
        forward_passes=kept / units,
        unit_evaluations=SEQUENCES * kept,
        flops=SEQUENCES * kept / score.unit_evaluations * score.flops + logits,
        sweeps=kept / units,
        weights_read=kept / units * score.weights_read,
    )


def table(name: str, config: dict[str, object]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        found = {
            strategy: preview(recipe(folder, strategy), device_profile="h100") for strategy in ("exhaustive", "lazy")
        }
    exhaustive, lazy = found["exhaustive"], found["lazy"]
    estimate = exhaustive.estimate
    active = exhaustive.estimate.phases[1].flops / SEQUENCES / LENGTH / 2
    lines = [
        f"**{name}**: {exhaustive.problem.sizes.parameters / 1e9:.0f} billion parameters, "
        f"{active / 1e9:.0f} billion of the blocks' at work for a token, {estimate.weight_bytes / 1e9:.0f} GB.",
        "",
        "| search | forward passes | unit evaluations | PFLOP | 1 × H100, hours | 8 × H100, hours |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows = {
        "naive: a forward pass for each candidate": (naive(exhaustive), estimate),
        "exhaustive with the prefix cache": (search_of(estimate), estimate),
        "lazy with the prefix cache (the default)": (search_of(lazy.estimate), lazy.estimate),
    }
    for label, (phase, of_run) in rows.items():
        hours = []
        for device, count in DEVICES:
            profile = find_profile(device, exhaustive.source.dtype, 0, 0)
            comes_in = "" if of_run.fits(profile, count) else "*"
            hours.append(f"{of_run.seconds(phase, profile, count) / 3600:.3g}{comes_in}")
        lines.append(
            f"| {label} | {phase.forward_passes:,.0f} | {phase.unit_evaluations:,} | {phase.flops / 1e15:,.0f} | "
            + " | ".join(hours)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    tables = "\n".join(table(name, config) for name, config in MODELS.items())
    PAGE.write_text(before + BEGIN + tables + END + rest.split(END)[1], encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
