"""One of the ranks of a job on stand-in accelerators, started by torchrun: `python rank.py FOLDER COMMAND...`.

Each has a device of its own, and says in the folder which it searched on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from depthcut import cli
from depthcut.ablation.ablation import Ablation
from depthcut.model.mapped import spans_of


def lies_in(folder: Path, model: torch.nn.Module) -> bool:
    """Whether all weights of blocks are views of a folder's files, which all processes share."""
    spans = [span for file in folder.glob("*.safetensors") for span in spans_of(file)]
    places = [parameter.data_ptr() for name, parameter in model.named_parameters() if ".layers." in name]
    return all(any(begin <= place < end for begin, end in spans) for place in places)


def main(folder: Path, *words: str) -> None:
    place = int(os.environ["LOCAL_RANK"])
    seen: dict[str, object] = {}
    evaluate = Ablation.evaluate

    def watched(self, *given, **named):
        seen["device"] = str(self.stream.model.device)
        if self.stream.pager is not None:
            seen["in the model's own files"] = lies_in(Path(words[1]), self.stream.model)
        return evaluate(self, *given, **named)

    Ablation.evaluate = watched
    sys.argv = ["depthcut", *words]
    try:
        cli.main()
    finally:
        seen["used elsewhere"] = torch.standin.max_memory_allocated(1 - place)
        (folder / f"rank-{place}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
