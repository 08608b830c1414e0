"""What a decoder ends in: scores of the next token, scores of a text (classifiers, reward models, rerankers), or none.

A model without a head gives embeddings: what its last block leaves, pooled over the text. A causal decoder's output at
a position is what the whole model gives of the text that ends there, so texts are compared at every position, not only
at their ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from depthcut.types import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

HeadKind = Literal["tokens", "classes", "embedding"]
Pooling = Literal["last", "mean"]

CLASSIFIER = re.compile(r"ForSequenceClassification$")
BASE = re.compile(r"(?<!Head)(?<!Heads)Model$")
MODULES, POOLING = "modules.json", "1_Pooling/config.json"
"""What sentence-transformers writes beside an embedding model."""
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_lasttoken": "last",
    "lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "mean": "mean",
}
OUTPUT_HEADS = ("lm_head.", "embed_out.", "output_projection.", "output.")

GIVES: dict[HeadKind, str] = {
    "tokens": "predicts tokens",
    "classes": "scores a text (sequence classification)",
    "embedding": "embeds a text",
}


def head_of(config: PreTrainedConfig) -> HeadKind:
    """What a model of this configuration ends in, by the class that it names; needs no weights."""
    names = getattr(config, "architectures", None) or ("",)
    return head_named(names[0]) if config.get_text_config(decoder=True) is config else "tokens"


def head_named(class_name: str) -> HeadKind:
    """What models of a class of transformers end in, by its name."""
    if CLASSIFIER.search(class_name):
        return "classes"
    return "embedding" if BASE.search(class_name) else "tokens"


def head_of_model(model: PreTrainedModel) -> HeadKind:
    """What a model ends in, whatever its configuration names."""
    if CLASSIFIER.search(type(model).__name__):
        return "classes"
    # Some models with a head name no base that they have.
    has_none = model.base_model is model and model.get_output_embeddings() is None
    return "embedding" if has_none else "tokens"


def auto_class_of(head: HeadKind) -> Any:
    """The Auto class of transformers that loads a decoder with such a head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    return {"tokens": AutoModelForCausalLM, "classes": AutoModelForSequenceClassification, "embedding": AutoModel}[head]


def stock_class(config_class: type[PreTrainedConfig], head: HeadKind) -> type[PreTrainedModel]:
    """The class that transformers has for a type with such a head.

    Raises:
        InputError: it has none.
    """
    found: dict[Any, Any] = auto_class_of(head)._model_mapping
    if config_class not in found:
        raise InputError(
            f"transformers has no model of type {config_class.model_type!r} that {GIVES[head]}; give the one that "
            "predicts tokens"
        )
    made = found[config_class]
    return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]


def settle_head(config: PreTrainedConfig, folder: Path, stored: Collection[str]) -> None:
    """Has a configuration name the class of what its files hold, in place.

    Embedding models are published as causal ones (their `modules.json` tells), and causal ones as base models (their
    tensors carry a prefix, and the embedding is the head).

    Args:
        stored: names of the tensors; none where there are no weights.

    Raises:
        InputError: the output cannot be compared, or transformers has no such class.
    """
    if config.get_text_config(decoder=True) is not config:
        return
    is_sentence_model = (folder / MODULES).is_file()
    if is_sentence_model and head_of(config) == "tokens":
        config.architectures = [stock_class(type(config), "embedding").__name__]
    elif head_of(config) == "embedding" and not is_sentence_model:
        base = stock_class(type(config), "embedding").base_model_prefix
        has_head = any(name.startswith(OUTPUT_HEADS) for name in stored)
        is_tied = getattr(config, "tie_word_embeddings", False) and any(name.startswith(f"{base}.") for name in stored)
        if has_head or is_tied:
            config.architectures = None
    check_head(config)


def check_head(config: PreTrainedConfig) -> None:
    """Raises InputError where the output of a head cannot be compared position by position."""
    if head_of(config) == "tokens":
        return
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        raise InputError(
            f"the attentions of this {config.model_type} model look both ways, so that the beginning of a text says "
            "nothing of it; give a causal one"
        )


def pooling_of(model: PreTrainedModel) -> Pooling:
    """How an embedding model's output becomes one vector: the last token's, or the mean, as sentence-transformers says.

    Raises:
        InputError: it is pooled in another way.
    """
    file = Path(model.name_or_path or "") / POOLING
    if head_of_model(model) != "embedding" or not file.is_file():
        return "last"
    entries = json.loads(file.read_text(encoding="utf-8"))
    modes = [name for name, value in entries.items() if name.startswith("pooling_mode_") and value is True]
    modes += [entries["pooling_mode"]] if isinstance(entries.get("pooling_mode"), str) else []
    if len(modes) == 1 and modes[0] in POOLINGS:
        return POOLINGS[modes[0]]
    raise InputError(f"{file} pools by {', '.join(modes) or 'nothing'}; depthcut compares the last token's or the mean")


def score_module(model: PreTrainedModel) -> nn.Module:
    """The module that scores a text, of a model for sequence classification."""
    beside = [module for _, module in model.named_children() if module is not model.base_model]
    return beside[-1]


def output_width(model: PreTrainedModel, head: HeadKind) -> int:
    """Numbers that the output has at a position."""
    config: Any = model.config
    if head == "tokens":
        vocabulary: int = model.get_output_embeddings().weight.shape[0]
        return vocabulary
    return int(config.num_labels if head == "classes" else config.hidden_size)


def outputs_of(
    model: PreTrainedModel, head: HeadKind, pooling: Pooling, hidden: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """(sequences, length, width) what the model gives of the text that ends at each position.

    Args:
        hidden: (sequences, length, hidden) the stream after the final norm.
        tokens: (sequences, length) bool, where there is a token.
    """
    if head == "classes":
        return score_module(model)(hidden)  # type: ignore[no-any-return]
    if pooling == "last":
        return hidden
    present = tokens.unsqueeze(-1)
    sums = (hidden.float() * present).cumsum(dim=1)
    return sums / present.cumsum(dim=1).clamp_min(1)


def output_at_end(
    model: PreTrainedModel, head: HeadKind, pooling: Pooling, input_ids: torch.Tensor
) -> tuple[int, torch.Tensor]:
    """The model's own output for one text without pads, and the position that it is of.

    Args:
        input_ids: (1, length).
    """
    output = model(input_ids=input_ids, use_cache=False)
    last = input_ids.shape[1] - 1
    if head == "embedding":
        hidden = output.last_hidden_state
        return last, hidden[:, last] if pooling == "last" else hidden.float().mean(dim=1)
    pad = model.config.pad_token_id
    # transformers takes trailing tokens of the pad's number for pads.
    kept = [place for place, token in enumerate(input_ids[0].tolist()) if token != pad]
    return kept[-1] if kept else last, output.logits
