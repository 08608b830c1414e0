"""The stages in order: model, calibration, importance, search, surgery, evaluation, export, report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.compare import compare, software
from depthcut.export import EXPORTS
from depthcut.export.hf import verify_directory, write_directory
from depthcut.model.load import ModelSource, resolve
from depthcut.model.stream import DecoderStream
from depthcut.planning import find_plan, find_rivals, make_plan, score_units
from depthcut.recipe import Recipe
from depthcut.report import write_model_card, write_report
from depthcut.search.problem import Problem
from depthcut.session import PROBE_TOKENS, Session, find_model, pose_problem
from depthcut.surgery import apply, check_removal
from depthcut.types import Cost, InputError, Measurement, Plan, ScoreTable, Unit, write_measurements
from depthcut.workspace import check_output, workspace

ARTEFACTS = ("plan.json", "scores.json", "results.json", "recipe.yaml", "report.html", "README.md")


@dataclass(frozen=True)
class Result:
    """What a run found and made.

    Attributes:
        scores: None where a given plan was applied.
        model: the pruned model in memory, in eval mode; it shares tensors with no other model that is still in use.
        output: where it was written, None where nothing was.
    """

    plan: Plan
    scores: ScoreTable | None
    measurements: tuple[Measurement, ...]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    output: Path | None = None


def prune(
    recipe: Recipe, output: Path | None = None, *, overwrite: bool = False, resume: bool = False, command: str = ""
) -> Result:
    """Runs one recipe from the model to the written and verified directory.

    Args:
        output: directory to write; nothing is written where left out.
        command: what to show as the command that reproduces the result.

    Raises:
        InputError: something in the recipe cannot be done; found before weights load where that is possible.
        VerificationError: the written model is not the one in memory; no output appears.
    """
    recipe.check()
    if output is not None:
        check_output(output, overwrite=overwrite, resume=resume)
    source = find_model(recipe)
    problem = pose_problem(recipe, source)
    if output is not None:
        _require_other_folder(output, source)
    session = Session.prepare(recipe, source)

    def run(folder: Path | None) -> Result:
        loaded = session.load()
        scores, plan = find_plan(loaded, problem, folder)
        return _carry_out(loaded, plan, scores, folder, command, find_rivals(loaded, problem, plan, scores))

    if output is None:
        return run(None)
    with workspace(output, overwrite=overwrite, resume=resume) as folder:
        _require_same_recipe(recipe, folder)
        result = run(folder)
    return replace(result, output=output)


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        plan: None where only a search could tell.
        unit_evaluations: about how many single attentions and FFNs scoring and search run on one sequence.
    """

    source: ModelSource
    problem: Problem
    plan: Plan | None
    unit_evaluations: int


def preview(recipe: Recipe) -> Preview:
    """The plan where one pass at most finds it, and what the run costs; nothing is written and nothing is searched.

    Weights load only for the static scores.
    """
    recipe.check()
    source = find_model(recipe)
    problem = pose_problem(recipe, source)
    search = recipe.build_search()
    num_sequences = recipe.calibration_samples
    scoring = num_sequences * len(problem.units)
    measured = problem.budget.kind in ("increase", "latency")
    if search.needs == "configuration" and not measured:
        return Preview(source, problem, make_plan(recipe, source, problem, None, Cost()), 0)
    if search.needs == "objective" or measured:
        Session.prepare(recipe, source)
        return Preview(source, problem, None, scoring + search.estimate(problem, num_sequences))
    plan = find_plan(Session.prepare(recipe, source).load(), problem, None)[1]
    return Preview(source, problem, plan, scoring)


def score(recipe: Recipe, output: Path, *, overwrite: bool = False) -> ScoreTable:
    """Every static score of every unit, written as `scores.json` into a directory of its own."""
    check_output(output, overwrite=overwrite, resume=False)
    source = find_model(recipe)
    _require_other_folder(output, source)
    session = Session.prepare(recipe, source, evaluate=False)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        return score_units(session.load(), folder)[0]


