"""Settings of trainings: UIDL's, those out of range, and packages that are missing."""

import importlib.util

import pytest
from healing import SHORT, damage_to
from transformers import AutoConfig

import tiny
from depthcut.model.architectures import FAMILIES, PRUNED_PREFIX
from depthcut.repairs import REPAIRS, parse_repairs
from depthcut.repairs.distill import Distill
from depthcut.repairs.lora import LoRA
from depthcut.repairs.training.uidl import LoraSettings, find_row
from depthcut.surgery import apply
from depthcut.types import InputError, Unit


class TestPreset:
    @pytest.mark.parametrize(
        ("model_type", "hidden_size", "rank", "rate"),
        [
            ("llama", 4096, 2, 3e-4),
            ("llama", 5120, 64, 3e-4),
            ("llama", 8192, 8, 3e-5),
            ("mistral", 4096, 4, 3e-6),
            ("qwen2", 4096, 64, 3e-4),
            ("phi3", 3072, 64, 2e-4),
            ("llama", 576, 64, 3e-4),
            ("gemma2", 2304, 64, 3e-4),
        ],
    )
    def test_rank_and_rate_are_uidls(self, model_type, hidden_size, rank, rate):
        config = AutoConfig.for_model(model_type, hidden_size=hidden_size)
        row = find_row(config)
        assert (row.rank, row.learning_rate) == (rank, rate)
        config.__class__ = type("DepthcutConfig", (type(config),), {"model_type": PRUNED_PREFIX + model_type})
        assert find_row(config) == row
        assert LoraSettings(rank=5).rank_for(config) == 5 and LoraSettings(learning_rate=1.0).rate_for(config) == 1.0

    def test_the_rest_of_the_recipe_is_uidls(self):
        recipe = REPAIRS.find("qlora").make()
        values = recipe.steps, recipe.batch_size, recipe.warmup, recipe.dropout, recipe.modules
        assert values == (5000, 16, 100, 0.05, "ffn")


class TestRefusals:
    def test_no_sublayer_left_to_adapt(self):
        dense = tiny.model()
        pruned = apply(dense, FAMILIES["llama"], {Unit(layer, "ffn") for layer in range(tiny.NUM_BLOCKS)})
        with pytest.raises(
            InputError, match="no ffn is left to put LoRA on; give other modules, for example modules=all"
        ):
            LoRA(**SHORT).repair(damage_to(dense), pruned)

    @pytest.mark.parametrize(
        ("repair", "missing"),
        [("lora", "peft"), ("qlora", "peft and bitsandbytes"), ("distill", "peft")],
    )
    def test_a_missing_package_is_named_before_weights_load(self, monkeypatch, repair, missing):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        ((_, parsed),) = parse_repairs(repair)
        with pytest.raises(
            InputError, match=rf"healing needs {missing}, which is not here; run: pip install depthcut\[heal\]"
        ):
            parsed.check(FAMILIES["llama"], tiny.config("llama"))

    @pytest.mark.parametrize("text", ["partial", "distill,train=full"])
    def test_whole_weights_need_no_further_package(self, monkeypatch, text):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        ((_, parsed),) = parse_repairs(text)
        parsed.check(FAMILIES["llama"], tiny.config("llama"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("lora,rank=0", "lora cannot be set so: rank.*greater than or equal to 1"),
            ("lora,dropout=1", "dropout.*less than 1"),
            ("qlora,modules=mlp", "modules.*'ffn', 'attn' or 'all'"),
            ("distill,train=some", "train.*'lora' or 'full'"),
            ("partial,learning_rate=0", "learning_rate.*greater than 0"),
            ("partial,steps=many", "steps.*valid integer"),
            ("lora,ranks=3", "unknown setting of lora 'ranks'; did you mean rank"),
        ],
    )
    def test_settings_out_of_range(self, text, words):
        with pytest.raises(InputError, match=words):
            parse_repairs(text)

    def test_settings_are_read(self):
        ((given, parsed),) = parse_repairs("distill,train=full,top_k=32,steps=7,learning_rate=1e-5")
        assert given == "distill"
        assert parsed == Distill(train="full", top_k=32, steps=7, learning_rate=1e-5)
