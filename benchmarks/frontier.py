"""Quality against processor minutes for repairs: what each way makes of one, three, ten or thirty minutes.

    python benchmarks/frontier.py --data DIR --count 8
    python benchmarks/frontier.py --model gemma3-270m --data DIR --count 5 --minutes 1,3
    python benchmarks/frontier.py --page         # the page from what was measured, measures nothing

Removed is what the default search finds at --count steps on --search-samples x 256 tokens of the C4 sample and of
WikiText-2's training part, mixed. Repairs are fitted to as much of the same mixture as their minutes allow; SIZES says
how a way's settings follow from the minutes, for SmolLM2, and other models take them in proportion to their work. The
processor time that a repair really took is measured and is what the page shows; judging it is not counted. Quality is
KL to dense and loss on text of kinds that nothing is fitted to, Python's prose and what the dense model wrote, and on
WikiText-2 test, whose training part is half of what is fitted to. A point that stands in the results already is
not measured again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine
from results import FOLDER, keep

from depthcut.calibration import Samples, parse_source, sample_self, sample_text
from depthcut.evaluation.language import compare_language
from depthcut.model.flops import measure_work
from depthcut.model.load import resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import empty_model
from depthcut.repairs import Damage, parse_repairs, repair_and_judge
from depthcut.run.on_model import search
from depthcut.surgery import apply
from depthcut.types import Plan

LENGTH = 256
"""Tokens a sequence."""
JUDGING_SHARE = 16
SMOLLM2_FLOPS = 2 * 135e6
"""Of one token, by which other models' work is told."""
PAGE = Path(__file__).parents[1] / "docs" / "frontier.md"
OUT_OF_KIND = ("standard library", "written by the model")


@dataclass(frozen=True)
class Size:
    """Settings of a way for some minutes.

    Attributes:
        samples: sequences of text.
        chain: the repairs.
    """

    samples: int
    chain: str


def refit(minutes: float) -> Size:
    return Size(max(16, round(45 * minutes)), "refit")


def refit_and_seam(minutes: float) -> Size:
    steps = max(10, round(26 * minutes))
    return Size(max(16, round(24 * minutes)), f"refit+seam,steps={steps}")


def trained(name: str, settings: str, per_minute: float) -> Callable[[float], Size]:
    """A training on so many sequences a minute, four an update, each seen twice at most."""

    def size(minutes: float) -> Size:
        steps = max(2, round(per_minute * minutes / 4))
        return Size(max(16, 2 * steps), f"{name},steps={steps},batch_size=4,{settings}")

    return size


def after_refit(train: Callable[[float], Size]) -> Callable[[float], Size]:
    """Half of the minutes for `refit`, half for a training from there."""

    def size(minutes: float) -> Size:
        first, then = refit(minutes / 2), train(minutes / 2)
        return Size(max(first.samples, then.samples), f"refit+{then.chain}")

    return size


DISTILL = trained("distill", "train=full,learning_rate=0.0001", 18)
SIZES: dict[str, Callable[[float], Size]] = {
    "refit": refit,
    "refit+seam": refit_and_seam,
    "distill": DISTILL,
    "refit+distill": after_refit(DISTILL),
    "lora": trained("lora", "learning_rate=0.0003", 28),
    "partial": trained("partial", "learning_rate=0.0001", 32),
}


