"""A run on a tiny model whose block `IDENTITY` passes the stream on as it is, and how its files are read."""

import json
import re

import torch
from transformers import AutoModelForCausalLM

import tiny
from depthcut.preview.dry_run import preview as look_ahead
from depthcut.run.recipe import Recipe

FAMILIES = ("llama", "gemma3_text", "gpt2", "qwen2")
IDENTITY = 3
TEXTS = {"calibration_samples": 2, "calibration_length": 16, "evaluation_samples": 2, "evaluation_length": 16}
OPTIONS = TEXTS | {"method": "shortgpt", "unit": "block", "remove": "2", "speed": False}
WRITTEN = {
    "README.md",
    "config.json",
    "generation_config.json",
    "layer_map.json",
    "model.safetensors",
    "plan.json",
    "recipe.yaml",
    "report.html",
    "results.json",
    "scores.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

PROGRESS = re.compile("(writing text, tokens|scoring|searching|evaluating|timing|Loading weights): ")
"""How a line of progress begins."""


def words(options):
    """Options of the Python functions as words of the command line."""
    given = []
    for name, value in options.items():
        option = name.replace("_", "-")
        given += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", value]
    return given


def read(folder, name="plan.json"):
    return json.loads((folder / name).read_text())


def preview(model, **changes):
    """The plan of a run that writes nothing."""
    return look_ahead(Recipe.build(model=str(model), **(OPTIONS | changes))).plan


def without_cost(plan):
    return plan | {"cost": None}


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.samples().input_ids).logits


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()
