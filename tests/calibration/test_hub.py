"""The hub, with a stand-in for its library: what is asked of it, how much is read, and how refusals are passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from depthcut.calibration import check_source, parse_source, sample_text
from depthcut.calibration.documents import open_documents
from depthcut.types import InputError


class Hub:
    """Stands in for `datasets.load_dataset`: a streamed set, with a record of requests and of rows read."""

    def __init__(
        self, num_rows: int, column: str = "text", text: Callable[[int], Any] = "Row number {}.".format
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.num_read = 0
        self.num_rows, self.column, self.text = num_rows, column, text

    def __call__(self, path: str, **settings: Any) -> datasets.IterableDataset:
        self.requests.append({"path": path, **settings})

        def rows() -> Iterator[dict[str, Any]]:
            for i in range(self.num_rows):
                self.num_read += 1
                yield {self.column: self.text(i), "url": "x"}

        return datasets.IterableDataset.from_generator(rows)


def use(hub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub)


def texts(source: str, purpose: Any, seed: int = 0) -> Iterator[str]:
    (part,) = parse_source(source).parts
    return (document.text for document in open_documents(part, purpose, seed))


def test_built_in_set_is_streamed_with_the_split_of_the_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(100)
    use(hub, monkeypatch)
    assert list(islice(texts("c4", "evaluation"), 3)) == ["Row number 0.", "Row number 1.", "Row number 2."]
    next(texts("wikitext,config=wikitext-103-raw-v1", "calibration"))
    next(texts("org/name,split=part,revision=abc", "evaluation"))
    asked = [(*request.values(),) for request in hub.requests]
    assert list(hub.requests[0]) == ["path", "name", "split", "revision", "streaming"]
    assert asked == [
        ("allenai/c4", "en", "validation", None, True),
        ("Salesforce/wikitext", "wikitext-103-raw-v1", "train", None, True),
        ("org/name", None, "part", "abc", True),
    ]


def test_only_the_rows_that_are_needed_are_read(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    hub = Hub(1_000_000)
    use(hub, monkeypatch)
    source = parse_source("org/name,order=first")
    check_source(source)
    assert hub.num_read <= 8
    hub.num_read = 0
    sample_text(source, tokenizer, num_samples=4, length=32, seed=0, purpose="calibration")
    assert 4 * 32 / 20 < hub.num_read < 64


def test_shuffling_is_seeded_and_keeps_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(300), monkeypatch)
    in_order = list(texts("org/name", "evaluation"))
    shuffled = list(texts("org/name", "calibration", seed=1))
    assert sorted(shuffled) == sorted(in_order)
    assert shuffled != in_order
    assert list(texts("org/name", "calibration", seed=1)) == shuffled
    assert list(texts("org/name", "calibration", seed=2)) != shuffled


def test_lines_stay_in_order_inside_the_passages_that_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(2000, text="A row that says {} at some length.\n".format), monkeypatch)
    in_order = list(texts("wikitext", "evaluation"))
    shuffled = list(texts("wikitext", "calibration"))
    assert len(in_order) > 10
    assert shuffled != in_order
    assert sorted(shuffled) == sorted(in_order)


def test_wrong_column_lists_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(3, column="body"), monkeypatch)
    with pytest.raises(InputError, match=r"split train of org/name has no column 'text'; its columns are body, url"):
        check_source(parse_source("org/name"))
    check_source(parse_source("org/name,column=body"))


def test_a_column_of_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(3, text=int), monkeypatch)
    with pytest.raises(InputError, match="column 'text' of split train of org/name holds int, not text"):
        check_source(parse_source("org/name"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'org/name' on the Hub"),
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist on the Hub"),
        datasets.exceptions.DatasetGenerationError("An error occurred"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_library_says_is_passed_on_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    use(refuse, monkeypatch)
    with pytest.raises(InputError, match="cannot read split test of the hub data set org/name") as caught:
        check_source(parse_source("org/name"), "evaluation")
    assert " ".join(str(error).split()) in str(caught.value)
    assert "\n" not in str(caught.value)
