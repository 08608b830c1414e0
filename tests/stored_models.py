"""Small models stored quantised, in the layouts of the hub; written by hand, since the layout is what is tested."""

import json
import re

import torch
from safetensors.torch import load_file, save_file

import tiny
from depthcut.types import Unit

GROUP = 16
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
KEPT_PLAIN = "model.layers.2.mlp.up_proj"
"""A map that every configuration here names as one that is not quantised."""

PAIRS = [Unit.parse(name) for name in ("1.attn", "1.ffn", "3.ffn", "4.attn")]


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.samples().input_ids, use_cache=False).logits


def contents(folder):
    """Every stored tensor's dtype, shape and bytes."""
    tensors = load_file(folder / "model.safetensors")
    return {name: (t.dtype, t.shape, t.flatten().view(torch.uint8).tolist()) for name, t in tensors.items()}


def renamed(name, blocks):
    """A name in the source for one in a written file, where block i is the source's `blocks[i]`."""
    return re.sub(r"layers\.(\d+)", lambda found: f"layers.{blocks[int(found[1])]}", name)


def before_pairs(name):
    """A name in the source for one in a file that lacks `PAIRS`."""
    # A0 F0 | A2 F2 | A3 F4 | A5 F5
    return renamed(name, [0, 2, 3, 5] if "attn" in name or "input_layernorm" in name else [0, 2, 4, 5])


def save(folder, kind, family="llama", **changes):
    """Writes a model; returns what each of its quantised tensors stands for, float32, by the model's name for it."""
    tiny.save(folder, family, **changes)
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    stored, meant = {}, {}
    for name, tensor in load_file(file).items():
        module = name.removesuffix(".weight")
        maps = name.endswith("proj.weight") and module != KEPT_PLAIN
        if kind == "mxfp4":
            maps = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        if not maps:
            stored[name] = tensor.to(torch.bfloat16)
            continue
        parts, meant[name] = WRITERS[kind](tensor.float(), generator)
        stored |= {f"{name}{part}" if kind == "mxfp4" else f"{module}.{part}": value for part, value in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16", "quantization_config": ENTRIES[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    return meant


def fp8(weight, _):
    rows, columns = weight.shape
    grid = [-(-size // GROUP) for size in weight.shape]
    scales = torch.rand(*grid, generator=torch.Generator().manual_seed(rows)) * 1e-3 + 1e-3
    spread = torch.stack([torch.stack([scales[r // GROUP, c // GROUP] for c in range(columns)]) for r in range(rows)])
    values = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": scales}, values.float() * spread


def mxfp4(weight, generator):
    num_experts, inputs, outputs = weight.shape
    codes = torch.randint(0, 16, (num_experts, outputs, inputs), generator=generator)
    exponents = torch.randint(120, 124, (num_experts, outputs, inputs // 32), generator=generator)
    packed = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
    values = FP4[codes] * 2.0 ** (exponents - 127).repeat_interleave(32, -1)
    parts = {"_blocks": packed.reshape(num_experts, outputs, inputs // 32, 16), "_scales": exponents.to(torch.uint8)}
    return parts, values.transpose(1, 2)


def _integers(weight, generator):
    """Values from 0 to 15, zero points and scales for a weight, all by (output, input or group of them)."""
    outputs, inputs = weight.shape
    values = torch.randint(0, 16, (outputs, inputs), generator=generator)
    zeros = torch.randint(1, 16, (outputs, inputs // GROUP), generator=generator)
    scales = (torch.rand(outputs, inputs // GROUP, generator=generator) * 0.02 + 0.01).half()
    return values, zeros, scales


def _meant(values, zeros, scales, groups):
    return (values - zeros[:, groups]) * scales.float()[:, groups]


def _words(nibbles):
    """(words, columns) int32: eight rows of nibbles in each, the first lowest."""
    rows, columns = nibbles.shape
    words = sum(nibbles.reshape(rows // 8, 8, columns)[:, place].long() << (4 * place) for place in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq(weight, generator):
    values, zeros, scales = _integers(weight, generator)
    groups = torch.randperm(weight.shape[1], generator=generator) // GROUP
    parts = {
        "qweight": _words(values.T),
        "qzeros": _words(zeros - 1).T,
        "scales": scales.T,
        "g_idx": groups.int(),
    }
    return parts, _meant(values, zeros, scales, groups)


def awq(weight, generator):
    values, zeros, scales = _integers(weight, generator)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(nibbles):
        """Eight neighbouring outputs in a word, in AWQ's order."""
        shuffled = nibbles.T.reshape(nibbles.shape[1], -1, 8)[..., order].flatten(1)
        return _words(shuffled.T).T

    parts = {"qweight": pack(values), "qzeros": pack(zeros), "scales": scales.T}
    return parts, _meant(values, zeros, scales, torch.arange(weight.shape[1]) // GROUP)


def compressed_tensors(weight, generator):
    values, _, scales = _integers(weight, generator)
    parts = {
        "weight_packed": _words(values.T).T,
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }
    eight = torch.full(scales.shape, 8)
    return parts, _meant(values, eight, scales.bfloat16(), torch.arange(weight.shape[1]) // GROUP)


def fbgemm(weight, _):
    scales = weight.abs().amax(1, keepdim=True) / 448
    values = (weight / scales).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scales}, values.float() * scales


WRITERS = {
    "fp8": fp8,
    "mxfp4": mxfp4,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "fbgemm_fp8": fbgemm,
}
NOT_CONVERTED = {"modules_to_not_convert": ["lm_head", KEPT_PLAIN]}
ENTRIES = {
    "fp8": NOT_CONVERTED | {"activation_scheme": "dynamic", "weight_block_size": [GROUP, GROUP]},
    "mxfp4": NOT_CONVERTED,
    "compressed-tensors": {
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", KEPT_PLAIN],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP},
            }
        },
    },
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": True, "dynamic": {rf"-:{KEPT_PLAIN}": {}}},
    "awq": NOT_CONVERTED | {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "fbgemm_fp8": NOT_CONVERTED,
}
ENTRIES = {method: entries | {"quant_method": method} for method, entries in ENTRIES.items()}
