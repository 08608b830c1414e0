"""Every type that transformers has a causal or an image-and-text model of: how it is supported, or why it is not."""

from __future__ import annotations

import functools
import re

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import tiny
from depthcut.model.architectures import FAMILIES, REFUSED, family_type
from depthcut.model.wrappers import is_wrapper

MAPPINGS = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "image": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
GOAL = 0.9
"""Share of the causal types that have to be supported."""

CAUSAL_HEAD = """

## All of transformers

Every type of transformers 5.23 that has a causal model: by `branches`, a row of the table above whose sublayers can go
one by one; by `whole blocks`, a row whose blocks go as a whole or not at all; `inside`, a model that reads more than
text and carries a decoder of that row. Types that are encoders elsewhere need `is_decoder` in their configuration.

"""
IMAGE_HEAD = """
And those that read images and text:

"""


@functools.cache
def outcome(model_type: str) -> str:
    """How a type is supported, or `refused: ` and the reason."""
    if model_type in REFUSED:
        return f"refused: {REFUSED[model_type]}"
    if model_type in FAMILIES:
        return _how(model_type)
    config = _default(model_type)
    if config.is_encoder_decoder:
        return "refused: it has an encoder beside the decoder"
    if not is_wrapper(config):
        return "refused: it has no decoder of its own, whose blocks a row could describe"
    inner = family_type(config)
    if inner in REFUSED:
        return f"refused: {REFUSED[inner]} (`{inner}`)"
    if inner not in FAMILIES:
        return f"refused: its decoder, `{inner}`, exists inside of it alone and has no row"
    return f"inside `{inner}`: {_how(inner)}"


def _default(model_type: str) -> PreTrainedConfig:
    return CONFIG_MAPPING[model_type]()


def _how(model_type: str) -> str:
    return "whole blocks" if FAMILIES[model_type].whole else "branches"


def supported(kind: str) -> float:
    """Share of the types of a mapping that are not refused."""
    outcomes = [outcome(model_type) for model_type in MAPPINGS[kind]]
    return sum(not found.startswith("refused") for found in outcomes) / len(outcomes)


def headline() -> str:
    """The shares, in a sentence."""
    causal, image = supported("causal"), supported("image")
    counts = {kind: len(types) for kind, types in MAPPINGS.items()}
    return (
        f"Of the {counts['causal']} types of transformers 5.23 that have a causal model, {100 * causal:.1f} % are "
        f"supported; of the {counts['image']} that read images and text, {100 * image:.1f} %. Blocks can be removed of "
        f"{sum(case in tiny.ALL for case in tiny.CASES)} families."
    )


def render() -> str:
    """Both lists."""
    return CAUSAL_HEAD + _rows("causal") + IMAGE_HEAD + _rows("image")


def _rows(kind: str) -> str:
    lines = ["| type | supported |", "|---|---|"]
    lines += [f"| `{model_type}` | {outcome(model_type)} |" for model_type in sorted(MAPPINGS[kind])]
    return "\n".join(lines) + "\n"


def parse(document: str) -> dict[str, dict[str, str]]:
    """What a document says of every type, by mapping."""
    parts = document.partition(CAUSAL_HEAD)[2].partition(IMAGE_HEAD)
    found = (re.findall(r"^\| `([^`]+)` \| (.+) \|$", part, re.MULTILINE) for part in (parts[0], parts[2]))
    return dict(zip(MAPPINGS, map(dict, found), strict=True))
