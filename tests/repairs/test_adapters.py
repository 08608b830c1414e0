"""Adapters merged into the weights are the model that was trained."""

import pytest
import torch
from healing import SHORT, damage_to
from torch import nn

import tiny
from depthcut.model.architectures import FAMILIES
from depthcut.repairs.lora import LoRA, QLoRA
from depthcut.repairs.training.adapters import add_adapters, linear_paths, merged_weights, quantise_nf4
from depthcut.repairs.training.copies import copy_to_train, with_tensors
from depthcut.surgery import apply


class TestMerge:
    @pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
    @torch.no_grad()
    def test_the_merged_model_is_the_adapter_model(self, family):
        dense = tiny.model(family)
        architecture = FAMILIES[family]
        sublayers = tiny.removals(architecture)
        pruned = apply(dense, architecture, sublayers.get("attn", sublayers["block"]))
        paths = linear_paths(pruned, architecture, "all")
        blocks = architecture.block_list(pruned)
        assert all(isinstance(pruned.get_submodule(path), nn.Linear) or "Conv1D" in str(pruned) for path in paths)
        model = copy_to_train(pruned)
        add_adapters(model, paths, rank=4, dropout=0.5)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        ids = tiny.samples().input_ids
        merged = with_tensors(pruned, merged_weights(pruned, model.eval(), paths))
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert (merged(input_ids=ids).logits - pruned(input_ids=ids).logits).abs().max() > 0.05
        assert len(blocks) == (tiny.NUM_BLOCKS if "attn" in sublayers else tiny.NUM_BLOCKS - 2)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
    @torch.no_grad()
    def test_nf4_layers_stay_readable_after_they_ran_in_eval_mode(self, family):
        from bitsandbytes.functional import dequantize_4bit

        pruned = tiny.model(family, hidden_size=64, intermediate_size=128, n_embd=64, n_inner=128, head_dim=16)
        paths = linear_paths(pruned, FAMILIES[family], "all")
        model = copy_to_train(pruned).eval()
        quantise_nf4(model, paths)

        def read():
            layers = (model.get_submodule(path) for path in paths)
            return {
                path: dequantize_4bit(layer.weight, layer.weight.quant_state)
                for path, layer in zip(paths, layers, strict=True)
            }

        before = read()
        ids = tiny.samples().input_ids
        logits = model(input_ids=ids).logits
        for path, values in read().items():
            assert torch.equal(values, before[path])
            weight = pruned.get_submodule(path).weight
            weight = weight.T if family == "gpt2" else weight
            assert (values - weight).abs().max() < 0.2 * weight.abs().max()
        transposed = {f"{path}.weight": values.T if family == "gpt2" else values for path, values in before.items()}
        expected = with_tensors(pruned, transposed)(input_ids=ids).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)

    def test_qlora_on_two_sequences_of_64_tokens(self, pruned_pair):
        dense, pruned, removed = pruned_pair
        damage = damage_to(dense, removed, text=tiny.samples(2, 64, 1))
        repaired = QLoRA(steps=8, batch_size=2, rank=4, learning_rate=1e-2).repair(damage, pruned)
        assert repaired.curve[-1][1] < repaired.curve[0][1]
        assert repaired.model.dtype == torch.float32

    def test_a_merge_that_changes_the_loss_does_not_pass(self, pruned_pair, monkeypatch):
        from depthcut.repairs.training import adapters

        dense, pruned, removed = pruned_pair
        wrong = lambda *given: {name: values * 1.5 for name, values in merged_weights(*given).items()}
        monkeypatch.setattr(adapters, "merged_weights", wrong)
        with pytest.raises(AssertionError, match="merging LoRA changed the loss from"):
            LoRA(**SHORT, rank=4).repair(damage_to(dense, removed), pruned)
