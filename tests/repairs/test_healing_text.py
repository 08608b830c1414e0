"""What a training reads: each sequence once a pass, pads not at all, in batches of any size."""

import dataclasses

import pytest
import torch
from healing import EVERY_KIND, damage_to, equal, name, tensors

import tiny
from depthcut.repairs.lora import QLoRA
from depthcut.repairs.partial import Partial
from depthcut.repairs.training.schedule import Schedule, training_rows


class TestText:
    @pytest.mark.parametrize(
        "repair",
        [pytest.param(kind, marks=pytest.mark.long if isinstance(kind, QLoRA) else ()) for kind in EVERY_KIND],
        ids=name,
    )
    def test_pads_change_nothing(self, pruned_pair, repair):
        dense, pruned, removed = pruned_pair
        samples = tiny.samples(12, 12, 1)

        def healed(fill, side):
            pads = torch.full((12, 4), fill)
            none, zeros = torch.ones_like(samples.input_ids), torch.zeros_like(pads)
            order = (lambda *parts: torch.cat(parts[::-1], dim=1)) if side == "left" else lambda *p: torch.cat(p, dim=1)
            padded = dataclasses.replace(
                samples, input_ids=order(samples.input_ids, pads), attention_mask=order(none, zeros)
            )
            return tensors(repair.repair(damage_to(dense, removed, text=padded), pruned).model)

        without = tensors(repair.repair(damage_to(dense, removed), pruned).model)
        for side in ("right", "left"):
            assert equal(healed(0, side), healed(50, side))
        if getattr(repair, "train", "") == "full" or isinstance(repair, Partial):  # without dropout
            for values, expected in zip(healed(0, "right").values(), without.values(), strict=True):
                torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("repair", [EVERY_KIND[3], EVERY_KIND[4]], ids=name)
    def test_the_size_of_the_pieces_weighs_nothing(self, pruned_pair, repair):
        dense, pruned, removed = pruned_pair
        samples = tiny.samples(12, 12, 1)
        mask = (torch.arange(12) < torch.arange(2, 14)[:, None]).long()
        uneven = dataclasses.replace(samples, attention_mask=mask)
        found = [repair.repair(damage_to(dense, removed, text=uneven, batch_size=size), pruned) for size in (1, 3, 4)]
        for other in found[1:]:
            assert [loss for _, loss in other.curve] == pytest.approx([loss for _, loss in found[0].curve], rel=1e-4)

    def test_every_pass_over_the_text_has_each_sequence_once(self):
        rows = training_rows(tiny.samples(5), 12, seed=3).tolist()
        assert sorted(rows[:5]) == sorted(rows[5:10]) == [0, 1, 2, 3, 4] and len(rows) == 12
        assert rows[:5] != rows[5:10]
        assert (
            rows
            == training_rows(tiny.samples(5), 12, seed=3).tolist()
            != training_rows(tiny.samples(5), 12, 4).tolist()
        )

    def test_a_schedule_shorter_than_its_warmup_still_falls(self):
        assert (
            Schedule().warmup_steps == 100
            and Schedule(steps=50).warmup_steps == 5
            and Schedule(steps=3).warmup_steps == 0
        )

    def test_pieces_divide_a_batch_evenly(self):
        assert [Schedule(batch_size=16).sequences_at_once(limit) for limit in (1, 3, 4, 15, 16, 99)] == [
            1,
            2,
            4,
            8,
            16,
            16,
        ]
        assert Schedule(batch_size=7).sequences_at_once(4) == 1
