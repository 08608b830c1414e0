"""What was removed, in words and step by step."""

from example_report import ATTENTION, BLOCK_PARAMETERS, DENSE_PARAMETERS, FFN

from depthcut.report.removal import headline, path_rows, ranges, removed_blocks, removed_list, shares_removed
from depthcut.types import Step, Unit


def with_steps(plan, unit, *removals):
    steps = tuple(Step(remove=tuple(map(Unit.parse, keys)), objective=0.5, applied=True) for keys in removals)
    return plan.model_copy(update={"unit": unit, "steps": steps})


def test_blocks_are_counted_out_of_all_and_listed_in_ranges(run):
    assert headline(run.plan) == "8 of 30 blocks removed"
    assert removed_list(run.plan) == "blocks 12–17, 25, 26"


def test_steps_beyond_the_cut_do_not_count_as_removed(run):
    assert headline(run.plan.applying(1)) == "1 of 30 blocks removed"
    assert removed_list(run.plan.applying(1)) == "block 15"
    assert headline(run.plan.applying(0)) == "Nothing removed"
    assert removed_list(run.plan.applying(0)) == ""


def test_sublayers_are_told_apart_and_a_block_without_any_is_gone(run):
    plan = with_steps(run.plan, "sublayer", ["7.attn"], ["5.ffn"], ["6.attn"], ["3.attn"], ["7.ffn"])
    assert headline(plan) == "3 attentions and 2 FFNs removed"
    assert removed_list(plan) == "block 7; attention of blocks 3, 6; FFN of block 5"
    assert removed_blocks(plan) == [7]


def test_a_block_of_one_mixer_is_a_block(run):
    plan = with_steps(run.plan, "block", ["4.mixer"], ["5.mixer"])
    assert headline(plan) == "2 of 30 blocks removed"
    assert removed_list(plan) == "blocks 4, 5"


def test_ranges_join_runs_of_three():
    assert ranges([]) == ""
    assert ranges([0, 2, 3, 7, 8, 9, 11]) == "0, 2, 3, 7–9, 11"


def test_the_path_adds_up_parameters_and_cache(run):
    rows = path_rows(run.plan, DENSE_PARAMETERS)
    assert [row.order for row in rows] == list(range(1, 15))
    assert [row.applied for row in rows] == [True] * 8 + [False] * 6
    assert rows[0].removed == "15.attn, 15.ffn"
    assert rows[7].parameters == f"−{100 * 8 * BLOCK_PARAMETERS / DENSE_PARAMETERS:.1f} %"
    assert rows[7].kv_bytes == "16.5 KiB"


def test_without_the_total_the_path_tells_how_many_parameters_left(run):
    plan = with_steps(run.plan, "sublayer", ["7.attn"], ["5.ffn"])
    plan = plan.model_copy(update={"unit_sizes": {"7.attn": ATTENTION, "5.ffn": FFN}})
    rows = path_rows(plan, None)
    assert [row.parameters for row in rows] == ["−885.3 k", "−3.540 M"]
    assert [row.kv_bytes for row in rows] == ["0 B", "0 B"]


def test_shares_are_of_the_whole_model_or_where_it_is_not_known_of_its_units(run):
    shares = shares_removed(run.plan, DENSE_PARAMETERS)
    assert shares[:2] == [BLOCK_PARAMETERS / DENSE_PARAMETERS, 2 * BLOCK_PARAMETERS / DENSE_PARAMETERS]
    assert shares_removed(run.plan)[2] == 3 / 30
