"""The folder with the teacher and the checkpoints of one training; only the same training continues from them."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from depthcut.repairs import Damage
from depthcut.repairs.training.schedule import Schedule

SAMPLED_VALUES = 64
"""Values of each tensor that tell two models apart."""


@contextmanager
def training_folder(damage: Damage, schedule: Schedule, pruned: PreTrainedModel) -> Iterator[Path]:
    """A folder of this training alone: in `damage.folder`, where it stays and ranks share it; else a temporary one.

    Its name holds all that decides the result: the settings, the text, the seed, the size of the pieces and the model.
    """
    if damage.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    digest = hashlib.sha256(repr((schedule, damage.seed, damage.batch_size, pruned.device.type)).encode())
    settings = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    digest.update(repr(sorted(settings.items())).encode())
    if damage.ranks.count > 1:
        digest.update(repr(damage.ranks.count).encode())
    for tensor in (damage.text.input_ids, damage.text.attention_mask):
        digest.update(repr(tensor.tolist()).encode())
    for name, parameter in pruned.named_parameters():
        sampled = parameter.detach().reshape(-1)[:SAMPLED_VALUES].float().tolist()
        digest.update(repr((name, tuple(parameter.shape), sampled)).encode())
    name = f"{type(schedule).__name__.lower()}-{digest.hexdigest()[:16]}"
    folder = damage.folder / damage.ranks.from_first(lambda: name)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
