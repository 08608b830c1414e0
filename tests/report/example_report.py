"""A made-up report on a model of SmolLM2-135M's shape: 8 of 30 blocks removed, every score, all measurements."""

import math
from dataclasses import replace
from random import Random

import yaml

from depthcut.report import Run
from depthcut.results import GenerationSample, Measurement, Repair
from depthcut.types import Plan, Provenance, Scores, ScoreTable, Step, TextDescription, Unit, UnitSize

NUM_BLOCKS = 30
ATTENTION = UnitSize(parameters=884_736 + 576, kv_bytes_per_token=768)
FFN = UnitSize(parameters=2_654_208 + 576, kv_bytes_per_token=0)
BLOCK_PARAMETERS = ATTENTION.parameters + FFN.parameters
DENSE_PARAMETERS = 134_515_008


COMMAND = "depthcut prune HuggingFaceTB/SmolLM2-135M -o smaller --remove 8 --unit block"
COLLAPSE = 11


def renamed(run: Run, text: str) -> Run:
    """The same report with another text wherever one comes from outside: model, prompt, command, task, ..."""
    plan = run.plan.model_copy(
        update={
            "model": run.plan.model.model_copy(update={"source": text, "revision": text}),
            "calibration": run.plan.calibration.model_copy(update={"source": text, "detail": text}),
            "budget": text,
            "method": text,
            "objective": text,
        }
    )
    measurements = [row.model_copy(update={"data": text, "device": text}) for row in run.measurements]
    measurements += [measure(f"{text}/{text}", model, 0.5, unit="share of items") for model in ("dense", "pruned")]
    return replace(
        run,
        plan=plan,
        measurements=tuple(measurements),
        command=text,
        software={text: text},
        generation=(GenerationSample(prompt=text, dense=text, pruned=text + text, setting=text),),
        recipe=yaml.safe_dump({"repair": text}),
        name=text,
    )


def measure(name: str, model: str, value: float, **details: object) -> Measurement:
    return Measurement(name=name, model=model, value=value, **{"unit": "", **details})


def make_run(num_blocks: int = NUM_BLOCKS, removed: tuple[int, ...] = (15, 14, 13, 16, 25, 12, 17, 26)) -> Run:
    """A report on a model of any depth; the path goes on after the removed blocks, in steps that are not applied.

    The objective grows by 0.02 a step and collapses after `COLLAPSE` of them.
    """
    random = Random(0)
    model = Provenance(
        source="HuggingFaceTB/SmolLM2-135M",
        format="hub",
        revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
        digest="9f2b6c1d4e8a70355d1c",
        model_type="llama",
        num_blocks=num_blocks,
        dtype="float32",
    )
    calibration = TextDescription(
        source="c4", detail="validation", num_samples=16, length=512, seed=0, digest="51c09ea7d2f4b1886e03"
    )
    further = [block for block in range(num_blocks - 2, 1, -1) if block not in removed][:6]
    orders = range(1, len(removed) + len(further) + 1)
    objectives = [0.02 * min(order, COLLAPSE) + 0.14 * max(0, order - COLLAPSE) for order in orders]
    plan = Plan(
        model=model,
        calibration=calibration,
        method="greedy",
        unit="block",
        budget="8 blocks",
        objective="js",
        protected=(Unit(0, "attn"), Unit(0, "ffn")),
        steps=tuple(
            Step(remove=(Unit(block, "attn"), Unit(block, "ffn")), objective=objective)
            for block, objective in zip([*removed, *further], objectives, strict=True)
        ),
        cost={"unit_evaluations": 120_400, "candidate_evaluations": 196},
        unit_sizes={
            f"{layer}.{kind}": size for layer in range(num_blocks) for kind, size in (("attn", ATTENTION), ("ffn", FFN))
        },
    ).applying(len(removed))

    def importance(layer: int, scale: float) -> float:
        end = 0.9 * math.exp(-2.2 * layer) + 0.7 * math.exp(-2.0 * (num_blocks - 1 - layer))
        dip = 1 - 0.6 * math.exp(-(((layer - 0.5 * num_blocks) / (0.2 * num_blocks)) ** 2))
        return scale * (0.09 * dip * random.uniform(0.85, 1.15) + end)

    blocks = {str(layer): importance(layer, 1.0) for layer in range(num_blocks)}
    scores = [
        Scores(
            metric=metric,
            unit="block",
            measure=measure_name,
            values={key: scale * value for key, value in blocks.items()},
            standard_errors={key: 0.06 * scale * value for key, value in blocks.items()},
        )
        for metric, measure_name, scale in (
            ("block-influence", "1 − cosine", 1.0),
            ("relative-l1", "‖update‖ / ‖input‖", 2.1),
            ("relative-l2", "‖update‖ / ‖input‖", 3.4),
            ("relative-magnitude", "‖update‖ / ‖output‖", 2.6),
        )
    ]
    for metric, scale in (("cosine", 1.0), ("relative-l1", 1.8), ("relative-l2", 2.9), ("relative-magnitude", 2.2)):
        values = {
            f"{layer}.{kind}": importance(layer, scale * share)
            for layer in range(num_blocks)
            for kind, share in (("attn", 0.4), ("ffn", 0.6))
        }
        scores.append(Scores(metric=metric, unit="sublayer", measure="", values=values))
    path = [0.0]
    for layer in range(num_blocks):
        path.append(path[-1] + math.sqrt(blocks[str(layer)]))
    angular = tuple(
        tuple(min(1.0, 0.16 * (path[start + size] - path[start]) ** 0.6) for size in range(1, num_blocks - start + 1))
        for start in range(num_blocks)
    )
    dense_parameters = DENSE_PARAMETERS + (num_blocks - NUM_BLOCKS) * BLOCK_PARAMETERS
    kept = num_blocks - len(removed)
    text = {"data": "WikiText-2 test, 32 × 512 tokens", "unit": "perplexity", "samples": 32}
    speed = {"unit": "tokens/s", "samples": 5, "device": "2 cores of an x86-64 CPU"}
    return Run(
        plan=plan,
        command=COMMAND,
        software={"depthcut": "0.1.0", "torch": "2.13.0"},
        name="smaller",
        scores=ScoreTable(model=model, calibration=calibration, scores=tuple(scores), angular=angular),
        measurements=(
            measure("parameters", "dense", dense_parameters, unit="parameters"),
            measure("blocks", "dense", num_blocks, unit="blocks"),
            measure("bytes_on_disk", "dense", 269_060_552, unit="bytes"),
            measure("kv_bytes_per_token", "dense", 768 * num_blocks, unit="bytes"),
            measure("perplexity", "dense", 28.82, stderr=0.31, **text),
            measure("prompt_tokens_per_second", "dense", 412.0, stderr=3.1, data="512 tokens", **speed),
            measure("decode_tokens_per_second", "dense", 19.8, stderr=0.2, data="after 512 tokens", **speed),
            measure("parameters", "pruned", dense_parameters - len(removed) * BLOCK_PARAMETERS, unit="parameters"),
            measure("blocks", "pruned", kept, unit="blocks"),
            measure("bytes_on_disk", "pruned", 212_401_180, unit="bytes"),
            measure("kv_bytes_per_token", "pruned", 768 * kept, unit="bytes"),
            measure("perplexity", "pruned", 97.40, stderr=1.12, **text),
            measure("kl_to_dense", "pruned", 1.211, stderr=0.014, **{**text, "unit": "nats per token"}),
            measure("prompt_tokens_per_second", "pruned", 545.0, stderr=4.4, data="512 tokens", **speed),
            measure("decode_tokens_per_second", "pruned", 26.1, stderr=0.3, data="after 512 tokens", **speed),
            measure("search_seconds", "search", 412.6, unit="s"),
        ),
    )


