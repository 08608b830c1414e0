"""Checkpoints whose blocks lack sublayers: how they are marked, and how they load.

Such a model is of its own type (`depthcut_llama`), so that nothing that ignores what is missing can load it as whole.
The configuration's `removed_sublayers` says which sublayers of which kept block are gone. It loads through
depthcut, which registers the types, and through the short `modeling_depthcut.py` that is generated beside the weights,
for those who trust it (`trust_remote_code=True`). Both build the stock model and take the same branches out.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from depthcut.model.architectures import FAMILIES, PRUNED_PREFIX, find_architecture
from depthcut.model.branches import Architecture, Branch
from depthcut.model.bypass import Emulation, RemovedFFN, RemovedMixer, remove_branch
from depthcut.types import InputError, Unit

CODE_FILE = "modeling_depthcut.py"
MANIFEST = "removed_sublayers"
EMULATED = "emulated_sublayers"


@functools.cache
def pruned_classes(model_type: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Configuration and model class of a family's checkpoints that lack sublayers."""
    stock_config = CONFIG_MAPPING[model_type]
    stock_model: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]  # type: ignore[assignment]

    def build(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock_model.__init__(self, config, *args, **kwargs)
        take_out(self, find_architecture(config))

    config_class = type("DepthcutConfig", (stock_config,), {"model_type": PRUNED_PREFIX + model_type})
    model_class = type("DepthcutForCausalLM", (stock_model,), {"config_class": config_class, "__init__": build})
    return config_class, model_class


@functools.cache
def register() -> None:
    """Lets transformers load such checkpoints of every family in this process, without any code of theirs."""
    for model_type in (name for name, family in FAMILIES.items() if not family.whole):
        config_class, model_class = pruned_classes(model_type)
        AutoConfig.register(PRUNED_PREFIX + model_type, config_class)
        AutoModelForCausalLM.register(config_class, model_class)


def take_out(model: PreTrainedModel, architecture: Architecture) -> None:
    """Takes the branches that the configuration names out of a stock model, and puts empty emulations in."""
    blocks = architecture.block_list(model)
    ranks: dict[str, int] = getattr(model.config, EMULATED, {})
    for unit in missing_units(model.config):
        rank = ranks.get(str(unit))
        emulation = None if rank is None else Emulation(model.config.hidden_size, rank)
        remove_branch(blocks[unit.layer], architecture.branches[unit.kind], unit.kind, unit.layer, emulation)


def mark(model: PreTrainedModel, removed: list[Unit], ranks: dict[str, int]) -> None:
    """Makes a stock model with branches taken out one of its pruned type, in place.

    Args:
        removed: what its blocks lack; `Unit.layer` counts the blocks that the model has.
        ranks: of those that are emulated, by unit.
    """
    config_class, model_class = pruned_classes(model.config.model_type)
    model.config.__class__ = config_class
    # A configuration that was read from a file carries the stock type itself, which would hide the class's.
    model.config.__dict__.pop("model_type", None)
    assert is_marked(model.config)
    model.__class__ = model_class
    setattr(model.config, MANIFEST, [str(unit) for unit in removed])
    if ranks:
        setattr(model.config, EMULATED, ranks)
    model.config.auto_map = {
        "AutoConfig": f"{CODE_FILE.removesuffix('.py')}.DepthcutConfig",
        "AutoModelForCausalLM": f"{CODE_FILE.removesuffix('.py')}.DepthcutForCausalLM",
    }


def is_marked(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a checkpoint that lacks sublayers."""
    return str(config.model_type).startswith(PRUNED_PREFIX)


def missing_units(config: PreTrainedConfig) -> frozenset[Unit]:
    """What the kept blocks lack; `Unit.layer` counts the blocks that the model has."""
    return frozenset(Unit.parse(name) for name in getattr(config, MANIFEST, ()))


def require_no_emulations(config: PreTrainedConfig, form: str) -> None:
    """Raises InputError where modules stand in place of removed sublayers, which no engine's format has."""
    if getattr(config, EMULATED, None):
        raise InputError(
            f"the form {form} cannot hold this model: {min(getattr(config, EMULATED))} was replaced with a module of "
            "depthcut's (repair bias or low-rank); use the form hf, or repair with refit, which needs no module"
        )


def remote_code(model_type: str, architecture: Architecture) -> str:
    """The text of `modeling_depthcut.py` for one family: needs torch and transformers, not depthcut."""
    stock_config = CONFIG_MAPPING[model_type]
    stock_model: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]  # type: ignore[assignment]
    return f'''"""Loads a {model_type} model whose blocks lack sublayers; generated by depthcut.

The stock model is built and the branches that `{MANIFEST}` names are taken out, or replaced with low-rank maps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DummyLayer
from {stock_config.__module__} import {stock_config.__name__}
from {stock_model.__module__} import {stock_model.__name__}


{inspect.getsource(Branch)}

{inspect.getsource(Emulation)}

{inspect.getsource(RemovedFFN)}

{inspect.getsource(RemovedMixer)}

{inspect.getsource(remove_branch)}

BRANCHES: dict[str, Branch] = {architecture.branches!r}


class DepthcutConfig({stock_config.__name__}):
    model_type = "{PRUNED_PREFIX}{model_type}"


class DepthcutForCausalLM({stock_model.__name__}):
    config_class = DepthcutConfig

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        blocks = attrgetter("{architecture.blocks}")(self)
        for name in config.{MANIFEST}:
            layer, kind = name.split(".")
            rank = getattr(config, "{EMULATED}", {{}}).get(name)
            emulation = None if rank is None else Emulation(config.hidden_size, rank)
            remove_branch(blocks[int(layer)], BRANCHES[kind], kind, int(layer), emulation)
'''
