"""The generation probe on planted texts, and a model's own text against a decoding loop without anything around it."""

import itertools

import pytest
import torch
from transformers import GenerationConfig

import tiny
from depthcut.evaluation.generation import (
    SAMPLED,
    agreed_tokens,
    compare_texts,
    model_texts,
    samples,
    write_texts,
)
from depthcut.evaluation.probes import (
    CHAIN_STEPS,
    PROBES,
    chain_share,
    copied_share,
    obeys,
    repeated_share,
)


def text_of(tokens):
    return bytes(tokens).decode()


def planted(answer):
    """Texts of a stand-in that writes `answer(prompt)` whatever the mode; a token is a byte."""
    return write_texts(lambda prompt, *_: list(answer(prompt).encode()), text_of)


def going_on_well(prompt):
    """What a perfect model would write."""
    probe = next(probe for probe in PROBES if probe.prompt == prompt)
    if probe.kind == "repetition":
        return "abcdefghijklmnopqrstuvwxyz 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if probe.kind == "arithmetic":
        *_, last = prompt.split("\n")
        start, _, step, _ = last.split()
        values = [int(start) + place * int(step) for place in range(CHAIN_STEPS + 1)]
        lines = [f"{first} + {step} = {second}" for first, second in itertools.pairwise(values)]
        return "\n".join(lines)[len(last) :] + "\nand so on"
    if probe.kind == "copy":
        return " " + prompt.rpartition("Original: ")[2].partition("\n")[0] + "\n\nOriginal: more"
    example = prompt.partition("Answer:\n")[2].partition("\n\n")[0]
    return f"{example}\n\nQuestion: another?"


def test_a_model_that_goes_round_in_circles_is_told_from_one_that_writes_well():
    well, circling = planted(going_on_well), planted(lambda _: "the cat sat on " * 6)
    rows = {(row.name, row.model): row for row in compare_texts({"dense": well, "pruned": circling})}
    for kind, dense, pruned in (("repetition", 0.0, 0.8), ("arithmetic", 1, 0), ("copy", 1, 0), ("format", 1, 0)):
        name = f"generation/greedy_{kind}"
        assert rows[name, "dense"].value == pytest.approx(dense, abs=0.05)
        assert rows[name, "pruned"].value == pytest.approx(pruned, abs=0.05)
        difference = rows[f"{name}/difference", "pruned"]
        assert difference.value == pytest.approx(rows[name, "pruned"].value - rows[name, "dense"].value)
        assert difference.samples == 6


def test_a_model_that_only_copies_scores_there_and_nowhere_else():
    copying = planted(lambda prompt: prompt.rpartition("Original: ")[2].partition("\n")[0])
    found = {row.name: row.value for row in compare_texts({"dense": copying})}
    assert found["generation/greedy_copy"] == found["generation/sampled_copy"] == 1
    assert found["generation/greedy_arithmetic"] == found["generation/greedy_format"] == 0


def test_a_model_that_ends_at_once_is_not_praised_for_not_repeating():
    silent = planted(lambda _: "")
    rows = compare_texts({"dense": planted(going_on_well), "pruned": silent})
    assert not [row for row in rows if "repetition" in row.name]
    assert {row.value for row in rows if row.model == "pruned" and "difference" not in row.name} == {0}


def test_the_place_where_two_texts_part():
    assert agreed_tokens([5, 6, 7, 8], [5, 6, 9, 8]) == 2
    assert agreed_tokens([5, 6, 7], [5, 6, 7]) == 3
    assert agreed_tokens([5, 6], [5, 6, 7]) == 2
    texts = {"dense": planted(lambda _: "0123456789"), "pruned": planted(lambda _: "0123x56789")}
    agreement = next(row for row in compare_texts(texts) if row.name == "generation/greedy_agreement")
    assert (agreement.value, agreement.stderr, agreement.samples) == (4, 0, len(PROBES))


def test_every_prompt_is_kept_with_both_texts():
    kept = samples(planted(lambda _: "one"), planted(lambda _: "two"), seed=3)
    assert len(kept) == 2 * len(PROBES)
    assert {(sample.dense, sample.pruned) for sample in kept} == {("one", "two")}
    assert {sample.setting for sample in kept} == {"greedy", "temperature 0.8, top-p 0.95, seed 3"}


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3], None), ([1, 2, 3, 4], 0), ([7] * 13, 0.9), ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 / 6)],
)
def test_repeated_ngrams_by_hand(tokens, share):
    assert repeated_share(tokens) == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (" 5\n5 + 2 = 7\n7 + 2 = 9\n9 + 2 = 11\n11 + 2 = 13\n13 + 2 = 16", 1),
        (" 5\n5 + 2 = 7\n7 + 2 = 10\n10 + 2 = 12", 2 / 5),
        (" 5\n3 + 2 = 5", 1 / 5),
        (" 6", 0),
        ("\n\nThe answer is 5.", 0),
        ("", 0),
    ],
)
def test_right_steps_by_hand(text, share):
    assert chain_share(text, 3, 2) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [(" a b c d\nmore", 1), (" a b x d", 0.5), (" a b", 0.5), ("a b c d e", 1), ("\na b c d", 0), ("", 0)],
)
def test_copied_words_by_hand(text, share):
    assert copied_share(text, "a b c d") == share


def test_a_format_is_obeyed_as_a_whole():
    assert obeys("yes\n\nQuestion: more", "yes|no") == 1
    assert obeys("yes \n", "yes|no") == 1
    assert obeys("yes, it is", "yes|no") == 0
    assert obeys("\nyes", "yes|no") == 0


class TestModel:
    @pytest.fixture(scope="class")
    def model(self):
        return tiny.model(vocab_size=tiny.BYTE_VOCABULARY, max_position_embeddings=512)

    @pytest.fixture(scope="class")
    def texts(self, model):
        return model_texts(model, tiny.tokenizer(), seed=5, probes=PROBES[::5])

    @torch.no_grad()
    def test_greedy_text_is_the_likeliest_token_after_token_without_a_cache(self, model, texts):
        tokenizer = tiny.tokenizer()
        for text in texts["greedy"]:
            ids = tokenizer(text.probe.prompt)["input_ids"]
            begin = len(ids)
            while len(ids) < begin + text.probe.num_tokens and ids[-1] != tokenizer.eos_token_id:
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
            assert text.tokens == tuple(ids[begin:])

    def test_the_checkpoint_s_own_settings_change_nothing_and_stay(self, model, texts):
        own = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=3.0, eos_token_id=2)
        before, model.generation_config = model.generation_config, own
        state = torch.random.get_rng_state()
        again = model_texts(model, tiny.tokenizer(), seed=5, probes=PROBES[::5])
        assert {mode: [text.tokens for text in found] for mode, found in again.items()} == {
            mode: [text.tokens for text in found] for mode, found in texts.items()
        }
        assert model.generation_config is own and own.repetition_penalty == 5.0
        assert torch.equal(torch.random.get_rng_state(), state)
        model.generation_config = before

    def test_another_seed_samples_another_text(self, model, texts):
        other = model_texts(model, tiny.tokenizer(), seed=6, probes=PROBES[::5])
        assert [text.tokens for text in other["greedy"]] == [text.tokens for text in texts["greedy"]]
        assert [text.tokens for text in other[SAMPLED]] != [text.tokens for text in texts[SAMPLED]]
