"""The score tables: order of execution, steps of removal, and the nearest windows of planted distances."""

from depthcut.report.scores import nearest_windows, score_grids
from depthcut.types import Step, Unit


def test_grids_list_units_in_order_of_execution_with_their_values_and_errors(run):
    blocks, sublayers = score_grids(run.scores, run.plan)
    assert [key for key, _, _ in blocks.rows] == [str(block) for block in range(30)]
    assert [key for key, _, _ in sublayers.rows[:4]] == ["0.attn", "0.ffn", "1.attn", "1.ffn"]
    assert [metric for metric, _ in blocks.heads] == [
        "block-influence",
        "relative-l1",
        "relative-l2",
        "relative-magnitude",
    ]
    assert " ± " in blocks.rows[12][2][0]
    assert " ± " not in sublayers.rows[12][2][0]


def test_grids_name_the_step_of_removed_units_only(run):
    blocks, sublayers = score_grids(run.scores, run.plan)
    assert {key: order for key, order, _ in blocks.rows if order} == {
        **{"15": "1", "14": "2", "13": "3", "16": "4"},
        **{"25": "5", "12": "6", "17": "7", "26": "8"},
    }
    assert {order for key, order, _ in sublayers.rows if key.startswith("15.")} == {"1"}


def test_a_block_that_lost_one_sublayer_is_not_marked_as_removed(run):
    units = [(Unit(7, "attn"),), (Unit(9, "ffn"),), (Unit(9, "attn"),)]
    steps = tuple(Step(remove=unit, applied=True) for unit in units)
    plan = run.plan.model_copy(update={"unit": "sublayer", "steps": steps})
    blocks, _ = score_grids(run.scores, plan)
    assert {key: order for key, order, _ in blocks.rows if order} == {"9": "2, 3"}


def test_nearest_windows_find_the_planted_minimum_of_every_size():
    angular = ((0.3, 0.5, 0.6, 0.9), (0.2, 0.1, 0.8), (0.4, 0.7), (0.05,))
    assert nearest_windows(angular) == [
        (1, "3", "0.05000"),
        (2, "1, 2", "0.1000"),
        (3, "0–2", "0.6000"),
        (4, "0–3", "0.9000"),
    ]


def test_without_distances_there_are_no_windows():
    assert nearest_windows(()) == []
