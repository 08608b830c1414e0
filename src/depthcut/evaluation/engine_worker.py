"""Run in a fresh process: loads one model in one engine, and times it whenever it is asked.

Each request is a line of JSON on standard input, `[prompt_tokens, decode_tokens]`, answered by a line on standard
output, `[prompt_seconds, decode_seconds]`: the first up to the first token, the second for the tokens after it. Loading
and splitting text into tokens are left out, and nothing is shared with earlier requests. The first line that is printed
says which engine on what device has loaded the model; the last, when standard input ends, what was measured of memory.
What the engine itself prints goes to standard error.

Imports nothing of depthcut for engines other than transformers, since they may live in an environment of their own.
Usage: python -P engine_worker.py ENGINE MODEL DTYPE CONTEXT THREADS
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
TOKENS = 97
"""Prompts are made of the first token ids that every vocabulary has."""

TimedRun = Callable[[list[int], int], tuple[float, float]]
"""Takes the length of a prompt and a number of tokens to decode after it; returns the seconds of both."""


class EngineOptions(NamedTuple):
    """What to load and how.

    Attributes:
        dtype: name of a torch dtype; llama.cpp computes as its file says.
        context: most tokens of a prompt and what is decoded after it.
    """

    model: str
    dtype: str
    context: int
    threads: int


class LoadedEngine(NamedTuple):
    """A model in its engine.

    Attributes:
        found: what is known of its memory, instead of the peak.
    """

    run: TimedRun
    software: str
    device: str
    found: dict[str, float]


def load_transformers(options: EngineOptions) -> LoadedEngine:
    import torch
    import transformers

    from depthcut.evaluation.speed import time_once
    from depthcut.model.load import resolve

    torch.set_num_threads(options.threads)
    model = resolve(options.model, dtype=options.dtype).load_model()

    def run(prompt: list[int], decode_tokens: int) -> tuple[float, float]:
        taken = time_once(model, torch.tensor([prompt]), len(prompt), decode_tokens)
        return taken.prompt, taken.decode

    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine()
    return LoadedEngine(run, f"transformers {transformers.__version__}", device, {})


def load_llama_cpp(options: EngineOptions) -> LoadedEngine:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.n_ctx = options.context
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    # It would otherwise shrink the context to what it thinks fits, and keep copies of past prompts.
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)

    def run(prompt: list[int], decode_tokens: int) -> tuple[float, float]:
        request = {"prompt": prompt, "n_predict": decode_tokens + 1, "temperature": 0, "ignore_eos": True}
        answer = server.handle_completions(request | {"cache_prompt": False})
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        timings = answer["timings"]
        return timings["prompt_ms"] / 1000, timings["predicted_ms"] / 1000

    return LoadedEngine(run, f"xllamacpp {xllamacpp.__version__}", platform.machine(), {})


def load_vllm(options: EngineOptions) -> LoadedEngine:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # it binds to all cores otherwise
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    import vllm  # reads the variables above

    torch.set_num_threads(options.threads)
    llm = vllm.LLM(
        model=options.model,
        dtype=options.dtype,
        max_model_len=options.context,
        max_num_seqs=1,
        # The other model needs its share of the GPU at the same time.
        gpu_memory_utilization=0.4,
        # Graphs are what makes decoding fast on a GPU; on a CPU compiling takes minutes and gains little.
        enforce_eager=not torch.cuda.is_available(),
        trust_remote_code=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=False,
    )

    def run(prompt: list[int], decode_tokens: int) -> tuple[float, float]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=decode_tokens + 1, ignore_eos=True, detokenize=False)
        stamps = llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)[0].metrics
        return stamps.first_token_ts - stamps.scheduled_ts, stamps.last_token_ts - stamps.first_token_ts

    cache = llm.llm_engine.vllm_config.cache_config
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    # It takes the memory for its cache at once, so what tells models apart is how much fits into it.
    found = {"kv_capacity_tokens": cache.num_gpu_blocks * cache.block_size}
    return LoadedEngine(run, f"vllm {vllm.__version__}", device, found)


LOADERS = {"transformers": load_transformers, "llama.cpp": load_llama_cpp, "vllm": load_vllm}


def main(engine: str, model: str, dtype: str, context: str, threads: str) -> None:
    # Whatever an engine prints must not be taken for an answer, also where it prints from C++.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loaded = LOADERS[engine](EngineOptions(model, dtype, int(context), int(threads)))
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # begins the peak anew, without what loading took
    tell(answers, {"software": loaded.software, "device": loaded.device})
    for line in sys.stdin:
        prompt_tokens, decode_tokens = json.loads(line)
        prompt = [3 + 31 * index % (TOKENS - 3) for index in range(prompt_tokens)]
        tell(answers, loaded.run(prompt, decode_tokens))
    tell(answers, loaded.found or peak_memory())


def tell(answers: Any, answer: object) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def peak_memory() -> dict[str, float]:
    """Most memory at once while answering: of the GPU where torch used one, else resident in this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated()}
    if not STATUS.exists():
        return {}
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return {"peak_memory_bytes": 1024 * int(peak.split()[1])}


if __name__ == "__main__":
    main(*sys.argv[1:])
