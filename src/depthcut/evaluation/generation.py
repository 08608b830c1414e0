"""The generation probe: what models write after fixed prompts, greedily and sampled, scored and kept.

Every model writes after every prompt of `probes.py`, twice: taking the likeliest token, and sampled with one seed for
all models. Scores are paired over prompts with the dense model's. Of greedy text the place is kept where it first
differs from the dense model's, in tokens. The checkpoint's own generation settings are left out but for its end
tokens: a repetition penalty would hide what is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.paired import DIFFERENCE, Estimate, dense_score, difference, other_score, stratum
from depthcut.evaluation.probes import MEASURES, PROBES, Probe, repeated_share
from depthcut.model.device import own_seed
from depthcut.model.generation import generating_by
from depthcut.results import GenerationSample, Measurement

TEMPERATURE = 0.8
TOP_P = 0.95
GREEDY = "greedy"
SAMPLED = "sampled"


@dataclass(frozen=True)
class Text:
    """What a model wrote after one prompt.

    Attributes:
        tokens: as generated, the end token included.
        score: in [0, 1]; None where the text is too short to tell.
    """

    probe: Probe
    tokens: tuple[int, ...]
    words: str
    score: float | None


Texts = Mapping[str, Sequence[Text]]
"""One model's texts by mode (`greedy`, `sampled`), in the order of the prompts."""
Write = Callable[[str, int, bool, int], Sequence[int]]
"""From a prompt, the most tokens, whether to sample, and a seed, to the tokens that follow."""


def write_texts(
    write: Write,
    decode: Callable[[Sequence[int]], str],
    *,
    seed: int = 0,
    probes: Sequence[Probe] = PROBES,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, list[Text]]:
    """Has one model write after every prompt in both modes.

    Args:
        decode: from tokens to text, special tokens left out.
        seed: of the sampled texts; each prompt adds its place.
    """
    texts: dict[str, list[Text]] = {GREEDY: [], SAMPLED: []}
    for place, probe in enumerate(probes):
        for mode, written in texts.items():
            tokens = tuple(write(probe.prompt, probe.num_tokens, mode == SAMPLED, seed + place))
            words = decode(tokens)
            score = repeated_share(tokens) if probe.kind == "repetition" else probe.score(words)
            written.append(Text(probe, tokens, words, score))
            advance(1)
    return texts


def model_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    probes: Sequence[Probe] = PROBES,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, list[Text]]:
    """`write_texts` of a model in memory; its generation settings are as before on exit, and torch's generator too."""

    def write(prompt: str, num_tokens: int, sample: bool, seed: int) -> list[int]:
        return generate(model, tokenizer, prompt, num_tokens, sample=sample, seed=seed)

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    with generating_by(model, _plain_settings(model, tokenizer)):
        return write_texts(write, decode, seed=seed, probes=probes, advance=advance)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    num_tokens: int,
    *,
    sample: bool,
    seed: int,
) -> list[int]:
    """The tokens that follow a prompt, its own left out."""
    input_ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    with own_seed():
        torch.manual_seed(seed)
        chosen = {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0} if sample else {}
        found = model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=num_tokens,
            do_sample=sample,
            **chosen,
        )
    return found[0, input_ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def _plain_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The model's special tokens, and nothing else of its own settings."""
    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(eos_token_id=ends, pad_token_id=first_end, bos_token_id=own.bos_token_id)


def compare_texts(texts: Mapping[str, Texts], *, seed: int = 0) -> list[Measurement]:
    """Scores of all models by kind and mode, and of those after the first, the dense one, what differs from it.

    Returns:
        `generation/MODE_KIND`, the mean over prompts with its standard error; of the others also `/difference`, paired
        over prompts, and `generation/greedy_agreement`, the tokens before the first that is not the dense model's.
    """
    reference, *others = texts
    measurements: list[Measurement] = []

    def add(name: str, estimate: Estimate, unit: str, model: str, mode: str, num_prompts: int) -> None:
        measurements.append(
            Measurement(
                name=f"generation/{name}",
                value=estimate.value,
                stderr=estimate.stderr,
                unit=unit,
                model=model,
                data=setting(mode, seed),
                samples=num_prompts,
            )
        )

    for mode in (GREEDY, SAMPLED):
        for kind, measure in MEASURES.items():
            scores = _scores(texts, mode, kind)
            count = len(scores[reference])
            if not count:
                continue
            name = f"{mode}_{kind}"
            alone = stratum(scores[reference], scores[reference])
            add(name, dense_score([alone]), measure, reference, mode, count)
            for other in others:
                pairs = stratum(scores[reference], scores[other])
                add(name, other_score([pairs]), measure, other, mode, count)
                add(name + DIFFERENCE, difference([pairs]), measure, other, mode, count)
    for other in others:
        agreed = [
            float(agreed_tokens(first.tokens, second.tokens))
            for first, second in zip(texts[reference][GREEDY], texts[other][GREEDY], strict=True)
        ]
        mean = dense_score([stratum(agreed, agreed)])
        add("greedy_agreement", mean, "tokens before the first that differs", other, GREEDY, len(agreed))
    return measurements


def _scores(texts: Mapping[str, Texts], mode: str, kind: str) -> dict[str, list[float]]:
    """By model the scores of one kind, over the prompts after which every model wrote enough to be scored."""
    found = {name: [text.score for text in written[mode] if text.probe.kind == kind] for name, written in texts.items()}
    told = [not any(score is None for score in scores) for scores in zip(*found.values(), strict=True)]
    return {
        name: [score for score, known in zip(scores, told, strict=True) if known and score is not None]
        for name, scores in found.items()
    }


def agreed_tokens(dense: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike; the length of the shorter one where neither departs before."""
    differs = (place for place, (left, right) in enumerate(zip(dense, other, strict=False)) if left != right)
    return next(differs, min(len(dense), len(other)))


def samples(dense: Texts, pruned: Texts, *, seed: int = 0) -> list[GenerationSample]:
    """What both models wrote, for people to look at."""
    return [
        GenerationSample(prompt=first.probe.prompt, dense=first.words, pruned=second.words, setting=setting(mode, seed))
        for mode in (GREEDY, SAMPLED)
        for first, second in zip(dense[mode], pruned[mode], strict=True)
    ]


def setting(mode: str, seed: int) -> str:
    """How tokens were chosen, for people."""
    return GREEDY if mode == GREEDY else f"temperature {TEMPERATURE}, top-p {TOP_P}, seed {seed}"
