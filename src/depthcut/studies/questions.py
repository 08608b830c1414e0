"""The options of each study beside those of a run, and the defaults of a run's options in a study.

Imports nothing slow, because the command line is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from depthcut.run.options import EVALUATION, REMOVAL, REPAIR, option
from depthcut.types import Record

NOT_REPAIRED = "none"

_METHODS = "Methods with settings (see depthcut ls), separated by commas; the name of a metric means one-shot by it."
_REPAIR = "Repair to measure every model with; may be given several times; none is no repair."


class Sweep(Record):
    """Options of `depthcut study sweep` beside those of a run; `remove` is where a path ends.

    Attributes:
        defaults: of a run's options, where they differ from the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"remove": "50%"}
    study: Literal["sweep"] = "sweep"
    methods: tuple[str, ...] = option(REMOVAL, ("greedy", "shortgpt", "uidl"), _METHODS)
    every: int = option(EVALUATION, 1, "Units between two measured points.", ge=1)
    repair: tuple[str, ...] = option(REPAIR, (NOT_REPAIRED,), _REPAIR, separate=True)


class Compare(Record):
    """Options of `depthcut study compare` beside those of a run.

    Attributes:
        defaults: of a run's options, where they differ from the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    study: Literal["compare"] = "compare"
    methods: tuple[str, ...] = option(REMOVAL, ("greedy", "sleb", "shortgpt", "uidl"), _METHODS)
    ratios: tuple[str, ...] = option(
        REMOVAL, ("10%", "25%"), "Shares of the parameters to remove, separated by commas."
    )
    repair: tuple[str, ...] = option(REPAIR, (NOT_REPAIRED,), _REPAIR, separate=True)


class Inspect(Record):
    """`depthcut study inspect` has no options beside those of a run.

    Attributes:
        defaults: of a run's options, where they differ from the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"unit": "sublayer", "remove": "25%"}
    study: Literal["inspect"] = "inspect"


StudyQuestion = Sweep | Compare | Inspect
QUESTIONS: dict[str, type[StudyQuestion]] = {"sweep": Sweep, "compare": Compare, "inspect": Inspect}
