"""Whether text that measured is of a kind that something was fitted to."""

from types import SimpleNamespace

import pytest

from depthcut.report.answer import kind_note

SAME = "a kind of text that was fitted to"


def fitted(calibration, *repaired, kept=True):
    text = None if calibration is None else SimpleNamespace(source=calibration)
    repairs = [SimpleNamespace(text=SimpleNamespace(source=source), kept=kept) for source in repaired]
    return SimpleNamespace(calibration=text), repairs


@pytest.mark.parametrize(
    ("calibration", "repaired", "measured", "note"),
    [
        (
            "self",
            ["self"],
            "stdlib (topics of pydoc)",
            "a kind of text that nothing was fitted to; all was fitted to self",
        ),
        ("stdlib", ["self"], "stdlib (topics)", f"{SAME} (self and stdlib); other kinds lose more"),
        ("self+stdlib", [], "stdlib,order=first (x)", f"{SAME} (self and stdlib); other kinds lose more"),
        (
            "c4,split=test",
            ["wikitext"],
            "stdlib (x)",
            "a kind of text that nothing was fitted to; all was fitted to c4 and wikitext",
        ),
        (None, [], "stdlib (x)", ""),
        ("self", ["self"], "", ""),
    ],
)
def test_the_kinds_of_both_are_compared(calibration, repaired, measured, note):
    assert kind_note(*fitted(calibration, *repaired), measured) == note


def test_a_repair_that_was_undone_fitted_nothing():
    plan, repairs = fitted("self", "stdlib", kept=False)
    assert kind_note(plan, repairs, "stdlib (x)") == "a kind of text that nothing was fitted to; all was fitted to self"
