"""How much faster a pruned SmolLM2 is in the engines that serve it, and how much of the ideal that is.

    python benchmarks/speed.py --engines transformers,llama.cpp,vllm

For every removal and engine the dense and the pruned model are loaded, each in its own process, and timed in turn; a
speed-up is the median over rounds of the two times of a round. The ideal stands behind each: the ratio of
floating-point operations for the prompt, of bytes read for decoding. transformers and vLLM compute in float32,
llama.cpp runs the packaged file's own Q4_1 tensors. vLLM is left out where it is not installed. One thread: set
OMP_NUM_THREADS for another number.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.engines import ENGINES, compare_engine_speed, find_interpreter
from depthcut.export import EXPORTS
from depthcut.export.gguf.copy import plan_copy
from depthcut.gguf.container import read_file
from depthcut.model.load import ModelSource, resolve
from depthcut.model.sublayers import is_marked
from depthcut.results import Measurement
from depthcut.surgery import apply
from depthcut.types import Unit


def units(text: str, *kinds: str) -> list[Unit]:
    return [Unit.parse(f"{layer}.{kind}") for layer in text.split() for kind in kinds]


EIGHT = "3 7 11 14 17 20 23 26"
REMOVALS = {
    "4 of 30 blocks": units("8 14 20 26", "attn", "ffn"),
    "8 of 30 blocks": units(EIGHT, "attn", "ffn"),
    "8 attentions": units(EIGHT, "attn"),
    "8 attentions, 3 FFNs": [*units(EIGHT, "attn"), *units("5 16 29", "ffn")],
}
HEADS = (
    "removed",
    "engine",
    "prompt",
    "(ideal)",
    "decode, short context",
    "(ideal)",
    "decode, long context",
    "(ideal)",
    "KV cache",
    "peak memory",
)
SPEEDUPS = ("prompt", "short_decode", "decode")


def write(form: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    folder.mkdir()
    EXPORTS.find(form).make().write(model, tokenizer, folder)
    return str(folder)


def make_models(
    engine: str, source: ModelSource, dense: PreTrainedModel, removed: list[Unit], folder: Path
) -> dict[str, str]:
    """What the engine is to load, dense and pruned."""
    if engine == "llama.cpp":
        assert source.gguf_file is not None, "llama.cpp is timed on a model that is a .gguf file"
        file = source.folder / source.gguf_file
        plan_copy(read_file(file), removed).write(folder / "pruned.gguf")
        return {"dense": str(file), "pruned": str(folder / "pruned.gguf")}
    pruned, tokenizer = apply(dense, source.architecture, removed), source.load_tokenizer()
    form = "nemotron-nas" if engine == "vllm" and is_marked(pruned.config) else "hf"
    return {
        "dense": write("hf", dense, tokenizer, folder / "dense"),
        "pruned": write(form, pruned, tokenizer, folder / "pruned"),
    }


def row(found: list[Measurement]) -> list[str]:
    values = {(measurement.name, measurement.model): measurement.value for measurement in found}

    def saved(name: str) -> str:
        if (name, "pruned") not in values:
            return ""
        return f"{100 * (values[name, 'pruned'] / values[name, 'dense'] - 1):+.0f} %"

    cells = [
        f"×{values[f'{phase}{kind}', 'pruned']:.2f}" for phase in SPEEDUPS for kind in ("_speedup", "_ideal_speedup")
    ]
    return [*cells, saved("kv_bytes_per_token"), saved("peak_memory_bytes")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--removals", help="only those whose name contains this", default="")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("out/speed.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    dense = source.load_model("cpu")
    table: dict[str, dict[str, dict[str, float]]] = {}
    print("| " + " | ".join(HEADS) + " |\n|---|---|" + "---|" * (len(HEADS) - 2))
    for name, removed in REMOVALS.items():
        for engine in options.engines.split(","):
            if options.removals not in name or not find_interpreter(engine):
                continue
            folder = Path(tempfile.mkdtemp())
            try:
                found = compare_engine_speed(
                    engine,
                    make_models(engine, source, dense, removed, folder),
                    prompt_tokens=options.prompt_tokens,
                    decode_tokens=options.decode_tokens,
                    rounds=options.rounds,
                )
            finally:
                shutil.rmtree(folder)
            print("| " + " | ".join([name, engine, *row(found)]) + " |", flush=True)
            speedups = {each.name: each.value for each in found if each.name.endswith("speedup")}
            table.setdefault(name, {})[engine] = speedups
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
