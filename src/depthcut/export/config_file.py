"""`config.json` of a written model: that of its source, edited; and spelled so that older readers understand it.

What the source's file says stays as it is spelled there; only what the model in memory has otherwise is written anew.
The position embedding is said twice: as `rope_parameters`, which transformers 5 reads, and as `rope_theta` and
`rope_scaling` at the top, without which transformers 4, and every engine and trainer of its time, takes 10 000 without
a word. Source: the configurations of transformers 4.57 and 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.model.architectures import PRUNED_PREFIX

WRITER_ENTRIES = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})
"""Entries of a configuration that come from writing and reading it, not from the model."""

DERIVED = frozenset({"hybrid_override_pattern", "mtp_hybrid_override_pattern", "num_hidden_layers"})
"""What a configuration answers to but does not hold where a list of kinds by block says it (Nemotron-H)."""

OLD_ROPE = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
THETA_NAMES = {"gpt_neox": "rotary_emb_base"}
FACTOR_NAMES = {"gpt_neox": "rotary_pct"}
"""What transformers 4 calls the base and the rotated share of a head, where by another name than elsewhere."""

LOCAL_THETA_NAMES = {"gemma3_text": "rope_local_base_freq", "olmo3": None}
"""Types of transformers 4 whose sliding attentions have a base of their own, and its name; None: it is the other's."""

EXACT_SCALING = {"phi3": ("type", "short_factor", "long_factor")}
"""Types of transformers 4 that refuse a `rope_scaling` with further entries."""


def source_folder(made: PreTrainedModel | PreTrainedTokenizerBase) -> Path | None:
    """The directory that a model or tokenizer was read from; None where it was made otherwise (of a GGUF file)."""
    name = getattr(made, "name_or_path", "")
    return Path(name) if name and Path(name).is_dir() else None


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Replaces the `config.json` that transformers wrote of a model by its source's, edited."""
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    entries = written
    source = source_folder(model)
    if source is not None and (source / file.name).is_file():
        given = json.loads((source / file.name).read_text(encoding="utf-8"))
        edited = _edited(given, model.config, file)
        if edited is not None:
            # Of an adopted file the version stays: readers go by it to know how to take what it says.
            entries = edited | {"architectures": written["architectures"], "dtype": written["dtype"]}
    entries = for_every_reader(entries, rope_of(model.config))
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def for_every_reader(entries: dict[str, Any], rope: dict[str, Any] | None) -> dict[str, Any]:
    """Entries of a `config.json` with the dtype and the position embedding in the spelling of transformers 4, too.

    Args:
        rope: what the model computes with, as transformers 5 has it; None where it has no rotary embedding.
    """
    found = dict(entries)
    if "dtype" in found:
        found["torch_dtype"] = found["dtype"]
    if not rope:
        return found
    found["rope_parameters"] = found.get("rope_parameters") or rope
    model_type = str(found["model_type"]).removeprefix(PRUNED_PREFIX)
    theta_name = THETA_NAMES.get(model_type, "rope_theta")
    if _is_nested(rope):
        if model_type not in LOCAL_THETA_NAMES:
            return found
        local, rope = rope["sliding_attention"], rope["full_attention"]
        name = LOCAL_THETA_NAMES[model_type]
        if local.get("rope_type", "default") != "default" or (not name and local["rope_theta"] != rope["rope_theta"]):
            return found
        if name:
            found[name] = local["rope_theta"]
    found[theta_name] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        found[FACTOR_NAMES.get(model_type, "partial_rotary_factor")] = rope["partial_rotary_factor"]
    if not found.get("rope_scaling"):
        found["rope_scaling"] = _scaling(rope, model_type)
    return found


