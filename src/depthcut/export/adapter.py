"""A peft adapter that was trained on the dense model, carried over to the pruned one.

Its tensors keep their bytes. Those of kept sublayers get the block that the sublayer is in now, those of removed ones
are left out; so are their entries in the adapter's configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.export import EXPORTS, VerificationError
from depthcut.model.lineage import Lineage, lineage
from depthcut.types import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LEFT_OUT = "left_out.json"
"""The names of tensors of removed sublayers."""
PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Adapter:
    """The adapter in a folder of its own, for the pruned model.

    Attributes:
        path: folder of the adapter of the dense model.
    """

    path: str = ""
    note: ClassVar[str] = f"an adapter for the pruned model; {LEFT_OUT} names what belonged to removed sublayers"

    def check(self, config: PreTrainedConfig) -> None:
        if not self.path:
            raise InputError("which adapter? give its folder: adapter,path=FOLDER")
        for name in (CONFIG, WEIGHTS):
            if not (Path(self.path) / name).is_file():
                raise InputError(f"{self.path} holds no adapter of peft: it has no {name} (pickles are not read)")
        self._settings()

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        found, settings = lineage(model.config, "adapter"), self._settings()
        kept: dict[str, torch.Tensor] = {}
        left_out = []
        for name, tensor in load_file(Path(self.path) / WEIGHTS).items():
            renamed = _renamed(name, found)
            if renamed is None:
                left_out.append(name)
            else:
                kept[renamed] = tensor
        if not kept:
            raise InputError(f"nothing of the adapter {self.path} would remain: all that it changes was removed")
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
        settings = _renamed_settings(settings, found) | {"base_model_name_or_path": model.name_or_path}
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / LEFT_OUT).write_text(json.dumps(sorted(left_out), indent=2) + "\n", encoding="utf-8")

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Every tensor is of a module that the pruned model has, and of its width."""
        modules = dict(model.named_modules())
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape, path = file.get_slice(name).get_shape(), _module_path(name)
                if path not in modules:
                    raise VerificationError(f"the adapter's tensor {name} is of no module of the pruned model")
                weight = getattr(modules[path], "weight", None)
                width = {".lora_A.": -1, ".lora_B.": 0}
                for part, side in width.items():
                    if part in name and weight is not None and shape[side] not in weight.shape:
                        raise VerificationError(f"the adapter's tensor {name} does not fit the pruned model's {path}")

    def _settings(self) -> dict[str, Any]:
        file = Path(self.path) / CONFIG
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is no JSON text: {error}") from error
        if not isinstance(settings, dict):
            raise InputError(f"{file} is no configuration of an adapter")
        return settings


def _module_path(name: str) -> str:
    """The model's module that a tensor of an adapter changes."""
    return re.sub(
        r"\.(lora_|base_layer|modules_to_save|ia3_|weight$|bias$).*", "", name.removeprefix("base_model.model.")
    )


def _renamed(name: str, found: Lineage) -> str | None:
    """The name of a tensor or module in the pruned model; None where its sublayer was removed.

    Raises:
        InputError: the name is of a block that the dense model does not have, or of several sublayers.
    """
    blocks = found.architecture.blocks.rpartition(".")[2]
    match = re.match(rf"(.*?\b{blocks}\.)(\d+)\.(.*)", name)
    if match is None:
        return name
    layer, rest = int(match[2]), match[3]
    if layer >= found.base_model.num_blocks:
        raise InputError(
            f"the adapter changes block {layer}, and the dense model {found.base_model.source} has blocks 0 to "
            f"{found.base_model.num_blocks - 1}; it is of another model"
        )
    part = rest.partition(".")[0]
    kinds = [kind for kind, branch in found.architecture.branches.items() if part in branch.modules]
    for index, block in enumerate(found.packed):
        if any(block.sources.get(kind) == layer for kind in kinds or found.architecture.branches):
            return f"{match[1]}{index}.{rest}"
    return None


def _renamed_settings(settings: Mapping[str, Any], found: Lineage) -> dict[str, Any]:
    """An adapter's configuration with the pruned model's blocks.

    Raises:
        InputError: it names blocks in a way that cannot be said of blocks whose parts were parted.
    """
    changed = dict(settings)
    layers = settings.get("layers_to_transform")
    if layers is not None:
        wanted = {layers} if isinstance(layers, int) else set(layers)
        touched = [[layer in wanted for layer in block.sources.values()] for block in found.packed]
        if any(len(set(each)) > 1 for each in touched):
            raise InputError(
                "the adapter changes some blocks by their index (layers_to_transform), and a block of this model is "
                "made of one that it changes and one that it does not; remove whole blocks"
            )
        changed["layers_to_transform"] = [index for index, each in enumerate(touched) if all(each)]
    for key in PATTERNS:
        if isinstance(settings.get(key), dict):
            renamed = {_renamed(name, found): value for name, value in settings[key].items()}
            changed[key] = {name: value for name, value in renamed.items() if name is not None}
    if isinstance(settings.get("target_modules"), list):
        names = [_renamed(name, found) for name in settings["target_modules"]]
        changed["target_modules"] = [name for name in names if name is not None]
    return changed


EXPORTS.register(
    "adapter",
    Adapter,
    summary="an adapter of the dense model (adapter,path=FOLDER) for the pruned one: blocks renumbered",
    source="peft",
)
