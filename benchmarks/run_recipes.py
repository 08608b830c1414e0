"""Runs the small variant of every recipe to its end, one after the other, and writes docs/recipes.md with the times.

    python benchmarks/run_recipes.py                 # runs what has no time yet
    python benchmarks/run_recipes.py --only finercut-llama-3-8b --again
    python benchmarks/run_recipes.py --only none     # writes the page only

Times lie in benchmarks/results/recipes.json, so that the page follows from committed files.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from machine import machine, told

from depthcut.recipes import PackagedRecipe, packaged_recipes

TIMES = Path(__file__).parent / "results" / "recipes.json"
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
HEAD = """\
# Recipes

A recipe is a run as one file. depthcut carries one for every result of the papers that it can run, with the paper's own
model, data and settings, and one for every common use. `depthcut ls` lists them:

    depthcut run finercut-llama-3-8b -o out/finercut
    depthcut run finercut-llama-3-8b --small -o out/try
    depthcut run my-recipe.yaml -o out/mine
    depthcut validate half-the-kv-cache

`--small` runs the variant that stands under `small:` in the same file: the options that it replaces make it a run of a
minute or two on a CPU, offline, on SmolLM2-135M or Gemma-3-270M. It shows that the recipe works, not that the paper is
right; for that see [reproduction](reproduction.md).

A file holds the options of `depthcut prune` under their names (`depthcut schema recipe`), or `study: sweep`, `compare`
or `inspect` and the options of that study. In studies a metric's name stands for ranking by it, one shot. To change a
recipe, copy it from the folder `depthcut/recipes` of the installation.

What the papers show and no recipe can run is in [reproduction](reproduction.md) with the reason: RWKV (its blocks are
no residual branches on one stream), Qwen 1 and Baichuan2 (their code was made for an older transformers), GPTQ (NF4 and
int8 stand in for it).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names joined with commas; none runs nothing")
    parser.add_argument("--again", action="store_true", help="also what has a time already")
    parser.add_argument("--output", type=Path, default=Path("out/recipes"))
    options = parser.parse_args()
    recipes = packaged_recipes()
    times = json.loads(TIMES.read_text()) if TIMES.is_file() else {}
    times = {recipe.name: times[recipe.name] for recipe in recipes if recipe.name in times}
    wanted = [recipe.name for recipe in recipes] if options.only is None else options.only.split(",")
    failed = []
    for recipe in recipes:
        if recipe.name not in wanted or (recipe.name in times and not options.again):
            continue
        command = ["-m", "depthcut", "run", recipe.name, "--small", "-o", str(options.output / recipe.name)]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *command, "--overwrite"], capture_output=True, text=True)
        seconds = time.perf_counter() - began
        print(f"{recipe.name:34} {seconds:6.1f} s{'' if done.returncode == 0 else '   FAILED'}", flush=True)
        if done.returncode:
            failed.append(recipe.name)
            print(done.stderr[-2000:], flush=True)
            continue
        times[recipe.name] = {"seconds": round(seconds, 1), "machine": machine()}
        TIMES.write_text(json.dumps(times, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(recipes, times))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def page(recipes: list[PackagedRecipe], times: dict[str, dict]) -> str:
    """docs/recipes.md."""
    parts = [HEAD]
    for title, word in (("Results of papers", "Reproduces"), ("Uses", "Use")):
        parts.append(f"## {title}\n")
        parts += [_entry(recipe, word) for recipe in recipes if word in recipe.notes]
    return "\n".join([*parts, *_table(recipes, times)]) + "\n"


def _entry(recipe: PackagedRecipe, word: str) -> str:
    lines = [f"### {recipe.name}\n", f"{recipe.summary}\n"]
    lines += [f"- **{name}**: {recipe.notes[name]}" for name in (word, "Cost", "Expect", "Small")]
    return "\n".join(lines) + "\n"


def _table(recipes: list[PackagedRecipe], times: dict[str, dict]) -> list[str]:
    lines = ["## Times of the small variants\n", "| recipe | seconds | load |", "|---|---:|---:|"]
    for recipe in recipes:
        time_of = times.get(recipe.name)
        if time_of:
            lines.append(f"| {recipe.name} | {time_of['seconds']:.0f} | {time_of['machine']['load']} |")
    found = list(times.values())
    if found:
        lines.append(f"| together | {sum(each['seconds'] for each in found):.0f} | |")
        on = told(found[0]["machine"] | {"load": "as in the table"})
        lines += ["", f"Written by `make recipes` on {on}. The load counts other work on the same cores."]
    return lines


if __name__ == "__main__":
    main()
