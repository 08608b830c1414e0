"""What a device makes of a search: seconds a candidate, its arithmetic, and the share of the device's peak it comes to.

    python benchmarks/gpu.py --device cuda --peak 989
    python benchmarks/gpu.py --device cuda --runs paged --gigabytes 120 --memory 60GB

Three models: the demo's (SmolLM2, whose whole run is timed, too), a random Llama of the shape of a 1B, and a random one
in files, of which --memory does not hold all. On each a round of the exhaustive search
over single units is run, as many of them as --candidates says, from kept hidden states. Arithmetic is products with
matrices (`model/flops.py`); the peak is a product of the feed-forward part's size, timed here, and what --peak says.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import machine
from transformers import LlamaConfig, LlamaForCausalLM

import depthcut
from depthcut.ablation.ablation import Ablation
from depthcut.calibration import Samples
from depthcut.model.architectures import find_architecture
from depthcut.model.device import chosen_device, device_label, synchronize
from depthcut.model.flops import measure_work
from depthcut.model.load import resolve
from depthcut.model.paging import Pager
from depthcut.model.stream import DecoderStream
from depthcut.preview.device_profiles import measure_here
from depthcut.run.recipe import Recipe
from depthcut.run.room import find_room

SHAPE_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
RUNS = ("demo", "1b", "paged")
BY_DEFAULT = "demo,1b"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", default=BY_DEFAULT)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the weights that do not fit")
    parser.add_argument("--memory", help="that the paged run may take of the device, by default half of its weights")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the data sheet")
    parser.add_argument("--toy", action="store_true", help="models of a few thousand weights")
    parser.add_argument("--output", type=Path, default=Path("out/gpu.json"))
    options = parser.parse_args(words)
    unknown = set(options.runs.split(",")) - set(RUNS)
    if unknown:
        sys.exit(f"no run is called {sorted(unknown)[0]}; there are {', '.join(RUNS)}")

    device = torch.device(chosen_device(options.device))
    rows = []
    for name in options.runs.split(","):
        if name == "demo":
            rows.append(demo(device, options))
        elif name == "1b":
            model = random_model(TOY if options.toy else SHAPE_1B, device, options)
            rows.append(measure(name, DecoderStream(model, find_architecture(model.config)), device, options))
            del model
        else:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, paged(Path(folder), device, options), device, options))
        print(rows[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "device": device_label(device), "rows": rows}
    options.output.write_text(json.dumps(found, indent=1) + "\n")


def demo(device: torch.device, options: argparse.Namespace) -> dict[str, object]:
    """The README's run without files, and a round on its model."""
    began = time.perf_counter()
    text = {"calibration_samples": options.samples, "calibration_length": options.length}
    result = depthcut.prune("smollm2", remove="25%", device=str(device), dtype=options.dtype, **text)
    seconds = time.perf_counter() - began
    del result
    source = resolve("smollm2", dtype=options.dtype)
    stream = DecoderStream(source.load_model(str(device)), source.architecture)
    return {**measure("demo", stream, device, options), "whole run, s": round(seconds, 1)}


def random_model(shape: dict[str, int], device: torch.device, options: argparse.Namespace) -> LlamaForCausalLM:
    """A random Llama on the device."""
    with device:
        return LlamaForCausalLM(config_of(shape, options)).to(getattr(torch, options.dtype)).eval()


def config_of(shape: dict[str, int], options: argparse.Namespace) -> LlamaConfig:
    vocabulary = 300 if options.toy else 128256
    config = LlamaConfig(**shape, num_key_value_heads=shape["num_attention_heads"] // 4, vocab_size=vocabulary)
    config.architectures = ["LlamaForCausalLM"]
    return config


def paged(folder: Path, device: torch.device, options: argparse.Namespace) -> DecoderStream:
    """A model in files, most of which come in as layers run."""
    shape = dict(TOY if options.toy else SHAPE_1B)
    block = 2 * (shape["hidden_size"] ** 2 * 5 // 2 + 3 * shape["hidden_size"] * shape["intermediate_size"])
    shape["num_hidden_layers"] = 4 if options.toy else round(options.gigabytes * 1e9 / block)
    random_model(shape, torch.device("cpu"), options).save_pretrained(folder, max_shard_size="2GB")
    source = resolve(str(folder), dtype=options.dtype)
    limit = options.memory or f"{source.weight_bytes // 2}B"
    option = "memory_budget" if device.type == "cpu" else "device_memory"
    room = find_room(Recipe.build(model=str(folder), device=str(device), **{option: limit}), source.weight_bytes)
    pager = None if room.weights is None else Pager(room.weights, room.abreast, device)
    return DecoderStream(source.load_model(str(device), pager), source.architecture)


@torch.no_grad()
def measure(name: str, stream: DecoderStream, device: torch.device, options: argparse.Namespace) -> dict[str, object]:
    """A round over single units, from kept hidden states."""
    work = measure_work(stream.model, stream.architecture)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, work.vocabulary, (options.samples, options.length), generator=generator)
    samples = Samples.packed(ids, source="random", detail="", seed=0, digests=frozenset())
    objective = Ablation(stream, samples, "kl", batch_size=options.batch_size)
    step = max(1, len(stream.units) // options.candidates)
    tried = stream.units[::step][: options.candidates]
    # The first of all plans the kernels, and makes what later ones compare with.
    objective.evaluate([frozenset({stream.units[-1]})])
    synchronize(device)
    began = time.perf_counter()
    objective.evaluate([frozenset({unit}) for unit in tried])
    synchronize(device)
    seconds = (time.perf_counter() - began) / len(tried)
    flops = sum(
        options.samples * sum(work.units[unit].flops(options.length) for unit in stream.units[place + 1 :])
        for place in (stream.units.index(unit) for unit in tried)
    ) / len(tried)
    flops += work.logit_flops * options.samples * options.length
    dtype = getattr(torch, options.dtype)
    rate = measure_here(dtype, work.hidden_size, work.widest, device=str(device)).flops_per_second
    row = {
        "run": name,
        "candidates": len(tried),
        "seconds a candidate": round(seconds, 6),
        "TFLOP a candidate": round(flops / 1e12, 6),
        "TFLOP/s": round(flops / seconds / 1e12, 4),
        "share of a product's rate here": round(flops / seconds / rate, 3),
    }
    if options.peak:
        row["share of the data sheet"] = round(flops / seconds / 1e12 / options.peak, 3)
    told = getattr(torch.get_device_module(device), "max_memory_allocated", None) if device.type != "cpu" else None
    if told is not None:
        row["peak, GB"] = round(told(device) / 1e9, 3)
    return row


if __name__ == "__main__":
    main()
