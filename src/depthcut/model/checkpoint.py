"""What a directory's `config.json` says, held against plain arithmetic and the headers of its weight files.

Runs before anything heavy is imported, so that what cannot be worked on is told at once: neither torch nor
transformers is needed here, and no weight is read.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from depthcut.model.architectures import FAMILIES, PRUNED_PREFIX, REFUSED
from depthcut.model.files import named_path
from depthcut.model.headers import TensorHeader, stored_tensors
from depthcut.model.prediction import count_of
from depthcut.model.wrappers import COUNTS
from depthcut.types import InputError, require_regular

BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
LARGEST = (
    dict.fromkeys(BLOCKS, 10_000)
    | dict.fromkeys((*HIDDEN, *HEADS, *KEY_VALUE_HEADS, "head_dim"), 1 << 24)
    | dict.fromkeys(("vocab_size", "max_position_embeddings"), 1 << 31)
)
"""Far above what any model has, and few enough that an empty model of that size is made in no time."""

OPTIONAL = {*KEY_VALUE_HEADS, "head_dim"}
"""Sizes that may be null: they follow from others."""

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"

MAX_CONFIG_BYTES = 1 << 24

SUFFIXES = {".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken"}
"""Of the files in a directory that readers open."""

ENCODER_DECODERS = frozenset(
    {"t5", "mt5", "umt5", "m2m_100", "longt5", "switch_transformers"}
    | {kind for kind, names in COUNTS.items() if names == ("decoder_layers",)}
)
ENCODERS = frozenset(
    {
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta-xl",
        "xmod",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "albert",
        "electra",
        "deberta",
        "deberta-v2",
        "modernbert",
        "mpnet",
    }
)
HEADS_OF_OTHER_TASKS = re.compile(r"For(TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$|Reward")
AROUND_BLOCKS = (
    "model",
    "language_model",
    "text_model",
    "transformer",
    "gpt_neox",
    "biogpt",
    "backbone",
    "decoder",
)
"""What the list of a decoder's blocks stands in."""


def check_model(name: str, revision: str | None = None) -> None:
    """Checks what a user gives as a model; names that lead to nothing here are left to those who find them.

    Args:
        revision: of a hub model; one that lies in the local cache is looked at too, though only for what it is, since
            the hub may have a newer one of its files.

    Raises:
        InputError: it is a directory that holds no model of a kind that depthcut prunes.
    """
    folder = named_path(name)
    if folder.is_dir() and (folder / "config.json").exists():
        check_directory(folder)
    elif folder.is_dir() and (folder / "adapter_config.json").is_file():
        raise InputError(adapter_refusal(folder))
    elif not folder.exists() and (cached := _in_cache(name, revision)) is not None:
        _check_kind(cached, name, read_config(cached))


def _in_cache(name: str, revision: str | None) -> Path | None:
    """Where a hub model's files lie here; None where they do not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_directory(folder: Path) -> dict[str, Any]:
    """Checks the configuration by itself and against the headers of the weights beside it.

    Returns:
        The entries of config.json.

    Raises:
        InputError: it is no configuration, it says what cannot be, or it is of other weights or another kind of model.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            require_regular(path)
    entries = read_config(folder)
    _check_kind(folder, str(folder), entries)
    decoder = decoder_entries(entries)
    _check_sizes(folder, decoder)
    stored = stored_tensors(folder)
    _check_num_blocks(folder, decoder, stored)
    return entries


def decoder_entries(entries: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that says what the decoder is: all of it where there is nothing else."""
    nested = entries.get("text_config")
    return nested if isinstance(nested, dict) else entries


def read_config(folder: Path) -> dict[str, Any]:
    """The entries of a directory's config.json. Raises InputError when it is no JSON object of a sensible size."""
    path = folder / "config.json"
    require_regular(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path} has more than 16 MiB and is no configuration; download it again")
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the configuration of {folder}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"cannot read the configuration of {folder}: config.json is no JSON ({reason}); download it again"
        ) from error
    if not isinstance(entries, dict):
        raise InputError(
            f"cannot read the configuration of {folder}: config.json holds no JSON object; download it again"
        )
    return entries


