"""Speed and memory of written models in the engines that serve them, paired and interleaved in one run.

Every model is loaded by its engine in a fresh process of its own and stays there while all are timed in turn, so peak
memory is one model's alone and both models see the same machine. One kind of process for all engines
(`engine_worker.py`); an engine is one function there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from transformers import LlamaConfig

from depthcut.evaluation.ideal import Work, with_ideals, work_of
from depthcut.evaluation.speed import DECODE_TOKENS, ROUNDS, Seconds, time_in_turn
from depthcut.gguf.quick_reader import QuickReader
from depthcut.model.architectures import find_architecture
from depthcut.model.files import find_gguf
from depthcut.model.load import resolve
from depthcut.model.sublayers import is_marked
from depthcut.model.units import sizes_from_config
from depthcut.registry import unknown_name
from depthcut.results import Measurement
from depthcut.types import InputError, Unit, UnitKind

WORKER_SCRIPT = Path(__file__).with_name("engine_worker.py")
VLLM_PYTHON = "DEPTHCUT_VLLM_PYTHON"
"""Environment variable: an interpreter that has vLLM, which needs other versions than depthcut does."""
NEMOTRON_KINDS: dict[UnitKind, str] = {"attn": "attention", "ffn": "ffn"}
"""Entries of `block_configs` by kind of unit."""
GGUF_CACHE_BYTES = 2
"""llama.cpp keeps its cache in float16 unless told otherwise."""


@dataclass(frozen=True)
class Engine:
    """What depthcut needs to know of an engine.

    Attributes:
        module: the Python package that has it.
        install: how to get it.
        reads_gguf: whether its models are `.gguf` files, else directories.
    """

    module: str
    install: str
    reads_gguf: bool = False


ENGINES = {
    "transformers": Engine("transformers", "pip install transformers"),
    "llama.cpp": Engine("xllamacpp", "pip install xllamacpp", reads_gguf=True),
    "vllm": Engine("vllm", f"pip install vllm, or name another environment's interpreter that has it in {VLLM_PYTHON}"),
}


@dataclass(frozen=True)
class TimedModel:
    """A written model before any engine loads it.

    Attributes:
        dtype: that the engine is to compute in; a quantised file's own where the engine decides.
        context: most tokens that it was made for.
    """

    name: str
    dtype: str
    context: int
    work: Work = field(repr=False)


def find_interpreter(engine: str) -> str | None:
    """The Python that has an engine, None where there is none."""
    if engine == "vllm" and os.environ.get(VLLM_PYTHON):
        return os.environ[VLLM_PYTHON]
    return sys.executable if importlib.util.find_spec(ENGINES[engine].module) else None


def check_engine(engine: str) -> str:
    """The Python that has an engine.

    Raises:
        InputError: there is no such engine, or it is not installed.
    """
    if engine not in ENGINES:
        raise InputError(unknown_name("engine", engine, list(ENGINES)))
    python = find_interpreter(engine)
    if python is None:
        raise InputError(f"the engine {engine} is not installed; run: {ENGINES[engine].install}")
    return python


def compare_engine_speed(
    engine: str,
    models: Mapping[str, str],
    *,
    dtype: str = "auto",
    prompt_tokens: int = 512,
    decode_tokens: int = DECODE_TOKENS,
    rounds: int = ROUNDS,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Prompt and decode speed at long and short context, their ideals, peak memory and KV bytes a token.

    Args:
        engine: a name of `ENGINES`.
        models: what the engine is to load, by name; the reference first.
        dtype: to compute in, for engines that read directories.
        prompt_tokens: of the long prompt.

    Raises:
        InputError: the engine is not installed, or does not read such a model; before anything loads.
    """
    python = check_engine(engine)
    found = {name: _find(engine, model, dtype) for name, model in models.items()}
    length = min(prompt_tokens, *(model.context - decode_tokens for model in found.values()))
    with ExitStack() as stack:
        workers = {}
        for name, model in found.items():
            workers[name] = stack.enter_context(_worker(engine, python, model, length + decode_tokens + 1))
        timers = {name: worker.time for name, worker in workers.items()}
        measured = time_in_turn(timers, length, decode_tokens=decode_tokens, rounds=rounds, advance=advance)
        memory = {name: worker.finish() for name, worker in workers.items()}
        about = next(iter(workers.values())).about
    works = {name: model.work for name, model in found.items()}
    measurements = with_ideals(measured, works, length, decode_tokens)
    for name, model in found.items():
        values = {"kv_bytes_per_token": (model.work.kv_bytes, "bytes")}
        values |= {
            measure: (value, "bytes" if "bytes" in measure else "tokens") for measure, value in memory[name].items()
        }
        for measure, (value, unit) in values.items():
            measurements.append(Measurement(name=measure, value=value, unit=unit, model=name))
    threads = f"{torch.get_num_threads()} threads"
    stamp = {"software": about["software"], "device": f"{about['device']}, {threads}"}
    return [
        measurement.model_copy(update=stamp | {"data": ", ".join(filter(None, (engine, measurement.data, threads)))})
        for measurement in measurements
    ]


