"""Asks llama.cpp about a written file, in a fresh process, where its binding `xllamacpp` is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthcut.export import VerificationError

ENGINE = "xllamacpp"
CHECK_SCRIPT = Path(__file__).with_name("engine_check.py")


@dataclass(frozen=True)
class Answer:
    """What llama.cpp computed.

    Attributes:
        text_tokens: the text's token ids, without a beginning-of-sequence token.
        log_probs: of every token after the first, in nats, given those before it; None for a token without text of its
            own, whose probability llama.cpp does not tell.
        greedy: the prompt's continuation.
    """

    text_tokens: list[int]
    log_probs: list[float | None]
    greedy: list[int]


def installed() -> bool:
    """Whether there is an engine to ask."""
    return importlib.util.find_spec(ENGINE) is not None


def ask(
    model: Path, *, text: str, length: int, num_new: int, tokens: Sequence[int] = (), prompt: Sequence[int] = ()
) -> Answer:
    """Loads a file in a fresh process; costs one pass a scored token.

    Args:
        tokens: to be scored.
        prompt: to be continued greedily by `num_new` tokens.
        length: of the longer one, and how many of the text's tokens stand for either that is left out.

    Raises:
        VerificationError: llama.cpp does not load or run it.
    """
    request = {"text": text, "length": length, "num_new": num_new, "tokens": list(tokens), "prompt": list(prompt)}
    # llama.cpp's threads wait for each other by spinning: one too many on a busy machine costs a hundredfold.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory() as scratch:
        request_file = Path(scratch) / "request.json"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        # -P: the script's own folder must not shadow installed packages.
        command = [sys.executable, "-P", str(CHECK_SCRIPT), str(model), str(request_file), threads]
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if child.returncode != 0:
        raise VerificationError(f"llama.cpp does not run the written file: {_reason(child.stderr, child.returncode)}")
    return Answer(**json.loads(child.stdout.strip().splitlines()[-1]))


def _reason(log: str, code: int) -> str:
    """The line that says why, of the many that a failed load leaves."""
    for pattern in (r"error loading model: (.+)", r" E [^:]*: *(.+)", r"\w*Error: (.+)"):
        if found := re.search(pattern, log):
            return found[1].strip()
    return f"it ended with code {code}"
