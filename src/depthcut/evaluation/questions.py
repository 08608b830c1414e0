"""What is asked of the dense and the pruned model alike beside texts: tasks of the harness, the generation probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.compare import stamped
from depthcut.evaluation.generation import Texts, compare_texts, model_texts, samples
from depthcut.evaluation.harness import TaskResult, default_cache, run_suite
from depthcut.evaluation.probes import PROBES
from depthcut.evaluation.retention import compare_tasks
from depthcut.evaluation.suite import Suite
from depthcut.process.progress import progress
from depthcut.results import GenerationSample, Measurement


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        tasks: by name; empty where none was asked.
        texts: what it wrote, by mode; empty where nothing was asked for.
    """

    tasks: Mapping[str, TaskResult]
    texts: Texts


@dataclass(frozen=True)
class Questions:
    """What is asked of every model.

    Attributes:
        suite: tasks of the harness.
        generation: whether the generation probe runs.
        batch_size: of the tasks' requests, a number or `auto`.
        cache: folder that keeps the tasks' results.
        seed: of what is sampled.
    """

    suite: Suite | None = None
    generation: bool = False
    batch_size: str = "auto"
    cache: Path = field(default_factory=default_cache)
    seed: int = 0

    def ask(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, digest: str | None) -> Answers:
        """Asks one model.

        Args:
            name: of the model, for people.
            digest: as of `model_digest`; None where the model lies in no file, so that its results are not kept.
        """
        tasks: Mapping[str, TaskResult] = {}
        texts: Texts = {}
        if self.suite is not None:
            tasks = run_suite(
                self.suite, model, tokenizer, name=name, digest=digest, cache=self.cache, batch_size=self.batch_size
            )
        if self.generation:
            with progress(f"{name}: writing", 2 * len(PROBES)) as advance:
                texts = model_texts(model, tokenizer, seed=self.seed, advance=advance)
        return Answers(tasks, texts)

    def compare(self, dense: Answers, pruned: Answers, model: PreTrainedModel) -> list[Measurement]:
        """Scores, differences and what is retained.

        Args:
            model: one of them, for the device's name.
        """
        found: list[Measurement] = []
        if self.suite is not None:
            found += compare_tasks(self.suite, {"dense": dense.tasks, "pruned": pruned.tasks})
        if self.generation:
            found += compare_texts({"dense": dense.texts, "pruned": pruned.texts}, seed=self.seed)
        return stamped(found, model)

    def samples(self, dense: Answers, pruned: Answers) -> tuple[GenerationSample, ...]:
        """What both wrote, for people to look at; nothing where nothing was asked for."""
        return tuple(samples(dense.texts, pruned.texts, seed=self.seed)) if self.generation else ()
