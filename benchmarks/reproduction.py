"""Writes docs/reproduction.md: every claim of benchmarks/claims.yaml with what benchmarks/results say about it.

    python benchmarks/reproduction.py

Nothing is measured here. Verdicts follow from the numbers by the rule in the claim, and every number on the page about
what we saw stands in a file of results with the command that made it.
"""

import operator
import re
import statistics
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from machine import told
from results import read

from depthcut.studies.ranks import spearman

CLAIMS = Path(__file__).parent / "claims.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"
FIGURES = PAGE.parent / "figures"
AGREES, DIFFERS, UNTESTABLE = "agrees", "differs", "not testable here"
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
HEAD = """\
# Reproduction

What the papers claim, what we ran, and what we saw. Written by `make reproduction` from `benchmarks/claims.yaml` and
the measured results in `benchmarks/results`; no number of ours is written by hand, and a verdict is a comparison of
numbers that stands in the claim.

Most of it is SmolLM2-135M-Instruct on a CPU. **A model of 135M parameters is far less redundant than one of 7B**, and
it is at chance in MMLU, so a row that differs says how a small model behaves, not that the paper is wrong; claims about
scores of large models are not testable here, and their recipe is named instead ([recipes](recipes.md)). KL is
KL(dense ‖ pruned) in nats per token.
"""


@dataclass(frozen=True)
class Claim:
    """A row of the page; the fields are explained at the head of claims.yaml."""

    id: str
    paper: str
    claim: str
    ran: str = ""
    values: dict[str, str] = field(default_factory=dict)
    saw: str = ""
    agrees: str = ""
    untestable: str = ""
    figure: str = ""

    @property
    def results(self) -> list[str]:
        """Names of the files that its numbers come from."""
        return list(dict.fromkeys(value.partition(":")[0].split()[-1] for value in self.values.values()))

    def measured(self) -> dict[str, float]:
        """Its numbers by name."""
        return {name: evaluate(value) for name, value in self.values.items()}

    def told(self) -> str:
        """What we saw, with the numbers."""
        return self.saw.format(**self.measured()) if self.saw else self.untestable

    def verdict(self) -> str:
        if self.untestable:
            return UNTESTABLE
        return AGREES if holds(self.agrees, self.measured()) else DIFFERS


def load_claims() -> list[Claim]:
    return [Claim(**row) for row in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))]


def evaluate(value: str) -> float:
    """A number of a result: `FILE: KEY`, or of all keys that a pattern fits, as the head of claims.yaml says."""
    head, _, key = value.partition(":")
    *words, file = head.split()
    numbers = read(file)["values"]
    if not words:
        return numbers[key.strip()]
    found = [number for name, number in numbers.items() if fnmatchcase(name, key.strip())]
    if words[0] == "below":
        return sum(number < float(words[1]) for number in found)
    summaries = {
        "mean": statistics.mean,
        "count": len,
        "depth": lambda numbers: spearman(range(len(numbers)), numbers),
    }
    return summaries[words[0]](found)


def holds(rule: str, values: dict[str, float]) -> bool:
    """Whether all comparisons of a rule hold: `a < 2 * b and c > 0.5`."""
    return all(
        COMPARISONS[sign](_term(left, values), _term(right, values))
        for left, sign, right in (re.split(r"\s(<=?|>=?)\s", part) for part in rule.split(" and "))
    )


def _term(text: str, values: dict[str, float]) -> float:
    """A sum of names and numbers, each with a factor before it or without."""
    total = 0.0
    for part in text.split("+"):
        product = 1.0
        for word in part.split("*"):
            word = word.strip()
            product *= values[word] if word in values else float(word)
        total += product
    return total


def page(claims: list[Claim]) -> str:
    """docs/reproduction.md."""
    verdicts = [claim.verdict() for claim in claims]
    agree, differ, untestable = (verdicts.count(verdict) for verdict in (AGREES, DIFFERS, UNTESTABLE))
    counts = f"{agree} agree, {differ} differ at this size, {untestable} cannot be tested here"
    lines = [HEAD, f"Of {len(claims)} claims {counts}.\n"]
    for paper in dict.fromkeys(claim.paper for claim in claims):
        lines += [
            f"## {paper[0].upper()}{paper[1:]}\n",
            "| claim | what we ran | what we saw | | figure |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(claim) for claim in claims if claim.paper == paper]
        lines.append("")
    lines.append("## Rules of the verdicts\n")
    lines += [f"- {claim.id}: `{claim.agrees}`" for claim in claims if claim.agrees]
    lines += ["", "## Results\n"]
    for name in dict.fromkeys(name for claim in claims for name in claim.results):
        result = read(name)
        lines += [f"### {name}\n", f"{result['model']}; {told(result['machine'])}.\n", f"    {result['command']}\n"]
    return "\n".join(lines)


def _row(claim: Claim) -> str:
    ran = f"{claim.ran} ({', '.join(f'[{name}](#{name})' for name in claim.results)})" if claim.results else "nothing"
    figure = f"[figure](figures/{claim.figure})" if claim.figure else "–"
    return f"| **{claim.id}** {claim.claim} | {ran} | {claim.told()} | {claim.verdict()} | {figure} |"


def main() -> None:
    PAGE.write_text(page(load_claims()), encoding="utf-8")


if __name__ == "__main__":
    main()