def _find(engine: str, model: str, dtype: str) -> TimedModel:
    if ENGINES[engine].reads_gguf:
        return _find_gguf(_gguf_file(engine, model))
    if engine == "vllm" and (Path(model) / "config.json").is_file():
        entries = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        if entries.get("model_type") == "nemotron-nas":
            return _find_nemotron_nas(model, entries)
    source = resolve(model, dtype=dtype)
    if engine == "vllm" and source.gguf_file:
        raise InputError(f"vllm is timed on model directories, not on {model}; write one with depthcut export {model}")
    if engine == "vllm" and is_marked(source.config):
        raise InputError(
            f"vllm does not read {model}, whose blocks lack sublayers, in this format; write it for vllm with depthcut "
            f"export {model} --to nemotron-nas"
        )
    sizes = sizes_from_config(source.config, source.architecture, source.dtype)
    work = work_of(source.config, sizes, source.dtype.itemsize)
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    return TimedModel(model, source.provenance.dtype, context, work)


def _gguf_file(engine: str, model: str) -> Path:
    """The file itself, that of a packaged model, or the only one in a directory."""
    files = sorted(Path(model).expanduser().glob("*.gguf"))
    file = find_gguf(str(files[0]) if len(files) == 1 else model)
    if file is None:
        raise InputError(
            f"{engine} runs .gguf files, and {model} is none and holds {len(files)}; write one with depthcut export "
            f"{model} --to gguf"
        )
    return file


def _find_nemotron_nas(model: str, entries: Mapping[str, Any]) -> TimedModel:
    """A directory of ours for engines that read `block_configs`, which transformers does not."""
    config = LlamaConfig(**{name: value for name, value in entries.items() if name not in ("model_type", "auto_map")})
    dtype: torch.dtype = getattr(torch, entries["dtype"])
    absent = {
        Unit(index, kind)
        for index, block in enumerate(entries["block_configs"])
        for kind, name in NEMOTRON_KINDS.items()
        if block[name]["no_op"]
    }
    sizes = sizes_from_config(config, find_architecture(config), dtype)
    return TimedModel(
        model, entries["dtype"], config.max_position_embeddings, work_of(config, sizes, dtype.itemsize, absent)
    )


def _find_gguf(file: Path) -> TimedModel:
    """Work and size of a GGUF by what is in the file; quantised tensors count as many bytes as they take."""
    reader = QuickReader(file)
    architecture = reader.fields["general.architecture"].contents()

    def value(key: str, default: Any = None) -> Any:
        entry = reader.fields.get(f"{architecture}.{key}")
        return default if entry is None else entry.contents()

    def per_block(key: str, default: Any = None) -> list[int]:
        found = value(key, default)
        return found if isinstance(found, list) else [found] * value("block_count")

    heads = per_block("attention.head_count")
    kv_heads = per_block("attention.head_count_kv", value("attention.head_count"))
    width = value("attention.key_length", value("embedding_length") // max(heads))
    values_width = value("attention.value_length", width)
    in_blocks = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.")]
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    vocabulary = by_name.get("output.weight", by_name["token_embd.weight"])
    work = Work(
        token_flops=2 * sum(int(tensor.n_elements) for tensor in in_blocks),
        attended_flops=sum(2 * (width + values_width) * count for count, kv in zip(heads, kv_heads, strict=True) if kv),
        last_flops=2 * int(vocabulary.n_elements),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in (*in_blocks, vocabulary)),
        kv_bytes=sum(kv_heads) * (width + values_width) * GGUF_CACHE_BYTES,
    )
    return TimedModel(str(file), "auto", value("context_length"), work)


class _Worker:
    """A process that holds one model and times it.

    Attributes:
        about: its engine's version and its device.
    """

    def __init__(self, process: subprocess.Popen[str], what: str, log: IO[str]) -> None:
        self._process = process
        self._what = what
        self._log = log
        self.about: dict[str, str] = self._read()

    def time(self, prompt_tokens: int, decode_tokens: int) -> Seconds:
        self._send(json.dumps([prompt_tokens, decode_tokens]))
        return Seconds(*self._read())

    def finish(self) -> dict[str, float]:
        """Ends the process; what it measured of its memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found: dict[str, float] = self._read()
        return found

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        # Where the process has ended, reading its answer says why.
        with suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        words = self._log.read().strip().splitlines()
        raise InputError(f"{self._what}: {words[-1] if words else f'exit code {self._process.returncode}'}")


@contextmanager
def _worker(engine: str, python: str, model: TimedModel, context: int) -> Iterator[_Worker]:
    threads = str(torch.get_num_threads())
    # -P: the script's own folder must not shadow installed packages.
    command = [python, "-P", str(WORKER_SCRIPT), engine, model.name, model.dtype, str(context), threads]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = stack.enter_context(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                errors="replace",
            )
        )
        stack.callback(process.kill)
        yield _Worker(process, f"{engine} does not run {model.name}", log)
