"""Run in a fresh process: loads a written model with plain transformers and says how it differs from what is expected.

Nothing of depthcut is imported here, so that what holds here holds for every user of the directory; only weights that
plain transformers cannot dequantise are read by it (`own`).
Usage: python -P reload_check.py DIRECTORY EXPECTED.safetensors DTYPE DEVICE plain|trust|own memory|disk; prints one
line of JSON.
"""

import json
import sys
import tempfile
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

DEQUANTISED = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
"""Ways of storing weights that transformers dequantises when it is asked to."""


@torch.no_grad()
def main(directory: str, expected_file: str, dtype: str, device: str, trust: str, weights: str) -> None:
    expected = load_file(expected_file)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=trust == "trust")
    stored = getattr(config, "quantization_config", None) or {}
    placed: dict[str, object] = {}
    if stored.get("quant_method") in DEQUANTISED:
        # On a GPU with kernels for them, products would be rounded otherwise.
        config.quantization_config = stored | {"dequantize": True}
    elif stored:
        # Quantised weights are put where they stay, and not moved afterwards.
        placed = {"device_map": {"": device}}
    if weights == "disk":
        placed = {"device_map": {"": "disk"}, "offload_folder": tempfile.gettempdir()}
    nested = config.get_text_config(decoder=True) is not config and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    predicts_tokens = "with_cache" in expected
    loader: Any
    if predicts_tokens:
        loader = AutoModelForImageTextToText if nested else AutoModelForCausalLM
    else:
        loader = AutoModelForSequenceClassification if expected["logits"].dim() == 2 else AutoModel
    if trust == "own":
        from depthcut.model.load import resolve

        model = resolve(directory, dtype=dtype.removeprefix("torch.")).load_model(device)
        loading: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": []}
    else:
        model, loading = loader.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype.removeprefix("torch.")),
            output_loading_info=True,
            trust_remote_code=trust == "trust",
            **placed,
        )
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # What was written is compared, not this kernel of bitsandbytes, which rounds products to bfloat16.
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if not placed:
        model.to(device)  # type: ignore[arg-type]
    model.eval()
    if not placed:
        # Tensors of a mapped file lie anywhere, and small products round differently where they are not aligned. Beside
        # FP8 weights transformers leaves others as they are stored, whatever is asked for.
        widened = torch.float32 if stored and dtype == "torch.float32" else None
        for parameter in model.parameters():
            parameter.data = parameter.data.to(widened or parameter.dtype, copy=True)
    input_ids = expected["input_ids"].to(device)
    output = model(input_ids=input_ids, use_cache=False)
    logits = (output.logits if "logits" in output else output[0]).float().cpu()
    found = {
        "missing": sorted(loading["missing_keys"]),
        "unexpected": sorted(loading["unexpected_keys"]),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "largest_logit_difference": float((logits - expected["logits"]).abs().max()),
        "largest_logit": float(logits.abs().max()),
    }
    for name, use_cache in (("with_cache", True), ("without_cache", False)) if predicts_tokens else ():
        num_new = expected[name].shape[1] - input_ids.shape[1]
        tokens = model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            use_cache=use_cache,
        )
        found[f"{name}_equal"] = torch.equal(tokens.cpu(), expected[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
