"""Trains a copy of a pruned model with the Trainer of transformers, and continues where a killed run stopped.

The Trainer brings the schedule, mixed precision and checkpoints; ours is the loss, the text in a fixed order, and
checkpoints that hold nothing but what trains. A half-written checkpoint counts for nothing. Nothing is printed or
reported, and nothing is written outside the folder.

Started by torchrun or accelerate, the Trainer divides each update's sequences among the ranks and adds up what they
find, so that an update is the same mean over the same sequences; sums of another order round differently.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, default_collate
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging as transformers_logging

from depthcut.calibration import Samples
from depthcut.model.device import own_seed
from depthcut.process.ranks import Ranks
from depthcut.repairs import Damage
from depthcut.repairs.training.copies import trained
from depthcut.repairs.training.goals import Goal, head_inputs
from depthcut.repairs.training.schedule import Schedule, training_rows
from depthcut.types import InputError

CHECKPOINT_SECONDS = 120.0
"""The most work that a killed run loses, but for the step it was in."""

CURVE_POINTS = 200
TRAINED_FILE = "trained.safetensors"

TRAINING_DEVICE = "ACCELERATE_TORCH_DEVICE"
"""Where accelerate is told of a device that it does not look for."""

LossCurve = tuple[tuple[int, float], ...]


def train(
    model: PreTrainedModel, goal: Goal, schedule: Schedule, learning_rate: float, damage: Damage, folder: Path
) -> LossCurve:
    """Trains what takes gradients, in place; two runs give the same weights, interrupted or not, on one machine.

    Args:
        model: from `copy_to_train`; in eval mode at the end.
        folder: where checkpoints of this very training are, or may be written where `damage.folder` is given.

    Returns:
        Mean loss by step, in at most `CURVE_POINTS` groups of steps, each under its last.

    Raises:
        InputError: the model is on a GPU that the Trainer does not use, or weights would be divided among ranks.
    """
    if model.device.type == "cuda" and (model.device.index or 0) != int(os.environ.get("LOCAL_RANK", "0")):
        raise InputError(
            f"healing uses one GPU for each process, from the first one on, and the model is on {model.device}; set "
            "CUDA_VISIBLE_DEVICES to choose another, and give --device cuda"
        )
    text = TrainingText(damage.text, goal, training_rows(damage.text, schedule.num_sequences, damage.seed))
    with _quietly(), own_randomness(), _on(model.device):
        arguments = _arguments(model, schedule, learning_rate, damage, folder)
        watch = _Watch(damage, schedule.batch_size)
        trainer = HealingTrainer(goal, damage.ranks, model=model, args=arguments, train_dataset=text, callbacks=[watch])
        checkpoint = damage.ranks.from_first(lambda: _last_checkpoint(folder))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Takes off what mixed precision has wrapped around the forward pass.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    losses = [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return _grouped(losses)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leaves the process's random numbers as they were: the Trainer seeds all of them, and NF4 layers draw some."""
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with own_seed():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


class TrainingText(Dataset[dict[str, torch.Tensor]]):
    """Sequences in the order of training, with the goal's targets."""

    def __init__(self, samples: Samples, goal: Goal, rows: torch.Tensor) -> None:
        self.samples, self.goal, self.rows = samples, goal, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        row = int(self.rows[position])
        ids, mask = self.samples.input_ids[row], self.samples.attention_mask[row]
        return {"input_ids": ids, "attention_mask": mask, **self.goal.targets(row)}


class HealingTrainer(Trainer):
    """Mean of the goal's losses over all positions of an update that count, also where an update runs in pieces."""

    def __init__(self, goal: Goal, ranks: Ranks, **arguments: Any) -> None:
        super().__init__(data_collator=default_collate, **arguments)
        self.goal, self.ranks = goal, ranks
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], float]:
        """The pieces of one update for this rank, and how many positions of the whole update count, for each rank."""
        pieces = list(itertools.islice(epoch_iterator, num_batches))
        counted = sum(int(piece["counted"].sum()) for piece in pieces)
        # Gradients are averaged over ranks, so that each divides by its part of what all of them count.
        return pieces, max(1, sum(self.ranks.gather(counted))) / self.ranks.count

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,
    ) -> torch.Tensor:
        """The piece's share of the update's mean, nats per token."""
        assert num_items_in_batch is not None and not return_outputs
        targets = dict(inputs)
        ids, mask, counted = (targets.pop(name) for name in ("input_ids", "attention_mask", "counted"))
        # Without pads the attention is plainly causal, which is quicker.
        attention_mask = None if bool(mask.all()) else mask
        with head_inputs(self.accelerator.unwrap_model(model)) as read:
            logits = model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
        found = logits if self.goal.compares == "logits" else read[0]
        losses = self.goal.losses(found[counted].float(), **{name: values[counted] for name, values in targets.items()})
        return losses.sum() / num_items_in_batch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what trains into a checkpoint; the rest is the pruned model's."""
        assert self.model is not None
        tensors = trained(self.model)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: values.cpu().contiguous() for name, values in tensors.items()}, folder / TRAINED_FILE)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        kept = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        model = model or self.model
        assert model is not None
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(_divided_like(parameter, kept[name]))


def _divided_like(parameter: torch.nn.Parameter, values: torch.Tensor) -> torch.Tensor:
    """Values of a whole parameter, divided among ranks where FSDP has divided that."""
    if not hasattr(parameter, "full_tensor"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)


class _Watch(TrainerCallback):
    """Tells the progress, and when to write a checkpoint: every `CHECKPOINT_SECONDS`, and at the end."""

    def __init__(self, damage: Damage, batch_size: int) -> None:
        self._damage, self._batch_size = damage, batch_size
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._damage.advance(state.global_step * self._batch_size)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._damage.advance(self._batch_size)
        due = time.monotonic() - self._saved >= CHECKPOINT_SECONDS or state.global_step >= state.max_steps
        if self._damage.folder is not None and due:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved = time.monotonic()


def _arguments(
    model: PreTrainedModel, schedule: Schedule, learning_rate: float, damage: Damage, folder: Path
) -> TrainingArguments:
    on_cpu = model.device.type == "cpu"
    num_ranks = damage.ranks.count
    at_once = schedule.sequences_at_once(damage.batch_size, num_ranks)
    half = model.dtype != torch.float32
    # A float32 model on a CPU trains in float32: bfloat16 is slower there unless the processor has it.
    # A float32 model trains in mixed precision on CUDA alone: elsewhere bfloat16 may be the slower one.
    on_cuda = model.device.type == "cuda"
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else half
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=schedule.batch_size // num_ranks // at_once,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup_steps,
        seed=damage.seed,
        train_sampling_strategy="sequential",
        use_cpu=on_cpu,
        bf16=bf16,
        fp16=on_cuda and not bf16,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        save_strategy="no",
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )
    # More GPUs would each get a part of every batch, through DataParallel, which peft and NF4 do not take.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer's state is what comes last.

    Others are removed: the Trainer, which keeps one, might take them for the newest.
    """
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), checkpoint))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return max(whole)[1] if whole else None


def _grouped(losses: list[tuple[int, float]]) -> LossCurve:
    size = -(-len(losses) // CURVE_POINTS) or 1
    groups = [losses[begin : begin + size] for begin in range(0, len(losses), size)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Has the Trainer use a device that it would not find by itself; it finds CUDA's."""
    if device.type in ("cpu", "cuda"):
        yield
        return
    os.environ[TRAINING_DEVICE] = str(device)
    try:
        yield
    finally:
        del os.environ[TRAINING_DEVICE]


@contextmanager
def _quietly() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
