"""What training drives down: the loss of the text, or the distance from the dense model's answers kept on disk.

A goal gives what it needs of each sequence beforehand and one number for each position that counts; the Trainer takes
the mean over all positions of an update, so that neither pads nor the size of the pieces weigh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from transformers import PreTrainedModel

from depthcut.calibration import Samples
from depthcut.model.stream import DecoderStream
from depthcut.model.watch import watch
from depthcut.repairs import Damage


class Goal(Protocol):
    """What is trained for.

    Attributes:
        compares: the logits, or what the output head reads: the stream after the final norm.
    """

    @property
    def compares(self) -> Literal["logits", "stream"]: ...

    def targets(self, row: int) -> dict[str, torch.Tensor]:
        """Of one sequence: `counted`, (length,) bool, and what `losses` takes of every position, (length, ...)."""
        ...

    def losses(self, found: torch.Tensor, **targets: torch.Tensor) -> torch.Tensor:
        """(positions,) from what is compared, (positions, ...) float32, and the targets there; nats for logits."""
        ...


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of the next token, where both tokens are there."""

    samples: Samples
    compares: ClassVar[Literal["logits"]] = "logits"

    def targets(self, row: int) -> dict[str, torch.Tensor]:
        ids, present = self.samples.input_ids[row], self.samples.attention_mask[row].bool()
        counted = torch.nn.functional.pad(present[:-1] & present[1:], (0, 1))
        return {"counted": counted, "token": ids.roll(-1)}

    def losses(self, found: torch.Tensor, **targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(found, targets["token"], reduction="none")


@dataclass(frozen=True)
class Teacher:
    """KL(P || Q) to the dense model's kept answers: its k likeliest tokens, and all others as one more outcome.

    With the rest as an outcome of its own both sides are whole distributions: the divergence is 0 exactly where the k
    probabilities agree, never more than that over the vocabulary, and equal to it when k is the vocabulary. Leaving
    the rest out, or sharing its mass among the k, would teach probabilities that the dense model does not have.

    Attributes:
        log_p: float32 on disk, sequences x length x (k + 1), the rest last; k where there is none. Only
            the rows that are trained on are filled in.
        index: int32 on disk, sequences x length x k.
        rest: whether there are other tokens.
    """

    samples: Samples
    log_p: np.ndarray
    index: np.ndarray
    rest: bool
    compares: ClassVar[Literal["logits"]] = "logits"

    def targets(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "counted": self.samples.attention_mask[row].bool(),
            "log_p": torch.from_numpy(self.log_p[row].copy()),
            "index": torch.from_numpy(self.index[row].astype(np.int64)),
        }

    def losses(self, found: torch.Tensor, **targets: torch.Tensor) -> torch.Tensor:
        log_p, index = targets["log_p"], targets["index"]
        log_q = outcomes(found.log_softmax(dim=-1), index, self.rest)
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@dataclass(frozen=True)
class DenseStream:
    """Squared distance to what the dense model's output head reads, as a share of that one's squared length.

    Attributes:
        read: float32 on disk, sequences x length x hidden. Only the rows that are trained on are filled in.
    """

    samples: Samples
    read: np.ndarray
    compares: ClassVar[Literal["stream"]] = "stream"

    def targets(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "counted": self.samples.attention_mask[row].bool(),
            "read": torch.from_numpy(self.read[row].copy()),
        }

    def losses(self, found: torch.Tensor, **targets: torch.Tensor) -> torch.Tensor:
        meant = targets["read"]
        return (found - meant).square().sum(dim=-1) / meant.square().sum(dim=-1)


def outcomes(log_probabilities: torch.Tensor, index: torch.Tensor, rest: bool) -> torch.Tensor:
    """Log probabilities of some tokens and of all the others together, (positions, k + 1); without a rest, k."""
    chosen = log_probabilities.gather(-1, index)
    if not rest:
        return chosen
    # 1 - the sum would lose all digits where the k tokens take nearly everything.
    others = log_probabilities.scatter(-1, index, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([chosen, others], dim=-1)


@contextmanager
def head_inputs(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects what the output head reads, each time that it runs."""
    read: list[torch.Tensor] = []
    with watch([model.get_output_embeddings()], lambda call: read.append(call.given), before=True):
        yield read


@torch.no_grad()
def follow_stream(damage: Damage, rows: torch.Tensor, folder: Path) -> DenseStream:
    """Runs the dense model over the rows that are trained on, once, and keeps what its output head reads in a folder.

    What a killed run has finished is used again. Takes 4 bytes of disk a token and channel, and one forward pass.
    """
    dense, samples, rows = damage.dense, damage.text, torch.unique(rows)
    file = folder / "dense_stream.npy"

    def ask() -> None:
        shape = (*samples.input_ids.shape, dense.model.config.get_text_config().hidden_size)
        kept = open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        for chosen in torch.split(rows, damage.batch_size):
            batch = dense.prepare(samples.input_ids[chosen], samples.attention_mask[chosen])
            with head_inputs(dense.model) as read:
                for positions, _ in dense.logits(batch, dense.run(batch)):
                    kept[chosen.numpy(), positions] = read.pop().float().cpu().numpy()
            damage.advance(len(chosen))
        kept.flush()

    _once(damage, folder / "dense_stream_finished", len(rows), ask)
    return DenseStream(samples, open_memmap(file, mode="r"))


LOG_P, INDEX = "teacher_log_p.npy", "teacher_index.npy"
"""A dense model's answers in a folder; `docs/guide/teacher-answers.md` is the format."""


def ask_teacher(damage: Damage, rows: torch.Tensor, top_k: int, folder: Path) -> Teacher:
    """Runs the dense model over the rows that are trained on, once, and keeps its answers in a folder.

    What a killed run has finished is used again. Takes 8 k + 4 bytes of disk a token and one forward pass.

    Args:
        top_k: tokens that are kept; the whole vocabulary where it is smaller.
    """
    rows = torch.unique(rows)

    def ask() -> None:
        write_answers(damage.dense, damage.text, rows, top_k, folder, damage.batch_size, damage.advance)

    _once(damage, folder / "teacher_finished", len(rows), ask)
    rest = top_k < damage.dense.output_width
    return Teacher(damage.text, open_memmap(folder / LOG_P, mode="r"), open_memmap(folder / INDEX, mode="r"), rest)


@torch.no_grad()
def write_answers(
    dense: DecoderStream,
    samples: Samples,
    rows: torch.Tensor,
    top_k: int,
    folder: Path,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes what a model answers to some rows of a text, as `LOG_P` and `INDEX`.

    Args:
        rows: that are filled in.
        top_k: tokens that are kept; the whole vocabulary where it is smaller.
        advance: called with the sequences that were done since the last call.
    """
    top_k, rest = min(top_k, dense.output_width), top_k < dense.output_width
    shape = tuple(samples.input_ids.shape)
    log_p = open_memmap(folder / LOG_P, mode="w+", dtype=np.float32, shape=(*shape, top_k + rest))
    index = open_memmap(folder / INDEX, mode="w+", dtype=np.int32, shape=(*shape, top_k))
    for chosen in torch.split(rows, batch_size):
        batch = dense.prepare(samples.input_ids[chosen], samples.attention_mask[chosen])
        for positions, logits in dense.logits(batch, dense.run(batch)):
            log_probabilities = logits.float().log_softmax(dim=-1)
            likeliest = log_probabilities.topk(top_k, dim=-1).indices
            log_p[chosen.numpy(), positions] = outcomes(log_probabilities, likeliest, rest).cpu().numpy()
            index[chosen.numpy(), positions] = likeliest.cpu().numpy()
        advance(len(chosen))
    log_p.flush()
    index.flush()


def _once(damage: Damage, finished: Path, num_sequences: int, ask: Callable[[], None]) -> None:
    """Asks the dense model unless a killed run has; where ranks share the folder, the first of them does."""

    def ask_unless_known() -> None:
        if finished.is_file():
            damage.advance(num_sequences)
        else:
            ask()
            finished.touch()

    if damage.folder is None:
        ask_unless_known()
    else:
        damage.ranks.from_first(ask_unless_known)