def apply_plan(
    recipe: Recipe,
    plan: Plan,
    output: Path,
    *,
    num_steps: int | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Result:
    """Applies a plan that was found before, or its first steps, to the model it was made for.

    Args:
        recipe: names the model, the evaluation text and the precision.
        num_steps: steps to apply; as marked in the plan where left out.

    Raises:
        InputError: the plan is of another model, or has fewer steps.
    """
    check_output(output, overwrite=overwrite, resume=False)
    source = find_model(recipe)
    require_same_model(plan, source)
    if num_steps is not None:
        if not 0 <= num_steps <= len(plan.steps):
            raise InputError(f"the plan has {len(plan.steps)} steps, so {num_steps} of them cannot be applied")
        plan = plan.applying(num_steps)
    check_removal(source.config, source.architecture, plan.removed)
    _require_other_folder(output, source)
    session = Session.prepare(recipe, source, calibrate=False)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        result = _carry_out(session.load(), plan, None, folder, command, {})
    return replace(result, output=output)


def require_same_model(plan: Plan, source: ModelSource) -> None:
    """Raises InputError when the plan was made for another model."""
    made_for, given = plan.model, source.provenance
    if made_for.digest != given.digest:
        raise InputError(
            f"the plan was made for {made_for.source} ({made_for.model_type}, {made_for.num_blocks} blocks, digest "
            f"{made_for.digest[:12]}), not for {given.source} ({given.model_type}, {given.num_blocks} blocks, digest "
            f"{given.digest[:12]}); give that model, or make a plan for this one"
        )


def evaluate(recipe: Recipe, pruned: str) -> list[Measurement]:
    """Measures a written model beside its dense one on the recipe's evaluation text."""
    source = find_model(recipe)
    pruned_source = resolve(pruned, dtype=source.provenance.dtype, trust_remote_code=recipe.trust_remote_code)
    sizes = [config.get_text_config().vocab_size for config in (source.config, pruned_source.config)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{pruned} was not made from {recipe.model}: it knows {sizes[1]} tokens, not {sizes[0]}; name its dense "
            "model with --dense"
        )
    session = Session.prepare(recipe, source, calibrate=False).load()
    assert session.stream is not None and session.evaluation is not None
    pruned_stream = DecoderStream(pruned_source.load_model(recipe.device), pruned_source.architecture)
    return _about(source, compare(session.stream, {"pruned": pruned_stream}, session.evaluation, speed=recipe.speed))


def export(directory: str, form: str, output: Path, *, dtype: str = "auto", overwrite: bool = False) -> None:
    """Writes a model directory in another form or precision and verifies it; its plan and card come along.

    Raises:
        InputError: the form is unknown, or the directory holds no model that can be written.
        VerificationError: what was written is not the model; no output appears.
    """
    exporter = EXPORTS.find(form).make()
    check_output(output, overwrite=overwrite, resume=False)
    source = resolve(directory, dtype=dtype)
    exporter.check(source.config)
    tokenizer = source.load_tokenizer()
    model = source.load_model()
    first_ids = torch.arange(PROBE_TOKENS)[None] + min(PROBE_TOKENS, len(tokenizer) // 2)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        exporter.write(model, tokenizer, folder)
        exporter.verify(folder, model, first_ids % len(tokenizer))
        for name in ARTEFACTS:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)


def _carry_out(
    session: Session,
    plan: Plan,
    scores: ScoreTable | None,
    folder: Path | None,
    command: str,
    rivals: Mapping[str, tuple[Unit, ...]],
) -> Result:
    """Surgery, measurement, and the written directory.

    Args:
        rivals: removed units by name, measured beside the pruned model.
    """
    stream, evaluation, source = session.stream, session.evaluation, session.source
    assert stream is not None and evaluation is not None
    pruned = apply(stream.model, source.architecture, plan.removed)
    pruned_stream = DecoderStream(pruned, source.architecture)
    others = {"pruned": pruned_stream} | {
        method: DecoderStream(apply(stream.model, source.architecture, removed), source.architecture)
        for method, removed in rivals.items()
    }
    measurements = compare(stream, others, evaluation, speed=session.recipe.speed)
    result = Result(plan, scores, tuple(_about(source, measurements)), pruned, session.tokenizer)
    if folder is None:
        return result
    pruned.config.depthcut = {
        "version": software()["depthcut"],
        "base_model": source.provenance.model_dump(mode="json"),
        "removed": [str(unit) for unit in plan.removed],
    }
    write_directory(pruned, session.tokenizer, folder)
    verify_directory(folder, pruned, evaluation.input_ids[:1, :PROBE_TOKENS])
    result = replace(result, measurements=(*result.measurements, *_bytes_on_disk(source, folder)))
    _write_artefacts(session, result, folder, command)
    return result


def _about(source: ModelSource, measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with the model they are about, so that `results.json` can be read alone."""
    return [measurement.model_copy(update={"source": str(source.provenance)}) for measurement in measurements]


def _bytes_on_disk(source: ModelSource, folder: Path) -> list[Measurement]:
    dense_files = [source.folder / source.gguf_file] if source.gguf_file else source.folder.glob("*.safetensors")
    stored = source.provenance.quantisation or source.provenance.dtype
    sizes = [
        Measurement(
            name="bytes_on_disk",
            value=sum(path.stat().st_size for path in files),
            unit="bytes",
            model=model,
            data=f"stored as {dtype}",
        )
        for model, files, dtype in (
            ("dense", dense_files, stored),
            ("pruned", folder.glob("*.safetensors"), source.provenance.dtype),
        )
    ]
    return _about(source, sizes)


def _write_artefacts(session: Session, result: Result, folder: Path, command: str) -> None:
    result.plan.write(folder / "plan.json")
    write_measurements(list(result.measurements), folder / "results.json")
    write_report(
        folder / "report.html",
        plan=result.plan,
        scores=result.scores,
        measurements=result.measurements,
        unit_sizes=result.plan.unit_sizes,
        command=command,
        software=software(),
    )
    write_model_card(
        folder / "README.md",
        plan=result.plan,
        measurements=result.measurements,
        command=command,
        software=software(),
        base_model=session.source.base_model,
        license=session.source.license,
    )


def _require_other_folder(output: Path, source: ModelSource) -> None:
    """Raises InputError where the result would replace the model that it is made from."""
    if output.resolve() == source.folder.resolve():
        raise InputError(f"the output {output} is the model itself; choose another directory")


def _require_same_recipe(recipe: Recipe, folder: Path) -> None:
    """A run is resumed only under the recipe that it was begun with."""
    file = folder / "recipe.yaml"
    if file.is_file() and file.read_text(encoding="utf-8") != recipe.to_yaml():
        raise InputError(
            f"the unfinished run in {folder} was begun with other options (see its recipe.yaml); give the same options "
            "to resume it, or --overwrite to begin anew"
        )
    file.write_text(recipe.to_yaml(), encoding="utf-8")
