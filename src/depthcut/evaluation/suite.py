"""Tasks of lm-evaluation-harness: found, read, checked and digested, their prompts built, all before weights load.

Names, groups, tags, examples and limits are the harness's own. The digest is of everything that will be asked of a
model, so that two runs with the same digest asked the same. Source: lm-evaluation-harness 0.4.13 (EleutherAI). Known
limit: no chat template is applied.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from depthcut.types import InputError

INSTALL = "pip install depthcut[eval]"
FEWSHOT_SEED = 1234
"""The harness's default seed for choosing the examples before a question."""
BROKEN_TASK = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What the reading of a task's definition and documents raises; some of it is the task author's own code."""


@dataclass(frozen=True)
class Task:
    """One task of the harness with its prompts built.

    Attributes:
        inner: the harness's own object.
        limit: documents to ask of, all where None.
        description: version, examples and documents, for people.
        digest: sha256 of the harness's version, the task's settings, the documents and every request.
    """

    name: str
    inner: Any
    limit: int | None
    description: str
    digest: str

    @property
    def file_name(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^\w.-]", "_", self.name)

    @property
    def aggregation(self) -> Mapping[str, Callable[[list[Any]], float]]:
        """By metric, how its items make one number."""
        return self.inner.aggregation()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TaskGroup:
    """Several tasks under one name.

    Attributes:
        by_size: by metric that the group aggregates, whether tasks weigh by their number of items, or all alike.
    """

    name: str
    tasks: tuple[str, ...]
    by_size: Mapping[str, bool]


@dataclass(frozen=True)
class Suite:
    """What is asked of every model.

    Attributes:
        tasks: by name, each once.
        rows: what was asked for, in its order: a task, or a group of tasks that has a score of its own.
    """

    tasks: Mapping[str, Task]
    rows: tuple[Task | TaskGroup, ...]


def check_harness() -> None:
    """Raises InputError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"tasks are run by lm-evaluation-harness, which is not installed; run: {INSTALL}")


def parse_limit(text: str | None) -> float | None:
    """Reads how many documents of each task are asked of: a count, or a share of them below 1.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not (0 < limit < 1 or (limit >= 1 and limit.is_integer())):
        raise InputError(f"limit {text!r} is no number of documents: write a count such as 40 or a share such as 0.1")
    return limit


def load_suite(
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: str | None = None,
    include_path: str | None = None,
    unsafe_code: bool = False,
) -> Suite:
    """Finds tasks by the harness's names, reads their documents and builds their prompts; needs no model.

    Args:
        num_fewshot: examples before each question; the task's own number where left out.
        limit: as in `parse_limit`.
        include_path: folder of further tasks as YAML; its Python functions run.
        unsafe_code: allow tasks that run what the model writes.

    Raises:
        InputError: the harness is missing, or a name, number, folder or task is not what it must be.
    """
    check_harness()
    documents = parse_limit(limit)
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"{num_fewshot} examples cannot stand before a question; give 0 or more to --num-fewshot")
    if not names:
        raise InputError("no task was named; give names of lm-evaluation-harness, for example arc_easy,piqa")
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"the task folder {include_path} is no directory; name one that holds tasks as YAML")
    with quiet_harness():
        manager = _index(names, include_path)
        tasks: dict[str, Task] = {}
        rows: list[Task | TaskGroup] = []
        for name in names:
            with _reading_task(name):
                found = manager.load([name])
            for inner in found["tasks"].values():
                if inner.task_name not in tasks:
                    tasks[inner.task_name] = _prepare(inner, num_fewshot, documents, unsafe_code)
            group = found.get("groups", {}).get(name)
            if group is not None and group.has_aggregation:
                metrics = {entry.metric: bool(entry.weight_by_size) for entry in group.aggregate_metric_list}
                rows.append(TaskGroup(name, tuple(found["tasks"]), metrics))
            else:
                rows += [tasks[member] for member in found["tasks"]]
    return Suite(tasks, tuple({row.name: row for row in rows}.values()))


def _index(names: Sequence[str], include_path: str | None) -> Any:
    """The harness's index of tasks: of the given folder alone where that has all of them, which is much quicker."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if all(name in manager.task_index and manager.task_index[name].kind != Kind.TAG for name in names):
            return manager
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            raise InputError(_unknown(name, manager.all_tasks))
    return manager


def _unknown(name: str, known: list[str]) -> str:
    """One sentence with the nearest names only, because the harness knows thousands."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"unknown task {name!r}; {guess}lm-eval ls tasks lists all of lm-evaluation-harness, and --include-path names "
        "a folder of your own"
    )


@contextlib.contextmanager
def _reading_task(name: str) -> Iterator[None]:
    """Turns what a broken task or a data set out of reach raises into one sentence."""
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        yield
    except InputError:
        raise
    except (*BROKEN_TASK, TemplateError, YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the task {name} cannot be read: {reason}") from error


def _prepare(inner: Any, num_fewshot: int | None, documents: float | None, unsafe_code: bool) -> Task:
    """Sets the number of examples as the harness does, builds the prompts and digests them."""
    from lm_eval.evaluator_utils import get_sample_size

    name = inner.task_name
    if getattr(inner, "UNSAFE_CODE", False) and not unsafe_code:
        raise InputError(
            f"the task {name} runs code that the model writes; do so on a machine that may be lost, and allow it with "
            "--confirm-run-unsafe-code"
        )
    if getattr(inner, "MULTIMODAL", False):
        raise InputError(f"the task {name} shows pictures or sound, which a causal language model does not take")
    own = inner.get_config("num_fewshot")
    if num_fewshot is not None and own == 0 and num_fewshot:
        print(f"{name} is asked without examples by its definition, so not with {num_fewshot}", file=sys.stderr)
    elif num_fewshot is not None or own is None:
        inner.set_config(key="num_fewshot", value=num_fewshot or 0)
    inner.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _reading_task(name):
        limit = get_sample_size(inner, documents)
        inner.build_all_requests(limit=limit)
        total = len(inner.eval_docs)
    count = total if limit is None else min(limit, total)
    part = f"all {total}" if count == total else f"first {count} of {total}"
    shots = inner.get_config("num_fewshot")
    description = f"lm-eval {_version()}, version {inner.VERSION}, {shots}-shot, {part}"
    return Task(name, inner, limit, description, _digest(inner))


def _version() -> str:
    return importlib.metadata.version("lm_eval")


def _digest(inner: Any) -> str:
    settings = inner.dump_config()
    # Where the file lies says nothing of what it asks.
    settings["metadata"] = {
        key: value for key, value in (settings.get("metadata") or {}).items() if key != "config_source"
    }
    requests = [
        (request.request_type, request.doc_id, request.repeats, request.doc, request.args)
        for request in inner.instances
    ]
    text = json.dumps([_version(), settings, requests], sort_keys=True, default=_named)
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def _named(value: object) -> str:
    """A function or a value that JSON does not know, the same in every process."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Inside the context, the harness and transformers print only errors, and nothing to standard output."""
    logger = logging.getLogger("lm_eval")
    level, verbosity = logger.level, transformers_logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
