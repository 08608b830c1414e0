"""Pruned models as drafts of their dense one in llama.cpp: tokens per second with and without, and drafts accepted.

    python benchmarks/draft_llama_cpp.py --dense smollm2 out/draft-3/gguf out/draft-8/gguf

Of each draft, greedy decoding after a few prompts is timed in turn with the dense model alone, by llama.cpp's clock;
drafts have a fixed length (`--drafted`). The speed-up is the median over prompts of the ratios.
"""

import argparse
import json
import statistics
from pathlib import Path

import xllamacpp
from machine import machine

from depthcut.model.load import resolve
from depthcut.run import on_model


def server(model: Path, draft: Path | None, drafted: int, threads: int, context: int) -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.verbosity = 0
    if draft is not None:
        of_draft = parameters.speculative.draft
        of_draft.mparams.path = str(draft)
        of_draft.n_max = of_draft.n_min = drafted
        of_draft.cpuparams.n_threads = of_draft.cpuparams_batch.n_threads = threads
        parameters.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    return xllamacpp.Server(parameters)


def decode(engine: xllamacpp.Server, prompt: list[int], tokens: int) -> dict[str, float]:
    request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    answer = engine.handle_completions(request)
    if "error" in answer:
        raise SystemExit(answer["error"]["message"])
    return answer["timings"]  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("drafts", nargs="+", type=Path, help="folders that hold one GGUF file each")
    parser.add_argument("--dense", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of prompts")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--drafted", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/draft-llama-cpp.json"))
    options = parser.parse_args()

    source = resolve(options.dense)
    if source.gguf_file is None:
        parser.error("the dense model has to be a GGUF")
    dense = source.folder / source.gguf_file
    prompts = on_model.tokens(
        source.load_tokenizer(), options.data, samples=options.prompts, length=options.prompt_length, seed=1
    ).tolist()
    context = options.prompt_length + 2 * options.tokens
    alone = server(dense, None, 0, options.threads, context)
    rows = []
    for folder in options.drafts:
        file = next(folder.glob("*.gguf"))
        by_itself = server(file, None, 0, options.threads, context)
        for drafted in options.drafted:
            both = server(dense, file, drafted, options.threads, context)
            ratios, shares, drawn, kept = [], [], 0, 0
            for prompt in prompts:
                timings = [decode(engine, prompt, options.tokens) for engine in (alone, both, by_itself)]
                speeds = [timing["predicted_per_second"] for timing in timings]
                ratios.append(speeds[1] / speeds[0])
                shares.append(speeds[0] / speeds[2])
                drawn += timings[1].get("draft_n", 0)
                kept += timings[1].get("draft_n_accepted", 0)
            row = {
                "draft": folder.parent.name if folder.name == "gguf" else folder.name,
                "length": f"drafts of {drafted}",
                "draft share": statistics.median(shares),
                "drafted tokens kept": kept / drawn if drawn else None,
                "speed-up": statistics.median(ratios),
            }
            rows.append(row)
            print(row, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
