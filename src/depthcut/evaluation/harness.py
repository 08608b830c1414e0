"""Tasks of lm-evaluation-harness asked of a model in memory, item by item, and kept on disk.

The harness itself asks and scores, so a score here is the harness's own. Results are kept one file a task and model,
under the digest of everything that was asked and of the files that the model was read from: an evaluation that was
killed repeats only the task in flight, and a dense model is asked once.

Known limit: tasks are asked one by one, so where the batch size is above one other items share a batch than in a run of
the harness over several tasks at once, which moves log-likelihoods in their last digits.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.suite import FEWSHOT_SEED, Suite, Task, quiet_harness
from depthcut.model.load import ModelSource
from depthcut.types import InputError, Record

CHOICE_METRICS = ("acc_norm", "acc", "acc_bytes")
"""Right answers among options, the usual one first: here guessing gives one in as many as there are options."""


class Item(Record):
    """One question and what a model made of it.

    Attributes:
        document: its place in the task's documents.
        digest: of the document, so that two models are known to have answered the same one.
        answers: what the model said, as the harness hands it on: for each option its log-likelihood and whether it is
            the greedy text, or the text that was generated.
        values: by `metric,filter`, what the harness scored; a tuple of it is a list here.
        chance: what guessing gives on average; None where the answer is not one of given options.
    """

    document: int
    digest: str
    answers: list[Any]
    values: dict[str, Any]
    chance: float | None = None


class TaskResult(Record):
    """One model's answers to one task: a file of the cache.

    Attributes:
        digest: of everything that was asked.
        model_digest: of the files that the model was read from.
        metrics: by `metric,filter`, as the harness aggregates the items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")

    task: str
    digest: str
    model_digest: str
    metrics: dict[str, float]
    items: tuple[Item, ...]
    batch_size: str
    seconds: float


def model_digest(source: ModelSource) -> str:
    """sha256 of what a model's answers depend on: configuration, every byte of weights, tokenizer, dtype, software.

    A hub model's files are known by their commit. Unlike `Provenance.digest` this reads weights whole, since two
    repairs of one model can differ in a few tensors only.
    """
    digest = hashlib.sha256(source.provenance.dtype.encode())
    for package in ("torch", "transformers"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    if source.provenance.format == "hub":
        digest.update(source.provenance.digest.encode())
        return digest.hexdigest()
    files = [source.folder / source.gguf_file] if source.gguf_file else []
    if not files:
        kinds = ("*.safetensors", "config.json", "token*", "vocab*", "merges.txt", "*.model", "modeling_*.py")
        files = sorted({file for kind in kinds for file in source.folder.glob(kind)})
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def default_cache() -> Path:
    """The default folder of cached results: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "depthcut" / "evaluation"


def check_cache(cache: Path) -> None:
    """Makes the folder that keeps results. Raises InputError where nothing can be written there."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise InputError(
            f"results of tasks cannot be kept in {cache}: {error.strerror}; name another folder with --cache-dir, or "
            "for prune with the variable XDG_CACHE_HOME"
        ) from error


def run_suite(
    suite: Suite,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    digest: str | None,
    cache: Path,
    batch_size: str = "auto",
) -> dict[str, TaskResult]:
    """Every task's result of one model: from the cache where it is there, else asked and kept.

    Args:
        name: of the model, for people.
        digest: as of `model_digest`; None keeps nothing.
        batch_size: requests run together; `auto` is one on a CPU, where padding costs more than it saves, and on a GPU
            the largest that fits.
    """
    results = {}
    for task in suite.tasks.values():
        file = None if digest is None else cache / digest[:16] / f"{task.file_name}-{task.digest[:16]}.json"
        found = None if file is None else _kept(file, task, digest)
        if found is not None:
            print(f"{name}: {task.name}, {len(found.items)} items, kept from an earlier run", file=sys.stderr)
        else:
            print(f"{name}: {task.name} ...", file=sys.stderr, flush=True)
            found = run_task(task, model, tokenizer, digest=digest or "", batch_size=batch_size)
            if file is not None:
                _keep(found, file)
            print(f"{name}: {task.name}, {len(found.items)} items, {found.seconds:.1f} s", file=sys.stderr, flush=True)
        results[task.name] = found
    return results


def _kept(file: Path, task: Task, digest: str | None) -> TaskResult | None:
    if not file.is_file():
        return None
    try:
        found = TaskResult.from_file(file)
    except InputError as damage:
        print(f"{damage}; the task is asked again", file=sys.stderr)
        return None
    return found if (found.digest, found.model_digest) == (task.digest, digest) else None


def _keep(result: TaskResult, file: Path) -> None:
    """Writes a result whole or not at all; two processes may do so at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            partial = Path(scratch) / file.name
            partial.write_text(result.to_json(), encoding="utf-8")
            partial.replace(file)
    except OSError as error:
        raise InputError(f"the result of {result.task} cannot be kept in {file.parent}: {error.strerror}") from error


def run_task(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, digest: str, batch_size: str = "auto"
) -> TaskResult:
    """Asks one task of a model, by the harness.

    Seeds Python's, numpy's and torch's generators as the harness does, since tasks may sample.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    began = time.monotonic()
    if batch_size == "auto" and model.device.type == "cpu":
        batch_size = "1"
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    task.inner.set_fewshot_seed(seed=FEWSHOT_SEED)
    with quiet_harness():
        # The harness may give a tokenizer that has no padding token one.
        asked = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
        if not sys.stderr.isatty():
            # A log would hold every step of its bars.
            for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until", "_loglikelihood_tokens"):
                setattr(asked, kind, functools.partial(getattr(asked, kind), disable_tqdm=True))
        found = evaluate(
            lm=asked,
            task_dict={"tasks": {task.name: task.inner}},
            limit=task.limit,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )
    metrics = {
        key: float(value)
        for key, value in found["results"][task.name].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float | np.number)
    }
    return TaskResult(
        task=task.name,
        digest=task.digest,
        model_digest=digest,
        metrics=metrics,
        items=_items(task, found["samples"][task.name]),
        batch_size=batch_size,
        seconds=time.monotonic() - began,
    )


def _items(task: Task, samples: Sequence[Mapping[str, Any]]) -> tuple[Item, ...]:
    """The harness's samples, one a document: it gives one for each filter of answers."""
    items: dict[int, Item] = {}
    for sample in samples:
        values = {f"{metric},{sample['filter']}": _plain(sample[metric]) for metric in sample["metrics"]}
        earlier = items.get(sample["doc_id"])
        items[sample["doc_id"]] = Item(
            document=sample["doc_id"],
            digest=sample["doc_hash"],
            answers=_plain(sample["filtered_resps"]),
            values=values if earlier is None else earlier.values | values,
            chance=_chance(task, sample),
        )
    return tuple(items[document] for document in sorted(items))


def _plain(value: Any) -> Any:
    """The same as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _chance(task: Task, sample: Mapping[str, Any]) -> float | None:
    if task.inner.OUTPUT_TYPE != "multiple_choice":
        return None
    right = sample["target"]
    return (len(set(right)) if isinstance(right, list) else 1) / len(task.inner.doc_to_choice(sample["doc"]))
