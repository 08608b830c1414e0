"""Verification by another reader of what was written: a fresh process reads it, and its answers are compared.

Other readers order their arithmetic differently, so answers agree within what the precision gives, not bit for bit.
Greedy decoding may part ways only where the model in memory finds both tokens about equally likely.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from depthcut.export import VerificationError

GREEDY_TOKENS = 16

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest relative difference of the mean loss that rounding explains, by the precision that is computed in."""

TIE_NATS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 2e-1}
"""Largest difference of two log-probabilities that rounding can turn round, by the precision that is computed in."""


@dataclass(frozen=True)
class ReaderAnswers:
    """What a reader says about a text.

    Attributes:
        loss: mean over the text's tokens but the first, nats per token.
        greedy: the token ids that follow the text.
    """

    loss: float
    greedy: tuple[int, ...]


@torch.no_grad()
def verify_with(
    reader: str, script: Path, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor, python: str = ""
) -> None:
    """Lets a script read a written model in a fresh process and compares its answers with the model in memory.

    Args:
        reader: what reads, for messages.
        script: takes the folder and a JSON file of `input_ids`, `greedy_tokens`, `dtype` and `device`; prints one line
            of JSON with `loss` and `greedy`, or with `problem`, a clause about the written model.
        input_ids: (1, length), a few tokens.
        python: the interpreter that has the reader's packages; this process's where left out.

    Raises:
        VerificationError: the reader cannot read it, or answers otherwise.
    """
    input_ids = input_ids.to(model.device)
    question = {
        "input_ids": input_ids[0].tolist(),
        "greedy_tokens": GREEDY_TOKENS,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
    compare(reader, model, input_ids, _ask(reader, script, folder, question, python or sys.executable))


def compare(reader: str, model: PreTrainedModel, input_ids: torch.Tensor, found: ReaderAnswers) -> None:
    """Raises VerificationError where the answers are not those of the model in memory."""
    loss = _loss(model(input_ids=input_ids, use_cache=False).logits[0], input_ids[0])
    if not abs(found.loss - loss) <= LOSS_TOLERANCE[model.dtype] * loss:
        raise VerificationError(
            f"{reader} finds a loss of {found.loss:.6g} nats per token on the probe, the model in memory {loss:.6g}"
        )
    follows = torch.tensor([found.greedy], device=model.device, dtype=input_ids.dtype)
    logits = model(input_ids=torch.cat([input_ids, follows], dim=1), use_cache=False).logits[0]
    nats = logits[input_ids.shape[1] - 1 : -1].float().log_softmax(dim=-1)
    for step, token in enumerate(found.greedy):
        best = int(nats[step].argmax())
        if token == best:
            continue
        if float(nats[step, best] - nats[step, token]) > TIE_NATS[model.dtype]:
            raise VerificationError(
                f"{reader} decodes other tokens than the model in memory: {token} for {best} at step {step + 1}"
            )
        # From here on the two continue different texts.
        return


def _loss(logits: torch.Tensor, token_ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), token_ids[1:]))


def _ask(reader: str, script: Path, folder: Path, question: dict[str, object], python: str) -> ReaderAnswers:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "question.json"
        file.write_text(json.dumps(question), encoding="utf-8")
        environment = os.environ | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,
        }
        # -P: the script's own folder must not shadow installed packages.
        command = [python, "-P", str(script), str(folder), str(file)]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        reason = child.stderr.strip().splitlines()[-1] if child.stderr.strip() else f"exit code {child.returncode}"
        raise VerificationError(f"{reader} cannot read the written model: {reason}")
    found = json.loads(lines[-1])
    if "problem" in found:
        raise VerificationError(f"{reader} cannot read the written model: {found['problem']}")
    return ReaderAnswers(found["loss"], tuple(found["greedy"]))
