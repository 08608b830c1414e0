"""A peft adapter that is merged into its model on loading, before anything else is done with it.

Blocks of a pruned model are counted anew, so that an adapter of the dense model would fit others by chance: it is taken
only by the model that it names.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from depthcut.model.files import named_path
from depthcut.model.headers import stored_tensors
from depthcut.model.reading import reading
from depthcut.types import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OF_PEFT = re.compile(r"lora_|ia3_|vera_|oft_|boft_|hra_|hada_|lokr_|base_layer|modules_to_save|weight$|bias$")
"""What a tensor's name goes on with behind the module that it changes."""


def adapter_files(folder: Path) -> list[Path]:
    """The files that tell adapters apart. Raises InputError where a folder holds none."""
    files = [folder / CONFIG, folder / WEIGHTS]
    for file in files:
        if not file.is_file():
            raise InputError(f"{folder} holds no adapter of peft: it has no {file.name} (pickles are not read)")
    return files


def check_adapter(folder: Path, model_name: str, stored_as: str | None, made: PreTrainedModel) -> None:
    """Checks without weights that an adapter is one of this model.

    Args:
        model_name: as the user wrote it.
        stored_as: how the weights are quantised; None where they are not.
        made: the model without weights.

    Raises:
        InputError: it is of another model, there is nothing it can be merged into, or peft is missing.
    """
    if stored_as is not None:
        raise InputError(
            f"{model_name} is stored as {stored_as}, and merging an adapter changes weights; give the model unquantised"
        )
    if importlib.util.find_spec("peft") is None:
        raise InputError("merging an adapter needs the package peft; run: pip install 'depthcut[heal]'")
    adapter_files(folder)
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = str(said["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder / CONFIG} does not say which model the adapter is of; train or write it again"
        ) from error
    origin: Any = getattr(made.config, "depthcut", None)
    if isinstance(origin, dict) and origin.get("removed") and not _is_same(base, model_name):
        raise InputError(
            f"the adapter {folder} is of {base}, and the blocks of {model_name} are counted anew, so that it would fit "
            f"others by chance; carry it over: depthcut export {model_name} --to adapter,path={folder} -o OUT, or "
            "merge it into the dense model before that is pruned"
        )
    modules = dict(made.named_modules())
    for name in stored_tensors(folder):
        parts = name.removeprefix("base_model.model.").split(".")
        known = max((n for n in range(len(parts)) if ".".join(parts[:n]) in modules), default=0)
        if not OF_PEFT.match(parts[known]):
            raise InputError(
                f"the adapter {folder} is of another model: it changes {'.'.join(parts[: known + 1])}, which "
                f"{model_name} does not have; its adapter_config.json names {base}"
            )


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter's changes in its weights."""
    from peft import PeftModel

    with reading(str(folder), "adapter"):
        merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    return merged.requires_grad_(True)


def _is_same(base: str, model_name: str) -> bool:
    """Whether two names are of the same model: equal, or the same folder."""
    one, other = named_path(base), named_path(model_name)
    return base == model_name or (one.is_dir() and other.is_dir() and one.samefile(other))
