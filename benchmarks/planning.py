"""What searches on large models take, and what of them fits where: the tables of docs/planning.md and docs/gpus.md.

    python benchmarks/planning.py

Nothing is loaded: the figures follow from configurations, and hours from data sheets (`--device-profile`), as
`--dry-run` gives them. Rewrites the tables between the pages' marks.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from depthcut.commands.terminal import duration_text
from depthcut.preview.device_profiles import find_profile
from depthcut.preview.dry_run import Preview, preview
from depthcut.preview.estimate import Phase, RunEstimate
from depthcut.run.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"
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
LLAMA_8B = MODELS["Llama-3-70B, 48 of 160 sublayers"] | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LLAMA_70B = MODELS["Llama-3-70B, 48 of 160 sublayers"]
PLACES = (
    ("Llama-3-8B", LLAMA_8B, "rtx4090", 1),
    ("Llama-3-8B", LLAMA_8B, "h100", 1),
    ("Llama-3-70B", LLAMA_70B, "a100", 1),
    ("Llama-3-70B", LLAMA_70B, "h100", 1),
    ("Llama-3-70B", LLAMA_70B, "h100", 8),
)
"""What docs/gpus.md tells of: whole runs with the defaults, and a quarter of the blocks."""


def recipe(folder: str, strategy: str) -> Recipe:
    return Recipe.build(
        model=folder,
        unit="sublayer",
        remove="30%",
        method=f"greedy,strategy={strategy}",
        repair="none",
        calibration_samples=SEQUENCES,
        calibration_length=LENGTH,
    )


def search_of(estimate: RunEstimate) -> Phase:
    return next(phase for phase in estimate.phases if phase.name == "search")


def naive(found: Preview, num_devices: int) -> Phase:
    """Every candidate of every round by a forward pass of its own, one candidate after the other on each device."""
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
        sweeps=kept / units / num_devices,
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
        "naive: a forward pass for each candidate": (partial(naive, exhaustive), estimate),
        "exhaustive with the prefix cache": (lambda _: search_of(estimate), estimate),
        "lazy with the prefix cache (the default)": (lambda _: search_of(lazy.estimate), lazy.estimate),
    }
    for label, (phase_on, of_run) in rows.items():
        hours = []
        for device, count in DEVICES:
            phase = phase_on(count)
            profile = find_profile(device, exhaustive.source.dtype, 0, 0)
            comes_in = "" if of_run.held_bytes is None else "*"
            hours.append(f"{of_run.seconds(phase, profile, count) / 3600:.3g}{comes_in}")
        lines.append(
            f"| {label} | {phase.forward_passes:,.0f} | {phase.unit_evaluations:,} | {phase.flops / 1e15:,.0f} | "
            + " | ".join(hours)
            + " |"
        )
    return "\n".join(lines) + "\n"


def places() -> str:
    """What of a model lies on a device, what comes in, and the hours of a run with the defaults."""
    lines = [
        "| model | device | weights | there at a time | come in, a sweep | memory taken | search | whole run |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, config, device, count in PLACES:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            given = Recipe.build(model=folder, remove="25%")
            found = preview(given, device_profile=device, num_devices=count)
        run = found.estimate
        held = run.weight_bytes if run.held_bytes is None else run.held_bytes
        search = run.seconds(search_of(run), found.device, count)
        cells = [
            name,
            f"{count} × {device}",
            f"{run.weight_bytes / 1e9:.0f} GB",
            f"{held / 1e9:.0f} GB",
            f"{run.coming_bytes / 1e9:.0f} GB" if run.coming_bytes else "nothing",
            f"{run.memory_bytes(found.device) / 1e9:.0f} GB",
            duration_text(search),
            duration_text(3600 * run.hours(found.device, count)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(page: str, tables: str) -> None:
    """Puts tables between a page's marks."""
    file = DOCS / page
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    file.write_text(before + BEGIN + tables + END + rest.split(END)[1], encoding="utf-8")
    print(tables)


def main() -> None:
    write("planning.md", "\n".join(table(name, config) for name, config in MODELS.items()))
    write("gpus.md", places())


if __name__ == "__main__":
    main()