def weights_in(folder: Path) -> bool:
    """Whether a directory holds weights beside a configuration.

    Raises:
        InputError: there is no configuration, or a file of weights is damaged, missing or cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model: it has no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        try:
            # safetensors says of any file that it cannot open that there is none.
            with file.open("rb"), safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}); download or write the model again") from error
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}; see to its permissions") from error
    index = folder / WEIGHTS_INDEX
    if index.is_file() and not (folder / WEIGHTS).is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{index} is no list of shards; download or write the model again") from error
        if missing := sorted(shards - {file.name for file in weights}):
            raise InputError(f"{folder} lacks {missing[0]}, which {index.name} names; download the model again")
    return bool(weights)


def require_shapes(folder: Path, stored: Mapping[str, TensorHeader], made: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError where a tensor of the files has another shape than the configuration gives it.

    Args:
        stored: by name, from the files.
        made: shape by name of the model that the configuration makes; names that only one side has are left alone.
    """
    for name, shape in made.items():
        if name in stored and stored[name].shape != shape:
            raise InputError(
                f"{folder / 'config.json'} is not of these weights: it makes {name} {_by(shape)}, and the files hold "
                f"{_by(stored[name].shape)}; download both again"
            )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def adapter_refusal(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        base = "BASE"
    return (
        f"{folder} holds an adapter of {base}, not a model; give the model, and the adapter to be merged into it: "
        f"{base} --adapter {folder}"
    )


def _check_kind(folder: Path, name: str, entries: Mapping[str, Any]) -> None:
    """Raises InputError where the model is of another kind than a decoder that predicts tokens.

    Args:
        name: as the user knows it.
    """
    path = folder / "config.json"
    model_type = entries.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise InputError(f"{path} does not say what the model is: model_type is {shown(model_type)}; download it again")
    kind = model_type.removeprefix(PRUNED_PREFIX)
    if kind in REFUSED:
        reason = REFUSED[kind]
    elif entries.get("is_encoder_decoder", kind in ENCODER_DECODERS) is not False:
        reason = "they have an encoder beside the decoder, and depthcut prunes decoders alone"
    elif kind in ENCODERS and entries.get("is_decoder") is not True:
        reason = "they are encoders, which predict no next token"
    elif kind == model_type and kind not in FAMILIES and "auto_map" not in entries and not _is_known(kind):
        reason = f"transformers {importlib.metadata.version('transformers')} has no causal language model of that type"
    else:
        reason = ""
    if reason:
        raise InputError(f"models of type {kind!r} cannot be pruned: {reason}; give another model")
    classes = entries.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise InputError(f"{path}: architectures is {shown(classes)} and has to be a list of names; mend it")
    if classes and HEADS_OF_OTHER_TASKS.search(classes[0]):
        raise InputError(
            f"{name} is a {classes[0]}, and depthcut prunes decoders that predict tokens (ForCausalLM), score a text "
            "(ForSequenceClassification) or embed it; give one of these"
        )


def _is_known(model_type: str) -> bool:
    """Whether transformers predicts tokens with models of a type; also where its list is not where it was."""
    return model_type in known_types() or not known_types()


@functools.cache
def known_types() -> frozenset[str]:
    """Types of models that transformers predicts tokens with, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    file = Path(spec.origin or "").parent / "models/auto/modeling_auto.py" if spec is not None else Path()
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = set[str]()
    for name in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"):
        _, _, after = text.partition(f"\n{name} = ")
        found |= set(re.findall(r'^ +\("([^"]+)", "', after.partition("\n)")[0], flags=re.MULTILINE))
    return frozenset(found)


def _check_sizes(folder: Path, decoder: Mapping[str, Any]) -> None:
    """Raises InputError where a size is no count, is far beyond any model's, or does not go with another."""
    path = folder / "config.json"
    for key, largest in LARGEST.items():
        if key not in decoder or (decoder[key] is None and key in OPTIONAL):
            continue
        value = decoder[key]
        is_count = isinstance(value, int) and not isinstance(value, bool)
        # Some families have a list here, one entry a block, which their own classes check.
        if not is_count and isinstance(value, list) and key in (*HEADS, *KEY_VALUE_HEADS):
            continue
        if not (is_count and 1 <= value <= largest):
            raise InputError(
                f"{path}: {key} is {shown(value)} and has to be a whole number from 1 to {largest}; mend it or "
                "download it again"
            )
    heads, shared = (
        next((decoder[key] for key in keys if isinstance(decoder.get(key), int)), None)
        for keys in (HEADS, KEY_VALUE_HEADS)
    )
    if (
        decoder.get("model_type") in FAMILIES
        and heads
        and shared
        and heads % shared
        and decoder["model_type"] != "falcon"
    ):
        raise InputError(
            f"{path}: {heads} attention heads cannot share {shared} key-value heads; give a number that divides {heads}"
        )
    rope = decoder.get("rope_parameters")
    for holder in (decoder, *([rope] if isinstance(rope, dict) else [])):
        theta = holder.get("rope_theta")
        if isinstance(theta, int | float) and not (theta > 0 and math.isfinite(theta)):
            raise InputError(f"{path}: rope_theta is {shown(theta)} and has to be a number above 0; mend it")
    num_blocks = next((decoder[key] for key in BLOCKS if key in decoder), None)
    kinds = decoder.get("layer_types")
    if num_blocks is not None and kinds is not None:
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise InputError(f"{path}: layer_types is {shown(kinds)} and has to be a list of names; mend it")
        # Some say there, too, what the layers behind the last block are; whether a family reads that, its class knows.
        if len(kinds) not in (num_blocks, num_blocks + count_of(decoder)):
            cut = f"; keep the first {num_blocks}, which older readers take" if len(kinds) > num_blocks else "; mend it"
            raise InputError(f"{path}: layer_types has {len(kinds)} entries for {num_blocks} blocks{cut}")


def _check_num_blocks(folder: Path, decoder: Mapping[str, Any], stored: Mapping[str, TensorHeader]) -> None:
    """Raises InputError where the weights are of more or fewer blocks than the configuration says.

    Args:
        decoder: the decoder's part of the configuration.
    """
    expected = next((decoder[key] for key in BLOCKS if key in decoder), None)
    if expected is None:
        return
    family = FAMILIES.get(str(decoder.get("model_type")).removeprefix(PRUNED_PREFIX))
    lists = [family.blocks.rpartition(".")[2]] if family else ["layers", "blocks", "h"]
    pattern = re.compile(rf"(?:(?:{'|'.join(AROUND_BLOCKS)})\.)*(?:{'|'.join(lists)})\.(\d+)\.")
    found = {int(match[1]) for tensor in stored if (match := pattern.match(tensor))}
    num_found = max(found, default=-1) + 1
    # Layers that predict further tokens are stored behind the last block.
    if found and not expected <= num_found <= expected + count_of(decoder):
        raise InputError(
            f"{folder / 'config.json'} is not of these weights: it says {expected} blocks, and the files hold "
            f"{num_found}; download both again"
        )


def shown(value: object) -> str:
    """A value of a configuration, short enough for a sentence."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 60 else text[:57] + "..."
