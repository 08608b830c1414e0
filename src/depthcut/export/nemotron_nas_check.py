"""Run in a fresh process: reads a nemotron-nas directory the way engines do, from its own files alone.

Sizes come from `block_configs`, as engines compute them, and tensors from the safetensors files by the names that
follow from them. A stock Llama model is filled with them; sublayers that are absent get zero weights, which add
nothing. Nothing of depthcut is imported here.
Usage: python -P nemotron_nas_check.py DIRECTORY QUESTION.json; prints one line of JSON.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaForCausalLM

SUBLAYERS = {"attention": ("self_attn.", "input_layernorm."), "ffn": ("mlp.", "post_attention_layernorm.")}


def ffn_size(ffn_mult: float, hidden_size: int) -> int:
    """What engines make of `ffn_mult`: a multiple of 256."""
    size = int(2 * ffn_mult * hidden_size / 3)
    return size + -size % 256


def read(directory: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model. Raises ValueError with a clause about what is wrong with the directory."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    blocks = config.block_configs
    if len(blocks) != config.num_hidden_layers:
        raise ValueError(f"block_configs has {len(blocks)} entries for {config.num_hidden_layers} blocks")
    if blocks[0].attention.no_op:
        raise ValueError("its first block has no attention, which vLLM cannot run")
    groups = {block.attention.n_heads_in_group for block in blocks if not block.attention.no_op}
    sizes = {ffn_size(block.ffn.ffn_mult, config.hidden_size) for block in blocks if not block.ffn.no_op}
    if len(groups) > 1 or len(sizes) > 1:
        raise ValueError(f"its blocks have different sizes: groups of {sorted(groups)} heads, FFNs of {sorted(sizes)}")
    config.num_key_value_heads = config.num_attention_heads // groups.pop()
    config.intermediate_size = sizes.pop() if sizes else config.intermediate_size

    model = LlamaForCausalLM(config)
    model.to(dtype=dtype).eval()  # type: ignore[call-arg]
    tensors: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    parameters = dict(model.named_parameters())
    absent = {
        name
        for index, block in enumerate(blocks)
        for kind, prefixes in SUBLAYERS.items()
        for name in parameters
        if block[kind].no_op and name.startswith(tuple(f"model.layers.{index}.{prefix}" for prefix in prefixes))
    }
    expected = parameters.keys() - absent
    for names, problem in ((expected - tensors.keys(), "lacks"), (tensors.keys() - expected, "holds beside its own")):
        if names:
            raise ValueError(f"it {problem} the tensor {min(names)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in absent:
                parameter.zero_()
            elif parameter.shape != tensors[name].shape or parameter.dtype != tensors[name].dtype:
                raise ValueError(
                    f"{name} is {tuple(tensors[name].shape)} in {tensors[name].dtype}, "
                    f"not {tuple(parameter.shape)} in {parameter.dtype}"
                )
            else:
                parameter.copy_(tensors[name])
    return model


@torch.no_grad()
def main(directory: str, question_file: str) -> None:
    question = json.loads(Path(question_file).read_text(encoding="utf-8"))
    try:
        model = read(Path(directory), getattr(torch, question["dtype"])).to(question["device"])
    except ValueError as error:
        print(json.dumps({"problem": str(error)}))
        return
    ids = torch.tensor([question["input_ids"]], device=question["device"])
    output = model(input_ids=ids, use_cache=True)
    loss = float(torch.nn.functional.cross_entropy(output.logits[0, :-1].double(), ids[0, 1:]))
    greedy: list[int] = []
    while len(greedy) < question["greedy_tokens"]:
        token = output.logits[:, -1:].argmax(dim=-1)
        greedy.append(int(token))
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    print(json.dumps({"loss": loss, "greedy": greedy}))


if __name__ == "__main__":
    main(*sys.argv[1:])
