"""Pruned models as drafts of their dense one: expected acceptance against what speculative decoding really accepts.

    python benchmarks/draft.py --data wikitext2.txt --blocks 4 8 16

A path of the model's cheapest blocks by `--method` is cut at each size and repaired by `refit` on text that is measured
nowhere. The dense model then writes after prompts with each pruned one as transformers' `assistant_model`, sampling at
temperature 1 and greedily, drafts of a fixed length. Of what was written, the expected acceptance at the positions is
compared with the share of drafts that was accepted, whose error is that over prompts, and speeds with and without a
draft are measured in turn.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from machine import machine
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from depthcut.evaluation.draft import LONGEST_DRAFT, accepted, agreed, expected_speedup
from depthcut.model.load import resolve
from depthcut.run import on_model


class Counter:
    """Counts, of every draft that transformers checks, how many of its tokens were accepted."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, int]] = []
        self._update = AssistedCandidateGenerator.update_candidate_strategy
        self._get = AssistedCandidateGenerator.get_candidates

    def __enter__(self) -> "Counter":
        counter, drafted = self, [0]

        def get(generator, input_ids, *given, **named):  # type: ignore[no-untyped-def]
            candidates = counter._get(generator, input_ids, *given, **named)
            drafted[0] = candidates[0].shape[1] - input_ids.shape[1]
            return candidates

        def update(_generator, _input_ids, _scores, num_matches):  # type: ignore[no-untyped-def]
            counter.rounds.append((drafted[0], int(num_matches)))

        AssistedCandidateGenerator.get_candidates = get
        AssistedCandidateGenerator.update_candidate_strategy = update
        return self

    def __exit__(self, *_: object) -> None:
        AssistedCandidateGenerator.update_candidate_strategy = self._update
        AssistedCandidateGenerator.get_candidates = self._get

    def judged(self) -> tuple[int, int]:
        """Drafted tokens that were accepted, and those that were looked at: up to the first that was rejected."""
        accepted_tokens = sum(matches for _, matches in self.rounds)
        return accepted_tokens, accepted_tokens + sum(matches < length for length, matches in self.rounds)


@torch.no_grad()
def write(
    dense: PreTrainedModel, prompt: torch.Tensor, tokens: int, sampled: bool, draft: PreTrainedModel | None, length: int
) -> tuple[torch.Tensor, float]:
    options = {"do_sample": sampled, "max_new_tokens": tokens, "min_new_tokens": tokens, "use_cache": True}
    if sampled:
        options |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if draft is not None:
        settings = draft.generation_config
        settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = length, "constant"
        settings.assistant_confidence_threshold = 0.0
        options |= {"assistant_model": draft}
    began = time.perf_counter()
    written = dense.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return written, time.perf_counter() - began


@torch.no_grad()
def expected(
    dense: PreTrainedModel, draft: PreTrainedModel, written: torch.Tensor, prompt: int, sampled: bool
) -> float:
    """Mean acceptance at the positions before each written token."""
    log_p, log_q = (model(written).logits[0, prompt - 1 : -1].log_softmax(dim=-1) for model in (dense, draft))
    return float((accepted(log_p, log_q) if sampled else agreed(log_p, log_q)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of prompts and of the text of search and repair")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--method", default="shortgpt")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-length", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--drafted", type=int, default=3)
    parser.add_argument("--repair-samples", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("out/draft.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    tokenizer, dense = source.load_tokenizer(), source.load_model("cpu")
    ids = on_model.tokens(tokenizer, options.data, samples=options.repair_samples + options.prompts, length=256)
    learned, prompts = ids[: options.repair_samples], ids[options.repair_samples :, : options.prompt_length]
    plan = on_model.search(dense, learned[:8], budget=max(options.blocks), method=options.method)
    rows = []
    for blocks in options.blocks:
        pruned = on_model.remove(dense, plan.applying(blocks).removed)
        draft, _ = on_model.repair(dense, pruned, learned)
        draft.generation_config = type(dense.generation_config).from_dict(dense.generation_config.to_dict())
        for sampled in (True, False):
            rates, wanted, ratios = [], [], []
            for number, prompt in enumerate(prompts):
                torch.manual_seed(number)
                _, alone = write(dense, prompt[None], options.tokens, sampled, None, 0)
                with Counter() as counter:
                    written, drafted = write(dense, prompt[None], options.tokens, sampled, draft, options.drafted)
                hits, looked_at = counter.judged()
                rates.append(hits / looked_at)
                wanted.append(expected(dense, draft, written, options.prompt_length, sampled))
                ratios.append(alone / drafted)
            differences = [rate - want for rate, want in zip(rates, wanted, strict=True)]
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            row = {
                "blocks removed": blocks,
                "decoding": "sampled" if sampled else "greedy",
                "expected": statistics.mean(wanted),
                "real": statistics.mean(rates),
                "difference": statistics.mean(differences),
                "standard error": error,
                "speed-up": statistics.median(ratios),
                "ideal speed-up": max(
                    expected_speedup(statistics.mean(wanted), drafted, 1 - blocks / source.provenance.num_blocks, 0.0)
                    for drafted in range(1, LONGEST_DRAFT + 1)
                ),
            }
            rows.append(row)
            print(
                "  ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.items()
                ),
                flush=True,
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
