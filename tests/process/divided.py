"""One of the ranks of a training whose weights FSDP divides, on CPUs: `python divided.py OUT`, started by torchrun.

accelerate turns FSDP on for accelerators alone. Here it takes a CPU for one; all that follows is its own and torch's.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed.fsdp
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file

import tiny
from depthcut.model.architectures import find_architecture
from depthcut.model.stream import DecoderStream
from depthcut.process.ranks import join
from depthcut.repairs import Damage, parse_repairs
from depthcut.surgery import apply
from depthcut.types import Unit

DIVIDES = os.environ.get("ACCELERATE_USE_FSDP") == "true"


def take_for_an_accelerator() -> list[str]:
    """Has accelerate divide weights on this CPU; returns the modules that it divides, as it does."""
    begin, shard = AcceleratorState.__init__, torch.distributed.fsdp.fully_shard
    divided: list[str] = []

    def of_accelerator(self, *given, fsdp_plugin=None, **named):
        begin(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    def noting(module, **named):
        divided.extend(type(each).__name__ for each in (module if isinstance(module, list | tuple) else [module]))
        return shard(module, **named)

    AcceleratorState.__init__ = of_accelerator
    torch.distributed.fsdp.fully_shard = noting
    return divided


def main(folder: Path) -> None:
    ranks = join()
    divided = take_for_an_accelerator() if DIVIDES else []
    model = tiny.model()
    removed = frozenset({Unit(3, "attn"), Unit(3, "ffn")})
    stream = DecoderStream(model, find_architecture(model.config))
    damage = Damage(
        stream, removed, tiny.samples(8, 12), tiny.samples(2, 12, seed=5), 2**30, ranks=ranks, folder=folder / "kept"
    )
    pruned = apply(model, stream.architecture, removed)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    for text in (
        "partial,steps=3,batch_size=4,warmup=1,blocks=2",
        "lora,steps=3,batch_size=4,warmup=1,dropout=0,rank=2",
    ):
        [(name, method)] = parse_repairs(text)
        repaired = method.repair(damage, pruned)
        assert all(torch.equal(before[key], tensor) for key, tensor in pruned.state_dict().items())
        assert not DIVIDES or divided.count("LlamaDecoderLayer") == tiny.NUM_BLOCKS - 1, divided
        divided.clear()
        if ranks.is_first:
            save_file(before, folder / "before.safetensors")
            save_file(dict(repaired.model.state_dict()), folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
