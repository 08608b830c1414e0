"""A model larger than its memory: peak memory and time of scoring, pruning, a greedy search and a repair.

    python benchmarks/large_model.py --gigabytes 4 --memory-budget 1150MB

Writes a random Llama in bfloat16, a safetensors file for each block, and runs `depthcut prune` on it in processes of
their own. Peaks are what the operating system counted as resident, mapped pages of the weights included. Linux.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from depthcut.model.load import resolve

RUNS = {
    "ShortGPT, 25 %": ["--method", "shortgpt", "--remove", "25%", "--repair", "none"],
    "greedy over blocks, 2": [
        "--unit",
        "block",
        "--method",
        "greedy,strategy=exhaustive",
        "--remove",
        "2",
        "--repair",
        "none",
    ],
    "ShortGPT, 25 %, refit": ["--method", "shortgpt", "--remove", "25%", "--repair", "refit"],
}
MEASURED = """
import re, resource
from pathlib import Path
from depthcut.cli import main
try:
    main()
finally:
    # What getrusage tells of a process itself begins with the memory of the one that started it.
    print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of weights")
    parser.add_argument("--memory-budget", default="1150MB")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--runs", default=";".join(RUNS), help="joined with semicolons")
    parser.add_argument("--folder", type=Path, default=Path("out/large"))
    parser.add_argument("--output", type=Path, default=Path("out/large_model.json"))
    options = parser.parse_args()

    model = options.folder / f"llama-{options.gigabytes:g}gb"
    if not (model / "model.safetensors.index.json").is_file():
        write_model(model, options.gigabytes)
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    text = ["--calibration-samples", options.samples, "--calibration-length", options.length]
    text += ["--evaluation-samples", 2, "--evaluation-length", options.length]
    rows = []
    for name in options.runs.split(";"):
        began = time.monotonic()
        command = ["prune", model, "-o", options.folder / "pruned", "--overwrite", *RUNS[name], *text]
        command += ["--memory-budget", options.memory_budget]
        child = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, command)], capture_output=True, text=True, check=False
        )
        if child.returncode:
            sys.exit(child.stderr)
        peaks = [1024 * int(peak) / 1e9 for peak in child.stdout.split()[-2:]]
        rows.append(
            {
                "run": name,
                "weights, GB": round(weights / 1e9, 3),
                "budget": options.memory_budget,
                "peak, GB": round(peaks[0], 3),
                "peak of the reload at most, GB": round(peaks[1], 3),
                "seconds": round(time.monotonic() - began),
            }
        )
        print(rows[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def write_model(folder: Path, gigabytes: float) -> None:
    """A random Llama of about that size, written block by block, with SmolLM2's tokenizer."""
    folder.mkdir(parents=True)
    hidden, width = 2048, 5632
    source = resolve("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf_file)
    block_bytes = 2 * (hidden * hidden * 5 // 2 + 3 * hidden * width)
    vocabulary = len(tokenizer)
    num_blocks = round((gigabytes * 1e9 - 2 * vocabulary * hidden) / block_bytes)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shapes.pop("lm_head.weight")
    parts = [[name for name in shapes if f".layers.{layer}." in name] for layer in range(num_blocks)]
    generator, where = torch.Generator().manual_seed(0), {}
    for number, names in enumerate([*parts, [name for name in shapes if ".layers." not in name]]):
        tensors = {
            name: torch.ones(shapes[name]) if "norm" in name else torch.randn(shapes[name], generator=generator) / 50
            for name in names
        }
        file = f"model-{number:05}.safetensors"
        save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


if __name__ == "__main__":
    main()
