"""Short trainings of every kind on a tiny model, and what they are given."""

import torch

import tiny
from depthcut.model.architectures import FAMILIES
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage
from depthcut.repairs.distill import Distill
from depthcut.repairs.lora import LoRA, QLoRA
from depthcut.repairs.partial import Partial

SHORT = {"steps": 6, "batch_size": 4}
EVERY_KIND = [
    LoRA(**SHORT, rank=4, learning_rate=1e-2),
    QLoRA(**SHORT, rank=4, learning_rate=1e-2),
    Distill(**SHORT, rank=4, learning_rate=1e-2, top_k=8),
    Distill(**SHORT, train="full", learning_rate=1e-2, top_k=8),
    Partial(**SHORT, learning_rate=1e-2),
]


def name(repair):
    return f"{type(repair).__name__}-{getattr(repair, 'train', '')}".strip("-")


def damage_to(dense, removed=frozenset(), family="llama", **changes):
    given = {"text": tiny.samples(12, 12, 1), "held_out": tiny.samples(4, 12, 2), "memory_budget": 2**30}
    return Damage(DecoderStream(dense, FAMILIES[family]), removed, **(given | changes))


def tensors(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
