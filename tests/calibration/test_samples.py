"""Digests and disjointness: the same text is recognised in another shape, other text is not."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from depthcut.calibration import Samples, require_disjoint
from depthcut.calibration.samples import text_digests, token_digest
from depthcut.types import InputError

LINE = "A line of more than forty characters that two documents have in common."


def samples(ids: list[list[int]], *texts: str) -> Samples:
    digests = frozenset().union(*(text_digests(text) for text in texts))
    return Samples.packed(torch.tensor(ids), source="some.txt", detail="detail", seed=0, digests=digests)


def test_token_digest_is_sha256_of_shape_and_int64_bytes() -> None:
    ids = np.arange(12, dtype="<i8")
    expected = hashlib.sha256(b"(3, 4)" + ids.tobytes()).hexdigest()
    assert token_digest(torch.arange(12).view(3, 4)) == expected
    assert token_digest(torch.arange(12, dtype=torch.int32).view(4, 3).T.contiguous().view(3, 4)) != expected
    assert token_digest(torch.arange(12).view(4, 3)) != expected


def test_packed_samples_describe_themselves_and_have_no_pads() -> None:
    made = samples([[1, 2, 3], [4, 5, 6]])
    assert (made.description.num_samples, made.description.length) == (2, 3)
    assert made.description.digest == token_digest(made.input_ids)
    assert made.attention_mask.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_white_space_does_not_change_a_text() -> None:
    assert text_digests("a  b\n\n c ") == text_digests("a b c") != text_digests("a b d")


def test_a_blank_text_has_no_digest_to_share() -> None:
    assert text_digests(" \n\n") == frozenset()


def test_long_lines_are_recognised_inside_another_document_and_short_ones_are_not() -> None:
    assert text_digests(f"One text.\n{LINE}\nSee also") & text_digests(f"Another.\n\n  {LINE}")
    assert not text_digests("One text.\nSee also") & text_digests("Another.\nSee also")


def test_disjoint_samples_pass() -> None:
    require_disjoint(samples([[1, 2]], "one text", LINE), samples([[1, 3]], "another text"))


def test_a_common_document_or_line_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"calibration text \(some.txt: detail\).*: 1 documents or lines and 0 sequences"
    ):
        require_disjoint(samples([[1, 2]], "one text"), samples([[1, 3]], "another text", "one  text"))
    with pytest.raises(InputError, match="name another text or another split"):
        require_disjoint(samples([[1, 2]], LINE), samples([[1, 3]], f"Title\n{LINE}"))


def test_an_identical_sequence_is_refused_whatever_its_text() -> None:
    with pytest.raises(InputError, match="0 documents or lines and 1 sequences"):
        require_disjoint(samples([[1, 2], [3, 4]], "one text"), samples([[3, 4]], "another text"))
