"""What a model answers to a text, for those who distill from it with a trainer of their own: its likeliest tokens.

The files are those that `distill` keeps for itself while it heals. Source of the form, with the rest of the probability
as one more outcome: ours, `docs/guide/teacher-answers.md`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.calibration import Samples, parse_source, sample_text
from depthcut.export import EXPORTS, VerificationError
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.process.progress import progress
from depthcut.repairs.training.goals import INDEX, LOG_P, write_answers
from depthcut.repairs.training.schedule import Count

TOKENS, DESCRIPTION = "tokens.npy", "answers.json"
BATCH_SIZE = 4


@dataclass(frozen=True)
class TeacherAnswers:
    """A text and, at each of its positions, the model's likeliest next tokens with their log-probabilities.

    Attributes:
        text: SOURCE of the text.
        samples: sequences.
        length: tokens a sequence.
        top_k: tokens that are kept at a position.
        seed: which documents and which excerpts.
    """

    text: str = "stdlib"
    samples: Count = 64
    length: Count = 512
    top_k: Count = 64
    seed: int = 0

    note: ClassVar[str] = "what the files hold: docs/guide/teacher-answers.md"

    def check(self, config: PreTrainedConfig) -> None:
        """Every model that predicts tokens answers."""

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        source = parse_source(self.text)
        samples = sample_text(
            source, tokenizer, num_samples=self.samples, length=self.length, seed=self.seed, purpose="calibration"
        )
        stream = DecoderStream(model, find_architecture(model.config))
        with progress("asking the teacher", self.samples) as advance:
            write_answers(stream, samples, torch.arange(self.samples), self.top_k, folder, BATCH_SIZE, advance)
        np.save(folder / TOKENS, samples.input_ids.numpy().astype(np.int32))
        description = {
            "model": model.name_or_path,
            "vocabulary": stream.output_width,
            "top_k": min(self.top_k, stream.output_width),
            "rest": self.top_k < stream.output_width,
            "text": samples.description.model_dump(mode="json"),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def verify(self, folder: Path, model: PreTrainedModel, input_ids: torch.Tensor) -> None:
        """Asks the model again about the last batch, and compares bit for bit."""
        tokens = torch.from_numpy(np.load(folder / TOKENS).astype(np.int64))
        begin = (len(tokens) - 1) // BATCH_SIZE * BATCH_SIZE
        samples = Samples.packed(tokens[begin:], source=self.text, detail="", seed=self.seed, digests=frozenset())
        stream = DecoderStream(model, find_architecture(model.config))
        with tempfile.TemporaryDirectory() as scratch:
            write_answers(stream, samples, torch.arange(len(samples.input_ids)), self.top_k, Path(scratch), BATCH_SIZE)
            for name in (LOG_P, INDEX):
                written, again = (np.load(place / name, mmap_mode="r") for place in (folder, Path(scratch)))
                if not np.array_equal(written[begin:], again):
                    raise VerificationError(f"{name} does not hold what the model answers to its last sequences")


EXPORTS.register(
    "teacher-answers",
    TeacherAnswers,
    summary="a text and the model's likeliest next tokens at each position, for a trainer of your own",
    source="ours",
)