def make_tasks() -> tuple[Measurement, ...]:
    """Two tasks of right answers, one of them with two metrics, their average, a perplexity, and a generation probe."""
    rows: list[Measurement] = []

    def add(name: str, dense: float, pruned: float, unit: str, data: str, retained: float | None) -> None:
        common = {"unit": unit, "data": data, "samples": 400}
        rows.append(measure(name, "dense", dense, stderr=0.025, **common))
        rows.append(measure(name, "pruned", pruned, stderr=0.024, **common))
        rows.append(measure(f"{name}/difference", "pruned", pruned - dense, stderr=0.018, **common))
        if retained is not None:
            unit = "share of dense above chance (0.25)"
            rows.append(measure(f"{name}/retained", "pruned", retained, stderr=0.06, **{**common, "unit": unit}))

    items, texts = "0-shot, 400 items", "62 documents"
    add("arc_easy/acc", 0.58, 0.44, "share of items", items, 0.576)
    add("arc_easy/acc_norm", 0.54, 0.42, "share of items", items, 0.586)
    add("piqa/acc_norm", 0.68, 0.61, "share of items", items, 0.611)
    add("average/accuracy", 0.61, 0.515, "share of items", "mean of arc_easy/acc_norm, piqa/acc_norm", 0.6)
    add("wikitext/word_perplexity", 31.4, 96.2, "word_perplexity", texts, None)
    add("generation/greedy_arithmetic", 0.62, 0.05, "share of steps right before the first wrong one", "greedy", None)
    return tuple(rows)


def make_generation() -> tuple[GenerationSample, ...]:
    """A prompt on which both models begin alike, and one with markup in it."""
    return (
        GenerationSample(
            prompt="The capital of France is",
            dense=" Paris, which lies on the Seine.",
            pruned=" Paris, Paris, Paris, Paris,",
            setting="greedy",
        ),
        GenerationSample(prompt="Write <b>bold</b> & plain", dense="<b>bold</b>", pruned="", setting="seed 0"),
    )


def make_repairs(name: str = "lora") -> tuple[Repair, ...]:
    """A repair in closed form, and one that was trained and did not help."""
    text = TextDescription(source=name, detail=name, num_samples=56, length=512, seed=0, digest="ab12")
    closed = Repair(
        method="refit",
        settings={"reads": True, "ridges": (0.1, 1.0)},
        text=text,
        held_out=text.model_copy(update={"num_samples": 8}),
        objective="kl",
        before=0.9747,
        after=0.7303,
        kept=True,
        units={"11.ffn": 0.526},
    )
    curve = tuple((step, 4 - step / 100) for step in range(10, 110, 10))
    trained = closed.model_copy(update={"method": name, "before": 0.73, "after": 0.81, "kept": False, "curve": curve})
    return closed, trained
