"""The before/after table: rows, columns, numbers and changes as people read them."""

import math

import pytest
from example_report import measure

from depthcut.report import before_after, columns
from depthcut.report.table import change_text, value_text


def row_of(measurements, name):
    (row,) = [row for row in before_after(measurements) if row.name == name]
    return row


def test_every_known_name_has_its_label_number_and_change(run):
    rows = {row.name: (row.label, row.dense, row.pruned, row.change) for row in before_after(run.measurements)}
    assert rows == {
        "parameters": ("Parameters", "134.5 M", "106.2 M", "−21.1 %"),
        "blocks": ("Blocks", "30", "22", "−26.7 %"),
        "bytes_on_disk": ("Size on disk", "257 MiB", "203 MiB", "−21.1 %"),
        "kv_bytes_per_token": ("KV cache per token", "22.5 KiB", "16.5 KiB", "−26.7 %"),
        "perplexity": ("Perplexity", "28.82 ± 0.31", "97.4 ± 1.1", "×3.38"),
        "prompt_tokens_per_second": ("Prompt, tokens/s", "412.0 ± 3.1", "545.0 ± 4.4", "×1.32"),
        "decode_tokens_per_second": ("Decoding, tokens/s", "19.80 ± 0.20", "26.10 ± 0.30", "×1.32"),
        "kl_to_dense": ("KL to dense, nats per token", "–", "1.211 ± 0.014", ""),
    }


def test_a_speed_is_a_ratio_also_where_it_fell():
    rows = [measure("decode_tokens_per_second", "dense", 20.0), measure("decode_tokens_per_second", "pruned", 19.0)]
    assert row_of(rows, "decode_tokens_per_second").change == "×0.950"


def test_speeds_of_different_moments_have_no_ratio_where_the_speed_up_was_measured_in_pairs(run):
    speed_up = measure("decode_speedup", "pruned", 1.27, unit="ratio")
    rows = [*run.measurements, speed_up]
    assert row_of(rows, "decode_tokens_per_second").texts == ("19.80 ± 0.20", "26.10 ± 0.30", "")
    assert row_of(rows, "prompt_tokens_per_second").change == "×1.32"


def test_an_unknown_name_is_shown_under_its_own_name_and_unit():
    rows = [
        measure("hellaswag", "dense", 0.4321, unit="accuracy"),
        measure("hellaswag", "pruned", 0.3456, unit="accuracy"),
        measure("peak_memory", "dense", 3 * 1024**3, unit="bytes"),
    ]
    row = row_of(rows, "hellaswag")
    assert (row.label, row.dense, row.pruned, row.change) == ("Hellaswag, accuracy", "0.4321", "0.3456", "−20.0 %")
    assert (row_of(rows, "peak_memory").label, row_of(rows, "peak_memory").dense) == ("Peak memory", "3.00 GiB")


def test_a_unit_that_says_no_more_than_the_name_is_not_repeated():
    assert row_of([measure("loss", "dense", 3.2, unit="loss")], "loss").label == "Loss"


def test_columns_follow_the_models_and_texts_follow_the_columns(run):
    healed = measure("perplexity", "pruned, healed", 43.23, data="WikiText-2 test, 32 × 512 tokens")
    measurements = [*run.measurements, healed]
    assert columns(measurements) == ["dense", "pruned", "change", "pruned, healed", "change"]
    rows = {row.name: row.texts for row in before_after(measurements)}
    assert rows["perplexity"] == ("28.82 ± 0.31", "97.4 ± 1.1", "×3.38", "43.23", "+50.0 %")
    assert rows["blocks"] == ("30", "22", "−26.7 %", "–", "")
    assert all(len(texts) == 5 for texts in rows.values())


def test_without_a_dense_model_nothing_is_compared():
    measurements = [measure("perplexity", "pruned", 40.0)]
    assert columns(measurements) == ["pruned"]
    assert row_of(measurements, "perplexity").texts == ("40",)


def test_the_same_name_on_two_texts_makes_two_rows_and_a_repetition_makes_none():
    measurements = [
        measure("perplexity", "dense", 20.5, data="WikiText-2"),
        measure("perplexity", "dense", 30.5, data="C4"),
        measure("perplexity", "dense", 21.5, data="WikiText-2"),
    ]
    assert [(row.data, row.dense) for row in before_after(measurements)] == [("WikiText-2", "21.50"), ("C4", "30.50")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((134_515_008, "count", 4), "134.5 M"),
        ((7_000_000_000, "count", 4), "7.000 G"),
        ((768, "bytes"), "768 B"),
        ((1024, "bytes"), "1.00 KiB"),
        ((0, "bytes"), "0 B"),
        ((0.0, "number"), "0"),
        ((-0.01234, "number"), "−0.0123"),
        ((18_437.6, "number", 4), "18438"),
        ((5.1e7, "number"), "5.10e+07"),
        ((97.4, "number", 4, 1.12), "97.4 ± 1.1"),
        ((18_437.6, "number", 4, 312.0), "18438 ± 312"),
        ((2_000_000, "count", 4, 30_000), "(2.000 ± 0.030) M"),
        ((3.0, "number", 3, 0.0), "3.00"),
        ((1.276, "ratio"), "×1.28"),
        ((math.inf, "number"), "∞"),
        ((math.nan, "number"), "not a number"),
    ],
)
def test_number_formats(arguments, text):
    assert value_text(*arguments) == text


@pytest.mark.parametrize(
    ("dense", "other", "text"),
    [
        (100, 100, "0 %"),
        (100, 104.25, "+4.2 %"),
        (100, 99.96, "−0.040 %"),
        (100, 199, "+99.0 %"),
        (100, 200, "×2.00"),
        (28.82, 18_440, "×640"),
        (-2.0, -1.0, "+50.0 %"),
        (0, 3, ""),
        (math.nan, 3, ""),
        (3, math.inf, ""),
    ],
)
def test_changes(dense, other, text):
    assert change_text(dense, other) == text
