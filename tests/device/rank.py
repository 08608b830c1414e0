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


def main(folder: Path, *words: str) -> None:
    place = int(os.environ["LOCAL_RANK"])
    seen: dict[str, object] = {}
    evaluate = Ablation.evaluate

    def watched(self, *given, **named):
        seen["device"] = str(self.stream.model.device)
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
