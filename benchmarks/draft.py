"""Pruned models as drafts of their dense one: expected acceptance against what speculative decoding really accepts.

    python benchmarks/draft.py --data c4_sample.jsonl.gz

A path of sublayers is searched once (`--method`), cut at each share of `--remove` and repaired by `refit` on text that
is measured nowhere. The dense model then writes after prompts with each pruned one as transformers' `assistant_model`,
sampling at temperature 1 and greedily, drafts of a fixed length: no schedule, no confidence threshold, no end token. A
drafted token is looked at where all before it in its draft were accepted. The expected acceptance at exactly these
positions, given what was written before, is compared with the share that was accepted; so the difference has mean 0
whatever the text, and its standard error follows from the expected acceptances. Expected acceptance on text, which is
what every comparison reports, stands beside it, and times with and without a draft, measured in turn.
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

from depthcut.evaluation.draft import accepted, agreed, expected_speedup, expected_tokens
from depthcut.model.load import resolve
from depthcut.run import on_model


class Counter:
    """Of every draft that transformers checks, where it begins, how many tokens it has, and how many are accepted."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, int, int]] = []
        self._update = AssistedCandidateGenerator.update_candidate_strategy
        self._get = AssistedCandidateGenerator.get_candidates

    def __enter__(self) -> "Counter":
        counter, drawn = self, [(0, 0)]

        def get(generator, input_ids, *given, **named):  # type: ignore[no-untyped-def]
            candidates = counter._get(generator, input_ids, *given, **named)
            begin = input_ids.shape[1]
            drawn[0] = (begin, candidates[0].shape[1] - begin)
            return candidates

        def update(_generator, _input_ids, _scores, num_matches):  # type: ignore[no-untyped-def]
            counter.rounds.append((*drawn[0], int(num_matches)))

        AssistedCandidateGenerator.get_candidates = get
        AssistedCandidateGenerator.update_candidate_strategy = update
        return self

    def __exit__(self, *_: object) -> None:
        AssistedCandidateGenerator.update_candidate_strategy = self._update
        AssistedCandidateGenerator.get_candidates = self._get

    @property
    def accepted(self) -> int:
        return sum(matches for _, _, matches in self.rounds)

    @property
    def looked_at(self) -> list[int]:
        """Positions of the drafted tokens that were looked at: in each draft up to the first that was rejected."""
        return [begin + place for begin, length, matches in self.rounds for place in range(min(matches + 1, length))]


@torch.no_grad()
def write(
    dense: PreTrainedModel, prompt: torch.Tensor, tokens: int, sampled: bool, draft: PreTrainedModel | None, length: int
) -> tuple[torch.Tensor, float]:
    options = {"do_sample": sampled, "max_new_tokens": tokens, "use_cache": True}
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
def acceptances(dense: PreTrainedModel, draft: PreTrainedModel, ids: torch.Tensor, sampled: bool) -> torch.Tensor:
    """(length,) float64: the expected acceptance of each drafted token, given those before it; nan at the first."""
    log_p, log_q = (model(ids).logits[0, :-1].log_softmax(dim=-1) for model in (dense, draft))
    found = (accepted if sampled else agreed)(log_p, log_q).double()
    return torch.cat([torch.full((1,), math.nan, dtype=torch.float64), found])


def row_of(
    dense: PreTrainedModel, draft: PreTrainedModel, prompts: torch.Tensor, texts: torch.Tensor, sampled: bool, options
) -> dict[str, object]:
    """One size, one way of decoding."""
    on_text = torch.stack([acceptances(dense, draft, text[None], sampled)[1:].mean() for text in texts])
    hits, expected, passes, written_tokens, ratios = 0, [], 0, 0, []
    for number, prompt in enumerate(prompts):
        torch.manual_seed(number)
        _, alone = write(dense, prompt[None], options.tokens, sampled, None, 0)
        with Counter() as counter:
            written, drafted = write(dense, prompt[None], options.tokens, sampled, draft, options.drafted)
        hits += counter.accepted
        expected.append(acceptances(dense, draft, written, sampled)[counter.looked_at])
        whole = [matches + 1 for _, length, matches in counter.rounds if length == options.drafted]
        passes, written_tokens = passes + len(whole), written_tokens + sum(whole)
        ratios.append(alone / drafted)
    at_drafts = torch.cat(expected)
    looked_at = len(at_drafts)
    return {
        "decoding": "sampled" if sampled else "greedy",
        "on text": float(on_text.mean()),
        "on text, standard error": float(on_text.std() / math.sqrt(len(on_text))),
        "looked at": looked_at,
        "expected": float(at_drafts.mean()),
        "real": hits / looked_at,
        "difference": hits / looked_at - float(at_drafts.mean()),
        "standard error": float((at_drafts * (1 - at_drafts)).sum().sqrt()) / looked_at,
        "tokens a pass": written_tokens / passes,
        "tokens a pass, expected": expected_tokens(float(at_drafts.mean()), options.drafted),
        "speed-up": statistics.median(ratios),
    }


@torch.no_grad()
def seconds_a_token(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> float:
    return statistics.median(write(model, prompt, tokens, False, None, 0)[1] / tokens for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="stdlib", help="SOURCE of prompts and of the text of search and repair")
    parser.add_argument("--remove", type=float, nargs="+", default=[0.1, 0.25, 0.4], help="shares of the sublayers")
    parser.add_argument("--method", default="greedy,objective=acceptance")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-length", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--drafted", type=int, default=2)
    parser.add_argument("--search-samples", type=int, default=8)
    parser.add_argument("--repair-samples", type=int, default=64, help="0: drafts are not repaired")
    parser.add_argument(
        "--texts", type=int, default=8, help="of how many prompts acceptance on their whole text is told"
    )
    parser.add_argument("--keep", type=Path, help="folder that drafts are kept in, for llama.cpp or another run")
    parser.add_argument("--output", type=Path, default=Path("out/draft.json"))
    options = parser.parse_args()

    source = resolve(options.model)
    tokenizer, dense = source.load_tokenizer(), source.load_model("cpu")
    num_learned = max(options.repair_samples, options.search_samples)
    ids = on_model.tokens(tokenizer, options.data, samples=num_learned + options.prompts, length=256)
    learned, texts = ids[:num_learned], ids[num_learned:]
    prompts = texts[:, : options.prompt_length]
    counts = [round(share * len(source.architecture.units(source.provenance.num_blocks))) for share in options.remove]
    began = time.perf_counter()
    plan = on_model.search(
        dense, learned[: options.search_samples], budget=max(counts), method=options.method, unit="sublayer"
    )
    print(f"searched in {time.perf_counter() - began:.0f} s", flush=True)
    # Nothing ends a text early, neither for the dense model nor for a draft.
    dense.generation_config.eos_token_id = None
    dense_seconds = seconds_a_token(dense, prompts[:1], options.tokens)
    rows = []
    for count in counts:
        draft = on_model.remove(dense, plan.applying(count).removed)
        if options.repair_samples:
            draft, _ = on_model.repair(dense, draft, learned)
        draft.generation_config = type(dense.generation_config).from_dict(dense.generation_config.to_dict())
        if options.keep:
            draft.save_pretrained(options.keep / str(count))
        share = seconds_a_token(draft, prompts[:1], options.tokens) / dense_seconds
        for sampled in (True, False):
            row = {"removed": count, "draft share": share}
            row |= row_of(dense, draft, prompts, texts[: options.texts], sampled, options)
            row["speed-up, if a check costs one token"] = expected_speedup(row["expected"], options.drafted, share, 0.0)
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
