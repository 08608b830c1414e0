"""What studies ask beside the options of a run, and what a run's options are where a study is not told.

Importing this waits for nothing: the command line is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from depthcut.run.options import EVALUATION, REMOVAL, REPAIR, option
from depthcut.types import Record

NOT_REPAIRED = "none"

_METHODS = "Methods with settings (see depthcut ls), separated by commas; a metric's name ranks by it, one shot."
_REPAIR = "Repair to measure every model with; several times for several, none for none."


class Sweep(Record):
    """What `depthcut study sweep` is told beside the options of a run; a path ends where `remove` says.

    Attributes:
        defaults: of the run's options, where they are not the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"remove": "50%"}
    study: Literal["sweep"] = "sweep"
    methods: tuple[str, ...] = option(REMOVAL, ("greedy", "shortgpt", "uidl"), _METHODS)
    every: int = option(EVALUATION, 1, "Units between two measured points.", ge=1)
    repair: tuple[str, ...] = option(REPAIR, (NOT_REPAIRED,), _REPAIR, separate=True)


class Compare(Record):
    """What `depthcut study compare` is told beside the options of a run.

    Attributes:
        defaults: of the run's options, where they are not the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    study: Literal["compare"] = "compare"
    methods: tuple[str, ...] = option(REMOVAL, ("greedy", "sleb", "shortgpt", "uidl"), _METHODS)
    ratios: tuple[str, ...] = option(
        REMOVAL, ("10%", "25%"), "Shares of the parameters to remove, separated by commas."
    )
    repair: tuple[str, ...] = option(REPAIR, (NOT_REPAIRED,), _REPAIR, separate=True)


class Inspect(Record):
    """What `depthcut study inspect` is told beside the options of a run: nothing.

    Attributes:
        defaults: of the run's options, where they are not the run's.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"unit": "sublayer", "remove": "25%"}
    study: Literal["inspect"] = "inspect"


StudyQuestion = Sweep | Compare | Inspect
QUESTIONS: dict[str, type[StudyQuestion]] = {"sweep": Sweep, "compare": Compare, "inspect": Inspect}
