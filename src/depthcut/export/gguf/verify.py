"""Proves that a written GGUF is the model in memory: by our own reader, and by llama.cpp where it is installed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from depthcut.export import VerificationError
from depthcut.export.gguf import engine
from depthcut.export.gguf.convert import conversions, metadata, restored, tensors
from depthcut.export.gguf.layout import type_name
from depthcut.export.gguf.write import PROBE_TEXT_KEY, PROBE_TOKENS
from depthcut.gguf.container import GgufFile, read_file

SCORED_TOKENS = 48
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Tolerance:
    """How far a file of some type may be from the model.

    Attributes:
        element: of a tensor's values, relative to its largest.
        nll: of the mean negative log-likelihood, relative.
        logit: by which a greedy token's logit in memory may be below the largest.
    """

    element: float
    nll: float
    logit: float


TOLERANCES = {
    "F32": Tolerance(1e-6, 1e-3, 1e-2),
    "F16": Tolerance(1e-3, 1e-2, 0.1),
    "BF16": Tolerance(8e-3, 2e-2, 0.5),
    "Q8_0": Tolerance(1e-2, 3e-2, 0.5),
}
COARSE = Tolerance(math.inf, 0.5, math.inf)
"""For types below eight bits, which are llama-quantize's."""

SET_BY_TYPE = frozenset({"general.file_type", "general.quantization_version"})
"""Keys that llama-quantize writes anew."""


def verify_file(path: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Reads every key and tensor back; then llama.cpp must tokenise, score and continue text as the model does.

    Args:
        input_ids: (1, length), a few tokens to continue greedily.

    Raises:
        VerificationError: they differ by more than the file's type explains, or llama.cpp does not run the file.
    """
    file = read_file(path)
    stored = type_name(file.get("general.file_type")) or ""
    tolerance = _tolerance(stored, model.dtype)
    _compare_metadata(file, model)
    _compare_tensors(file, model, TOLERANCES.get(stored, COARSE).element)
    if not engine.installed():
        return
    scored = file.get(PROBE_TOKENS)[: min(SCORED_TOKENS, model.config.max_position_embeddings)]
    text = file.get(PROBE_TEXT_KEY, "")
    prompt = input_ids[0].tolist()
    length = max(len(scored), len(prompt))
    answer = engine.ask(path, text=text, tokens=scored, prompt=prompt, length=length, num_new=GREEDY_TOKENS)
    if text and answer.text_tokens != file.get(PROBE_TOKENS):
        raise VerificationError("llama.cpp splits a text into other tokens than the tokenizer does")
    in_engine, in_memory = mean_nll(model, scored, answer.log_probs)
    if not abs(in_engine - in_memory) <= tolerance.nll * in_memory:
        raise VerificationError(
            f"llama.cpp scores a text with {in_engine:.5f} nats per token, the model in memory with {in_memory:.5f}"
        )
    _compare_greedy(model, prompt, answer.greedy, tolerance)


def _tolerance(stored: str, dtype: torch.dtype) -> Tolerance:
    """What the file's type and the precision in memory allow together."""
    in_memory = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    both = (TOLERANCES.get(stored, COARSE), TOLERANCES[in_memory])
    return Tolerance(*(max(getattr(one, name) for one in both) for name in ("element", "nll", "logit")))


def _compare_metadata(file: GgufFile, model: PreTrainedModel) -> None:
    for key, value in metadata(model.config, GGMLQuantizationType.F32).items():
        if key not in SET_BY_TYPE and file.metadata.get(key) != value:
            raise VerificationError(f"the written {key} is {file.get(key)}, not {value.read()}")


def _compare_tensors(file: GgufFile, model: PreTrainedModel, limit: float) -> None:
    """Every tensor of the model must come back from the file, and the file must hold no other.

    Args:
        limit: largest error of a value, relative to the tensor's largest; infinite where only shapes count.
    """
    expected = {tensor.name for tensor in tensors(model, GGMLQuantizationType.F32)}
    if different := file.tensors.keys() ^ expected:
        raise VerificationError(f"the written file lacks or adds {min(different)}")
    for name, tensor, conversion in conversions(model):
        if file.tensors[conversion.name].dims != tuple(reversed(tensor.shape)):
            raise VerificationError(f"the written {conversion.name} has another shape than {name}")
        if math.isinf(limit):
            continue
        in_memory = tensor.detach().cpu().float()
        error = (restored(file, conversion, tensor.shape) - in_memory).abs().max()
        if not bool(error <= limit * (in_memory.abs().max() + conversion.offset)):
            raise VerificationError(f"the written {conversion.name} differs from {name} by up to {float(error):.3g}")


@torch.no_grad()
def _log_probs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """(length, vocabulary), in float32: of what follows each token."""
    ids = torch.tensor([tokens], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().log_softmax(-1).cpu()


def mean_nll(model: PreTrainedModel, tokens: list[int], found: list[float | None]) -> tuple[float, float]:
    """Mean negative log-likelihood of those of the tokens that llama.cpp scores: its own, and in memory."""
    told = [position for position, value in enumerate(found) if value is not None]
    predicted = _log_probs(model, tokens)[told]
    in_memory = -float(predicted.gather(1, torch.tensor(tokens[1:])[told, None]).mean())
    return -sum(value for value in found if value is not None) / len(told), in_memory


def _compare_greedy(model: PreTrainedModel, prompt: list[int], found: list[int], tolerance: Tolerance) -> None:
    """Every token that llama.cpp chose must be the best in memory too, or as good as the best."""
    predicted = _log_probs(model, [*prompt, *found])[len(prompt) - 1 : -1]
    behind = predicted.amax(-1) - predicted.gather(1, torch.tensor(found)[:, None])[:, 0]
    if not bool((behind <= tolerance.logit).all()):
        raise VerificationError("llama.cpp decodes other tokens than the model in memory")