@dataclass(frozen=True)
class Bench:
    """What all points of one model and amount share."""

    dense: DecoderStream
    removed: frozenset
    text: Callable[[int], Samples]
    unseen: dict[str, Samples]

    def quality(self, model: torch.nn.Module) -> dict[str, float]:
        found = {}
        for name, samples in self.unseen.items():
            other = {"model": DecoderStream(model, self.dense.architecture)}
            for measured in compare_language(self.dense, other, samples, batch_size=4):
                if measured.name in ("kl_to_dense", "loss"):
                    found[f"{name}: {measured.name} {measured.model}"] = round(measured.value, 4)
        return found

    def point(self, size: Size) -> dict[str, float]:
        """One way at one size: processor minutes and quality."""
        samples = self.text(size.samples)
        text, held_out = samples.split(size.samples - max(1, size.samples // JUDGING_SHARE))
        damage = Damage(self.dense, self.removed, text, held_out, 2**31)
        model = apply(self.dense.model, self.dense.architecture, self.removed)
        began = time.process_time()
        for name, method in parse_repairs(size.chain):
            model, _ = repair_and_judge(name, method, damage, model)
        minutes = (time.process_time() - began) / 60
        print(f"{size.samples} sequences, {size.chain}: {minutes:.2f} minutes", flush=True)
        return {"samples": size.samples, "minutes": round(minutes, 2)} | self.quality(model)


def prepare(options: argparse.Namespace, file: Path) -> Bench:
    source = resolve(options.model, dtype=options.dtype)
    tokenizer = source.load_tokenizer()
    dense = DecoderStream(source.load_model(), source.architecture)
    c4 = f"{options.data / 'c4_sample.jsonl.gz'}"
    train = f"{options.data / 'wikitext2_raw_train_part.jsonl.gz'},join=lines"
    test = parse_source(f"{options.data / 'wikitext2_raw_test.jsonl.gz'},join=lines,order=first")

    def text(num_samples: int) -> Samples:
        mixed = parse_source(f"{c4}+{train}")
        return sample_text(mixed, tokenizer, num_samples=num_samples, length=LENGTH, seed=0, purpose="calibration")

    size = {"length": LENGTH, "seed": 0}
    unseen = {
        OUT_OF_KIND[0]: sample_text(
            parse_source("stdlib"), tokenizer, num_samples=options.judged, purpose="evaluation", **size
        ),
        OUT_OF_KIND[1]: sample_self(dense.model, tokenizer, num_samples=options.judged, length=LENGTH, seed=1),
        "WikiText-2 test": sample_text(test, tokenizer, num_samples=options.judged, purpose="evaluation", **size),
    }
    if file.is_file():
        plan = Plan.from_file(file)
    else:
        plan = search(dense.model, text(options.search_samples).input_ids, budget=options.count)
        file.parent.mkdir(parents=True, exist_ok=True)
        plan.write(file)
    return Bench(dense, frozenset(plan.removed), text, unseen)


COLOURS = ("#00796b", "#c62828", "#1565c0", "#ef6c00", "#6a1b9a", "#5d4037")
WIDTH, HEIGHT, MARGIN = 640, 360, 48
HEAD = """\
# Quality for minutes

What repairs make of processor minutes, written by `python benchmarks/frontier.py --page` from `benchmarks/results`; no
number is written by hand. The same units are removed for all ways; repairs are fitted to C4 and WikiText-2's training
part, mixed, sequences of 256 tokens, as many as their minutes allow. KL is KL(dense || pruned) in nats per token: on
text of kinds that nothing was fitted to, and on WikiText-2 test. In brackets is the share of what the removal added to
the loss (the gap in log-perplexity) that a repair takes away again. Minutes are processor time of the repair; a way's
settings are in `benchmarks/frontier.py`. Points that are missing were not measured.
"""


def pages() -> dict[Path, str]:
    """docs/frontier.md and its figures, from the results that are kept."""
    parts, figures = [HEAD], {}
    for file in sorted(FOLDER.glob("frontier-*.json")):
        record = json.loads(file.read_text())
        values, on = record["values"], record["machine"]
        points = [key.removesuffix(" / minutes") for key in values if key.endswith(" / minutes")]
        if points == ["cut"]:
            continue
        texts = [key.split(" / ")[1].removesuffix(": kl_to_dense model") for key in values if key.startswith("cut / ")]
        texts = [text for text in texts if ": " not in text and text != "minutes"]
        count = file.stem.rsplit("-", 1)[1]
        title = f"{record['model']}, {count} attentions and {count} feed-forward parts removed"
        figure = PAGE.parent / "figures" / f"{file.stem}.svg"
        figures[figure] = _drawn(title, values, points, texts[0])
        parts.append(f"\n## {title}\n\n{on['cpu']}, {on['threads']} thread; `{record['command']}`\n\n")
        parts.append(f"![KL on the {texts[0]} over processor minutes](figures/{figure.name})\n\n")
        parts.append(f"| repair | minutes | sequences | {' | '.join(f'KL, {text}' for text in texts)} |\n")
        parts.append(f"|---|---:|---:|{'---:|' * len(texts)}\n")
        for point in sorted(points, key=lambda point: values[f"{point} / minutes"]):
            found = [
                f"{values[f'{point} / {text}: kl_to_dense model']:.3f}{_closed(values, point, text)}" for text in texts
            ]
            words = [point.rsplit(" ", 1)[0], f"{values[f'{point} / minutes']:.1f}"]
            words.append(f"{values.get(f'{point} / samples', 0):.0f}" if point != "cut" else "")
            parts.append(f"| {' | '.join([*words, *found])} |\n")
    return {PAGE: "".join(parts)} | figures


def _closed(values: dict[str, float], point: str, text: str) -> str:
    """The share of what the removal added to the loss on a text that a repair takes away again, in brackets."""
    if point == "cut":
        return ""
    dense, cut = values[f"cut / {text}: loss dense"], values[f"cut / {text}: loss model"]
    return f" ({100 * (cut - values[f'{point} / {text}: loss model']) / (cut - dense):.0f} %)"


def _drawn(title: str, values: dict[str, float], points: list[str], text: str) -> str:
    """KL over the logarithm of minutes, a line a way, as SVG."""
    places = {p: (values[f"{p} / minutes"], values[f"{p} / {text}: kl_to_dense model"]) for p in points if p != "cut"}
    least, most = min(m for m, _ in places.values()), max(m for m, _ in places.values())
    low, high = min(kl for _, kl in places.values()), max(kl for _, kl in places.values())

    def at(minutes: float, kl: float) -> tuple[float, float]:
        across = math.log(minutes / least) / (math.log(most / least) or 1)
        up = (kl - low) / (high - low or 1)
        return MARGIN + across * (WIDTH - 3 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    marks = [f'<text x="{MARGIN}" y="20">{title}: KL, {text}, over processor minutes</text>']
    for minutes in (1, 3, 10, 30):
        if least <= minutes <= most:
            marks.append(f'<text x="{at(minutes, low)[0]:.0f}" y="{HEIGHT - 16}">{minutes} min</text>')
    marks += [f'<text x="4" y="{at(least, kl)[1]:.0f}">{kl:.2f}</text>' for kl in (low, high)]
    for colour, way in zip(COLOURS, SIZES, strict=True):
        line = sorted(at(*place) for point, place in places.items() if point.rsplit(" ", 1)[0] == way)
        if line:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line]
            marks.append(f'<text x="{line[-1][0] + 6:.1f}" y="{line[-1][1] + 4:.1f}" fill="{colour}">{way}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    inside = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{inside}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, help="folder with the C4 sample and WikiText-2")
    parser.add_argument("--count", type=int, default=8, help="attentions and feed-forward parts that go, in pairs")
    parser.add_argument("--minutes", default="1,3,10")
    parser.add_argument("--ways", default=",".join(SIZES))
    parser.add_argument("--plan", type=Path, help="plan.json of what is removed, in place of a search")
    parser.add_argument("--search-samples", type=int, default=8)
    parser.add_argument("--judged", type=int, default=8, help="sequences of each text that judges")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    if options.page:
        for file, text in pages().items():
            file.write_text(text, encoding="utf-8")
        return
    name = f"frontier-{options.model.replace('/', '-')}-{options.count}"
    kept = FOLDER / f"{name}.json"
    bench = prepare(options, options.plan or Path("out/frontier") / f"{name}.json")
    values: dict[str, float] = json.loads(kept.read_text())["values"] if kept.is_file() else {}
    given = " --plan PLAN" if options.plan else ""
    for name_of, default in (("search_samples", 8), ("judged", 8)):
        if getattr(options, name_of) != default:
            given += f" --{name_of.replace('_', '-')} {getattr(options, name_of)}"
    command = (
        f"python benchmarks/frontier.py --model {options.model} --dtype {options.dtype} --data DIR "
        f"--count {options.count}{given}"
    )
    config = bench.dense.model.config
    work = measure_work(empty_model(config, bench.dense.model.dtype), bench.dense.architecture)
    share = SMOLLM2_FLOPS / (work.forward_flops(LENGTH) / LENGTH)

    def add(point: str, measured: dict[str, float]) -> None:
        values.update({f"{point} / {key}": value for key, value in measured.items()})
        keep(name, options.model, command, values, machine())

    if "cut / minutes" not in values:
        cut = apply(bench.dense.model, bench.dense.architecture, bench.removed)
        add("cut", {"minutes": 0.0} | bench.quality(cut))
    for minutes in map(float, options.minutes.split(",")):
        for way in options.ways.split(","):
            if f"{way} {minutes:g} / minutes" not in values:
                add(f"{way} {minutes:g}", bench.point(SIZES[way](minutes * share)))


if __name__ == "__main__":
    main()
