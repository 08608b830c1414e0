"""The table of `docs/families.md`: made of what was proven, and read back to be compared with it.

Run as a script (`make families`) it proves every claim and writes the table.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import all_types
import family_proofs
import torch

import tiny
from depthcut.export import hf
from fresh_reader import FreshReader

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
YES = family_proofs.YES
HEAD = """# Families

SHARES

What depthcut does with each family of decoders, proven on a random model of six blocks by `tests/families` and written
by `make families`; a test compares every cell. A family is known by the `model_type` of its `config.json`.

- `block`, `pair`, `attn`, `ffn`: what was removed equals what was bypassed bit for bit, reloads in a fresh process
  (blocks and pairs with plain transformers, the others through the code beside them and through depthcut), has the
  configuration of the kept blocks, and decodes the same tokens with a cache as without. In hybrids `attn` stands for
  whatever mixes tokens.
- `refit`: the repair in closed form helps after a removed block, and changes only what it names.
- `gguf`, `nemotron-nas`: forms that depthcut writes, with the family's default settings (Mistral without a window).
- `vLLM` (0.32), `llama.cpp`: engines that know the family, and so run what blocks and pairs leave, which is an ordinary
  checkpoint; llama.cpp through its own converter where `gguf` says no.

Models that read images too (`...ForConditionalGeneration`: Gemma 3 and 4, Mistral Small 3, Llama 4, Qwen2.5-VL,
Qwen3-VL, Qwen3.5, LLaVA and others whose decoder is one of these families or like one) are loaded with their own class
and pruned inside, by `block` or `pair`: text alone calibrates and measures, and every tensor outside the decoder is
written with its old bytes. `--export text-only` writes the language model by itself as well.
`tests/model/test_multimodal.py` proves it on eight of them.

"""


def normalised(case: str, outcome: str) -> str:
    """An outcome without the family's own name, so that equal reasons are equal."""
    family = tiny.CASES[case][0]
    return outcome.replace(f"this is a {family} model", "this is another").replace(f", not {family};", ", not this;")


def render(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """The document."""
    reasons: list[str] = []

    def cell(outcome: str) -> str:
        word, _, reason = outcome.partition(": ")
        if not reason:
            return outcome
        if reason not in reasons:
            reasons.append(reason)
        return f"{word} [{reasons.index(reason) + 1}]"

    rows = [
        "| "
        + " | ".join([f"`{case}`", *(cell(normalised(case, found[column])) for column in family_proofs.COLUMNS)])
        + " |"
        for case, found in outcomes.items()
    ]
    return (
        HEAD.replace("SHARES", all_types.headline())
        + "| family | "
        + " | ".join(family_proofs.COLUMNS)
        + " |\n"
        + "|---" * (len(family_proofs.COLUMNS) + 1)
        + "|\n"
        + "\n".join(rows)
        + "\n\n"
        + "\n".join(f"[{index}] {reason}" + "  " for index, reason in enumerate(reasons, 1))
        + all_types.render()
    )


def parse(document: str) -> dict[str, dict[str, str]]:
    """The outcomes that a document states, by case and column."""
    reasons = dict(re.findall(r"^\[(\d+)\] (.+?) *$", document, re.MULTILINE))
    found = {}
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == len(family_proofs.COLUMNS) + 1:
            outcomes = [
                f"{noted[1]}: {reasons[noted[2]]}" if (noted := re.fullmatch(r"(\w+) \[(\d+)\]", cell)) else cell
                for cell in cells[1:]
            ]
            found[cells[0].strip("`")] = dict(zip(family_proofs.COLUMNS, outcomes, strict=True))
    return found


def main() -> None:
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        FreshReader(hf.RELOAD_SCRIPT, Path(scratch) / "modules", 1) as reader,
    ):
        hf.subprocess, hf.GREEDY_TOKENS = reader, family_proofs.GREEDY_TOKENS
        outcomes = {
            case: family_proofs.prove(case, Path(scratch) / str(index)) for index, case in enumerate(tiny.CASES)
        }
    DOCUMENT.write_text(render(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
