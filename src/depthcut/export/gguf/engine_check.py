"""Run in a fresh process: loads a GGUF in llama.cpp and says what it computes there.

Nothing of depthcut is imported here, so that what holds here holds for every user of the file.
Usage: python -P engine_check.py MODEL.gguf REQUEST.json THREADS; prints one line of JSON.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FORCED = 1e6
"""Added to the logit of the token that is wanted next; the reported log-probability is the one before."""

GGML_TYPE_F32 = 0

ROOM = 8
"""Positions beyond those that are asked for."""


def main(model: str, request_file: str, threads: str) -> None:
    """Answers a request.

    The request's `text` is split into tokens. Each of `tokens` after the first is scored given those before it, one
    token at a time as a chat would compute them, and `prompt` is read in one piece and continued greedily by
    `num_new` tokens; where either is empty, the first `length` tokens of the text stand for it.
    """
    import xllamacpp

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    server = xllamacpp.Server(
        _parameters(xllamacpp.CommonParams(), model, int(threads), request["length"] + request["num_new"])
    )
    text_tokens = _post(server, "/tokenize", content=request["text"], add_special=False)["tokens"]
    tokens = request["tokens"] or text_tokens[: request["length"]]
    prompt = request["prompt"] or text_tokens[: request["length"]]
    log_probs = [_score(server, tokens[:end]) for end in range(2, len(tokens) + 1)]
    continued = _post(
        server,
        "/completion",
        prompt=prompt,
        n_predict=request["num_new"],
        temperature=0,
        cache_prompt=False,
        ignore_eos=True,
        return_tokens=True,
    )
    print(json.dumps({"text_tokens": text_tokens, "log_probs": log_probs, "greedy": continued["tokens"]}))


def _parameters(parameters: Any, model: str, threads: int, length: int) -> Any:
    """Plain and small: the cache in float32 so that only the file's own precision is judged."""
    parameters.model.path = model
    parameters.n_ctx = length + ROOM
    parameters.n_batch = parameters.n_ubatch = 64
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_type_k = parameters.cache_type_v = GGML_TYPE_F32
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 1
    return parameters


def _score(server: Any, tokens: list[int]) -> float | None:
    """Log-probability of the last token given those before it; None where llama.cpp keeps it to itself.

    That is so for tokens without text of their own: special ones, and those that begin a character of several.
    """
    *before, wanted = tokens
    forced = _post(
        server,
        "/completion",
        prompt=before,
        n_predict=1,
        temperature=0,
        n_probs=1,
        cache_prompt=True,
        logit_bias=[[wanted, FORCED]],
    )
    listed = forced.get("completion_probabilities") or []
    return listed[0]["logprob"] if listed and listed[0]["id"] == wanted else None


def _post(server: Any, path: str, **body: Any) -> Any:
    """Asks by the local port, where llama.cpp says more than the binding's functions pass on."""
    content = json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + path, content, {"Content-Type": "application/json"})
    # A proxy of the user's has no business between a process and itself.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
