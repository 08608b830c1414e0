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

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from depthcut.model.architectures import FAMILIES, PRUNED_PREFIX, find_architecture
from depthcut.model.branches import Architecture, Branch
from depthcut.model.bypass import Emulation, RemovedFFN, RemovedMixer, remove_branch
from depthcut.model.heads import HeadKind, auto_class_of, head_of_model, stock_class
from depthcut.types import InputError, Unit

CODE_FILE = "modeling_depthcut.py"
MANIFEST = "removed_sublayers"
EMULATED = "emulated_sublayers"


CLASSES: dict[HeadKind, tuple[str, str]] = {
    "tokens": ("AutoModelForCausalLM", "DepthcutForCausalLM"),
    "classes": ("AutoModelForSequenceClassification", "DepthcutForSequenceClassification"),
    "embedding": ("AutoModel", "DepthcutModel"),
}
"""By head, what loads such checkpoints, and the name of their class."""


@functools.cache
def pruned_config(model_type: str) -> type[PreTrainedConfig]:
    """Configuration class of a family's checkpoints that lack sublayers."""
    return type("DepthcutConfig", (CONFIG_MAPPING[model_type],), {"model_type": PRUNED_PREFIX + model_type})


@functools.cache
def pruned_class(model_type: str, head: HeadKind) -> type[PreTrainedModel]:
    """Model class of a family's checkpoints that lack sublayers."""
    config_class = pruned_config(model_type)
    stock_config, stock_model = CONFIG_MAPPING[model_type], stock_class(CONFIG_MAPPING[model_type], head)

    def build(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        # What stands inside of a classifier is looked up by the type of its configuration.
        config.__class__ = stock_config
        stock_model.__init__(self, config, *args, **kwargs)
        config.__class__ = self.config.__class__ = config_class
        take_out(self, find_architecture(config))

    return type(CLASSES[head][1], (stock_model,), {"config_class": config_class, "__init__": build})


@functools.cache
def register() -> None:
    """Lets transformers load such checkpoints of every family in this process, without any code of theirs."""
    for model_type in (name for name, family in FAMILIES.items() if not family.whole):
        config_class = pruned_config(model_type)
        AutoConfig.register(PRUNED_PREFIX + model_type, config_class)
        for head in CLASSES:
            loader = auto_class_of(head)
            if CONFIG_MAPPING[model_type] in loader._model_mapping:
                loader.register(config_class, pruned_class(model_type, head))


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
    model_type, head = model.config.model_type, head_of_model(model)
    model.config.__class__ = pruned_config(model_type)
    # A configuration that was read from a file carries the stock type itself, which would hide the class's.
    model.config.__dict__.pop("model_type", None)
    assert is_marked(model.config)
    model.__class__ = pruned_class(model_type, head)
    setattr(model.config, MANIFEST, [str(unit) for unit in removed])
    if ranks:
        setattr(model.config, EMULATED, ranks)
    loader, name = CLASSES[head]
    model.config.architectures = [name]
    module = CODE_FILE.removesuffix(".py")
    model.config.auto_map = {"AutoConfig": f"{module}.DepthcutConfig", loader: f"{module}.{name}"}


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
            f"the format {form} cannot hold this model: {min(getattr(config, EMULATED))} was replaced with a module of "
            "depthcut's (repair bias or low-rank); use the format hf, or repair with refit, which needs no module"
        )


def remote_code(model_type: str, architecture: Architecture, head: HeadKind) -> str:
    """The text of `modeling_depthcut.py` for one family: needs torch and transformers, not depthcut."""
    stock_config = CONFIG_MAPPING[model_type]
    stock_model = stock_class(stock_config, head)
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


class {CLASSES[head][1]}({stock_model.__name__}):
    config_class = DepthcutConfig

    def __init__(self, config, *args, **kwargs):
        # What stands inside of a classifier is looked up by the type of its configuration.
        config.__class__ = {stock_config.__name__}
        super().__init__(config, *args, **kwargs)
        config.__class__ = self.config.__class__ = DepthcutConfig
        blocks = attrgetter("{architecture.blocks}")(self)
        for name in config.{MANIFEST}:
            layer, kind = name.split(".")
            rank = getattr(config, "{EMULATED}", {{}}).get(name)
            emulation = None if rank is None else Emulation(config.hidden_size, rank)
            remove_branch(blocks[int(layer)], BRANCHES[kind], kind, int(layer), emulation)
'''