def rope_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The position embedding that a model computes with, as transformers 5 spells it."""
    found = _as_json(config).get("rope_parameters")
    return found if isinstance(found, dict) and found else None


def changed_entries(config: PreTrainedConfig, reloaded: dict[str, Any]) -> list[str]:
    """Names of the entries in which a reloaded configuration is not the one in memory, as JSON has them."""
    in_memory, reloaded = _normal(_as_json(config)), _normal(reloaded)
    names = sorted((in_memory.keys() | reloaded.keys()) - WRITER_ENTRIES)
    return [name for name in names if in_memory.get(name) != reloaded.get(name)]


def _edited(given: dict[str, Any], config: PreTrainedConfig, file: Path) -> dict[str, Any] | None:
    """A source's entries with those of a model in memory where they differ; None where they cannot be made to fit.

    Args:
        file: written to, and read back as every reader does.
    """
    if given.get("model_type") not in (config.model_type, config.model_type.removeprefix(PRUNED_PREFIX)):
        return None
    in_memory = _as_json(config)
    entries = given | {"model_type": config.model_type}
    for name in DERIVED & given.keys() - in_memory.keys():
        entries[name] = getattr(config, name)
    # Once more for what follows from other entries: what still differs is said outright.
    for _ in range(2):
        file.write_text(json.dumps(entries), encoding="utf-8")
        try:
            read = type(config).from_pretrained(file.parent)
        except (StrictDataclassError, TypeError, ValueError, LookupError):
            return None
        changed = changed_entries(config, _as_json(read))
        if not changed:
            return entries
        entries = _with(entries, changed, in_memory, _as_json(read), config.attribute_map)
    return None


def _with(
    entries: dict[str, Any],
    names: Iterable[str],
    wanted: dict[str, Any],
    found: dict[str, Any],
    attribute_map: Mapping[str, str],
) -> dict[str, Any]:
    """Entries with the wanted values for `names`, each under the name or alias that the file uses.

    Args:
        found: what is read of the entries now; of parts that are configurations themselves only what differs changes.
    """
    entries = dict(entries)
    aliases = {inner: outer for outer, inner in attribute_map.items()}
    for name in names:
        spelled = aliases[name] if name not in entries and aliases.get(name) in entries else name
        given, inner_wanted, inner_found = (values.get(name) or {} for values in (entries, wanted, found))
        if name.endswith("_config") and given and inner_wanted and inner_found:
            keys = inner_wanted.keys() | inner_found.keys()
            differ = sorted(key for key in keys if inner_wanted.get(key) != inner_found.get(key))
            entries[name] = _with(given, differ, inner_wanted, inner_found, {})
        elif name in wanted:
            entries[spelled] = wanted[name]
        else:
            entries.pop(spelled, None)
        if name == "rope_parameters":
            entries = {key: value for key, value in entries.items() if key not in OLD_ROPE}
    return entries


def _as_json(config: PreTrainedConfig) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))  # type: ignore[no-any-return]


def _normal(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries without those that say once more, for older readers, what `rope_parameters` says."""
    rope = entries.get("rope_parameters")
    if not isinstance(rope, dict):
        return entries
    old = {*OLD_ROPE, *THETA_NAMES.values(), *FACTOR_NAMES.values()}
    kept = {name: value for name, value in entries.items() if name not in old}
    named = {name: value for name, value in rope.items() if name != "type"}
    return kept | {"rope_parameters": named}


def _is_nested(rope: dict[str, Any]) -> bool:
    """Whether attentions of different kinds have different position embeddings."""
    return any(isinstance(value, dict) for value in rope.values())


def _scaling(rope: dict[str, Any], model_type: str) -> dict[str, Any] | None:
    """The `rope_scaling` of transformers 4; None where nothing is scaled."""
    if rope.get("rope_type", "default") == "default":
        return None
    found = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    exact = EXACT_SCALING.get(model_type)
    # Transformers 5 takes this for all there is: what has more to say is said whole, and transformers 4 refuses it.
    if exact and found.keys() <= {*exact, "rope_type", "original_max_position_embeddings"}:
        return {name: (found | {"type": rope["rope_type"]})[name] for name in exact}
    return found
