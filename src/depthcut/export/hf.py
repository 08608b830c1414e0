"""A Hugging Face directory: safetensors, tokenizer, generation settings, chat template.

Of the stock architecture where blocks are whole; else of a type of its own, with a short file of code beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from depthcut.export import EXPORTS, VerificationError
from depthcut.export.companions import copy_model_files, write_tokenizer
from depthcut.export.config_file import changed_entries, write_config
from depthcut.export.stored import add_quantisation, write_config_file, write_weights
from depthcut.model.architectures import PRUNED_PREFIX, find_architecture
from depthcut.model.checkpoint import read_config
from depthcut.model.heads import HeadKind, head_of_model
from depthcut.model.load import resolve
from depthcut.model.paging import Pager, in_shards, pager_of, parts
from depthcut.model.precision import in_written_dtype
from depthcut.model.quantisation import quantisation
from depthcut.model.stored import needs_unpacking, stored_model
from depthcut.model.sublayers import CODE_FILE, is_marked, remote_code
from depthcut.types import InputError

RELOAD_SCRIPT = Path(__file__).with_name("reload_check.py")
GREEDY_TOKENS, PAGED_GREEDY_TOKENS = 16, 2

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference of logits, as a share of the largest, that comes of where weights lie in memory."""


def write_directory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes model and tokenizer into an existing folder, readable by everyone the umask lets read."""
    write_model(model, folder)
    with without_bars():
        write_tokenizer(tokenizer, folder)
    make_readable(folder)


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes configuration, weights and, where a stock type does not do, code into an existing folder."""
    if is_marked(model.config):
        model_type = model.config.model_type.removeprefix(PRUNED_PREFIX)
        code = remote_code(model_type, find_architecture(model.config), head_of_model(model))
        (folder / CODE_FILE).write_text(code, encoding="utf-8")
    architecture = find_architecture(model.config)
    stored = stored_model(model, architecture)
    if stored is not None:
        write_weights(stored, folder)
        write_config_file(model, folder)
        write_config(model, folder)
        add_quantisation(stored, architecture, folder)
    else:
        # A type of our own has none of the stock type's renamings of tensors, so names stay as the modules have them;
        # and how tensors were quantised on loading cannot be undone on saving.
        stock = not is_marked(model.config) and quantisation(model.config) is None
        with in_written_dtype(model):
            with without_bars(), in_shards(model) as arguments:
                model.save_pretrained(folder, save_original_format=stock, **arguments)
            write_config(model, folder)
    copy_model_files(model, folder)


def make_readable(folder: Path) -> None:
    """Lets everyone read the files of a folder whom the umask lets."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            # safetensors files are created for their owner alone.
            file.chmod(0o666 & ~umask)


@contextmanager
def without_bars() -> Iterator[None]:
    """While open, transformers shows no progress bars."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def verify_directory(folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
    """Loads a written model in a fresh process with plain transformers and compares it with the one in memory.

    Every tensor and every entry of the configuration must be there, the output must be equal bit for bit, and greedy
    decoding, of what predicts tokens, must give the same tokens with and without a cache. The
    configuration is compared by itself because a few tokens show nothing of what a sliding window or a long context
    does. Of a paged model every tensor is compared with the written one, and the logits, which transformers computes
    on the CPU and from unaligned memory, to rounding; of an accelerator no tokens, which rounding may turn.

    Args:
        input_ids: (1, length), a few tokens.

    Raises:
        VerificationError: they differ, or the written model does not load.
    """
    input_ids = input_ids.to(model.device)
    paged = pager_of(model) is not None
    if paged:
        _require_equal_tensors(folder, model)
    output = model(input_ids=input_ids, use_cache=False)
    tensors = {"input_ids": input_ids, "logits": (output.logits if "logits" in output else output[0]).float()}
    if head_of_model(model) == "tokens":
        num_tokens = PAGED_GREEDY_TOKENS if paged else GREEDY_TOKENS
        for name, use_cache in (("with_cache", True), ("without_cache", False)):
            tensors[name] = _greedy(model, input_ids, use_cache, num_tokens)
        exact = model.dtype == torch.float32 and quantisation(model.config) is None
        if exact and not torch.equal(tensors["with_cache"], tensors["without_cache"]):
            raise VerificationError("the pruned model decodes other tokens with a cache than without")
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "expected.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, expected)
        # -P: the script's own folder must not shadow installed packages.
        trust = "trust" if is_marked(model.config) else "plain"
        if _needs_own_reader(folder):
            trust = "own"
        arguments = [str(folder), str(expected), str(model.dtype), "cpu" if paged else str(model.device), trust]
        arguments.append("disk" if paged else "memory")
        command = [sys.executable, "-P", str(RELOAD_SCRIPT), *arguments]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,
            "TMPDIR": scratch,
        }
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1] if child.stderr.strip() else f"exit code {child.returncode}"
        raise VerificationError(f"the written model does not load in a fresh process: {reason}")
    found = json.loads(child.stdout.strip().splitlines()[-1])
    for names, problem in ((found["missing"], "lacks"), (found["unexpected"], "holds beside the model's")):
        if names:
            raise VerificationError(f"the written model {problem} the tensor {names[0]}")
    if changed := changed_entries(model.config, found["config"]):
        raise VerificationError(f"the written configuration differs from the one in memory in {', '.join(changed)}")
    if found["largest_logit_difference"] > (ROUNDING[model.dtype] * found["largest_logit"] if paged else 0):
        difference = found["largest_logit_difference"]
        raise VerificationError(f"the reloaded logits differ from those in memory by up to {difference:.3g}")
    if paged and model.device.type != "cpu":
        return
    if not all(found[f"{name}_equal"] for name in tensors.keys() & {"with_cache", "without_cache"}):
        raise VerificationError("the reloaded model decodes other tokens than the model in memory")


def _needs_own_reader(folder: Path) -> bool:
    """Whether a written model is stored in a way that transformers alone does not read here."""
    try:
        return needs_unpacking(read_config(folder).get("quantization_config") or {}, folder)
    except InputError as error:
        raise VerificationError(f"the written model does not load in a fresh process: {error}") from error


def _require_equal_tensors(folder: Path, model: PreTrainedModel) -> None:
    """Raises VerificationError where a written tensor is not that of a paged model, bit for bit."""
    source = resolve(str(folder), dtype=str(model.dtype).removeprefix("torch."))
    reloaded = source.load_model("cpu", Pager(0))
    written = dict(reloaded.named_parameters())
    for name, parameter in model.named_parameters():
        other = written.get(name)
        if other is None or other.shape != parameter.shape:
            raise VerificationError(f"the written model lacks the tensor {name}")
        if not all(torch.equal(*pieces) for pieces in zip(parts(parameter), parts(other), strict=True)):
            raise VerificationError(f"the written tensor {name} is not the one in memory")


def _greedy(model: PreTrainedModel, input_ids: torch.Tensor, use_cache: bool, num_tokens: int) -> torch.Tensor:
    return model.generate(  # type: ignore[no-any-return, operator]
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        use_cache=use_cache,
    )


@dataclass(frozen=True)
class HuggingFace:
    """The directory that transformers, and every engine that reads its checkpoints, loads."""

    note: ClassVar[str] = ""
    heads: ClassVar[tuple[HeadKind, ...]] = get_args(HeadKind)

    def check(self, config: PreTrainedConfig) -> None:
        """Holds every model that depthcut loads."""

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        write_directory(model, tokenizer, folder)

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        verify_directory(folder, model, input_ids)


EXPORTS.register("hf", HuggingFace, summary="Hugging Face directory, safetensors", source="transformers")
