"""The stages in order: model, calibration, importance, search, surgery, evaluation, export, report."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut.evaluation.compare import compare, software
from depthcut.evaluation.harness import model_digest
from depthcut.export import EXPORTS, Export
from depthcut.export.hf import verify_directory, write_directory
from depthcut.export.llama_cpp import misread
from depthcut.model.load import ModelSource, resolve
from depthcut.model.stream import DecoderStream
from depthcut.model.units import sizes_from_config
from depthcut.process.progress import progress
from depthcut.process.ranks import ALONE, Ranks, join, was_restarted
from depthcut.process.workspace import check_output, workspace
from depthcut.repair import Damage, repair_and_judge
from depthcut.repair.training.schedule import Schedule
from depthcut.report import SEARCH, Run, license_of, renew_model_card, write_model_card, write_report
from depthcut.run.plan import find_plan, find_rivals, score_units
from depthcut.run.recipe import Recipe
from depthcut.run.session import PROBE_TOKENS, Session, find_model, pose_problem
from depthcut.search.problem import Problem
from depthcut.surgery import apply, check_removal
from depthcut.types import (
    GenerationSample,
    InputError,
    Measurement,
    Plan,
    Repair,
    ScoreTable,
    Unit,
    write_generation,
    write_measurements,
    write_repairs,
)

JUDGING_SHARE = 16
"""One sequence of the repair text in so many judges whether a repair is kept, and is fitted to by none."""

CHECKPOINTS = "checkpoints"

DIVIDING_WEIGHTS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""What accelerate sets to `true` for the processes that it starts so."""

ARTEFACTS = (
    "plan.json",
    "scores.json",
    "repair.json",
    "results.json",
    "generation.json",
    "recipe.yaml",
    "report.html",
    "README.md",
)


@dataclass(frozen=True)
class Result:
    """What a run found and made.

    Attributes:
        scores: None where a given plan was applied.
        model: the pruned model in memory, in eval mode; it shares tensors with no other model that is still in use.
        output: where it was written, None where nothing was, or another rank writes it.
        generation: what both models wrote after the prompts of the generation probe.
        not_written: forms that were asked for and cannot hold what was found, each with the reason.
    """

    plan: Plan
    scores: ScoreTable | None
    measurements: tuple[Measurement, ...]
    repairs: tuple[Repair, ...]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generation: tuple[GenerationSample, ...] = ()
    output: Path | None = None
    not_written: tuple[tuple[str, str], ...] = ()


def prune(
    recipe: Recipe,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
    foretell: Callable[[ModelSource, Problem], None] = lambda *_: None,
) -> Result:
    """Runs one recipe from the model to the written and verified directory.

    Args:
        output: directory to write; nothing is written where left out.
        command: what to show as the command that reproduces the result.
        foretell: called once all is checked, before weights load; not where several processes share the work.

    Returns:
        The result; of several ranks the first one's is whole, and the others have the plan without measurements, and
        a model that took part in no closed repair after the last training.

    Raises:
        InputError: something in the recipe cannot be done; found before weights load where that is possible.
        VerificationError: the written model is not the one in memory; no output appears.
    """
    ranks = join()
    resume = resume or was_restarted()
    with ranks.one_voice():
        recipe.check()
        check_division(recipe, ranks)
        if output is not None and ranks.is_first:
            check_output(output, overwrite=overwrite, resume=resume)
        source = find_model(recipe)
        problem = pose_problem(recipe, source)
        for form in recipe.export:
            EXPORTS.parse(form)[1].check(source.config)
        if output is not None:
            _require_other_folder(output, source)
        session = Session.prepare(recipe, source)
        if ranks.count == 1:
            foretell(source, problem)

        def run(folder: Path | None) -> Result:
            loaded = load_on(ranks, session)
            scores, plan = find_plan(loaded, problem, folder, ranks)
            _tell_shares(loaded, ranks)
            rivals = find_rivals(loaded, problem, plan, scores) if ranks.is_first else {}
            return _carry_out(loaded, plan, scores, folder, command, rivals, ranks)

        if output is None:
            return run(None)
        with workspace(output, overwrite=overwrite, resume=resume, ranks=ranks) as folder:
            if ranks.is_first:
                require_same_recipe(recipe, folder)
            result = run(folder)
    return replace(result, output=output if ranks.is_first else None)


def check_division(recipe: Recipe, ranks: Ranks) -> None:
    """Raises InputError where the processes cannot train as they were started; needs no weights."""
    for name, method in recipe.repairs:
        if method.num_sequences and any(os.environ.get(variable) == "true" for variable in DIVIDING_WEIGHTS):
            raise InputError(
                f"{name} trains with the whole model on every rank, and accelerate is set to divide weights among "
                "ranks (FSDP or DeepSpeed); start the ranks by torchrun, or leave that out of accelerate's settings"
            )
        if isinstance(method, Schedule) and method.num_sequences and method.batch_size % ranks.count:
            raise InputError(
                f"{name} trains on {method.batch_size} sequences an update, which {ranks.count} ranks cannot divide "
                f"evenly; give {name},batch_size={-(-method.batch_size // ranks.count) * ranks.count}"
            )


def load_on(ranks: Ranks, session: Session) -> Session:
    """A session with its model loaded for this process, and texts that are the same for all."""
    device = ranks.device(session.recipe.device)
    loaded = replace(session, recipe=session.recipe.model_copy(update={"device": device})).load()
    calibration, repair_text = ranks.from_first(lambda: (loaded.calibration, loaded.repair_text))
    return replace(loaded, calibration=calibration, repair_text=repair_text)


def _tell_shares(session: Session, ranks: Ranks) -> None:
    assert session.stream is not None
    shares = ranks.gather(session.stream.unit_evaluations)
    if ranks.count > 1:
        print(f"unit evaluations by rank: {', '.join(f'{share:,}' for share in shares)}", file=sys.stderr)


def score(recipe: Recipe, output: Path, *, overwrite: bool = False) -> ScoreTable:
    """Every static score of every unit, written as `scores.json` into a directory of its own."""
    check_output(output, overwrite=overwrite, resume=False)
    source = find_model(recipe)
    _require_other_folder(output, source)
    session = Session.prepare(recipe, source, repair=False, evaluate=False)
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
    plan.require_made_for(source.provenance)
    if num_steps is not None:
        plan = plan.applying(num_steps)
    check_removal(source.config, source.architecture, plan.removed)
    units = source.architecture.units(source.provenance.num_blocks)
    if not all(str(unit) in plan.unit_sizes for unit in units):
        sizes = sizes_from_config(source.config, source.architecture, source.dtype).units
        plan = plan.model_copy(update={"unit_sizes": {str(unit): size for unit, size in sizes.items()}})
    _require_other_folder(output, source)
    session = Session.prepare(recipe, source, calibrate=False)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        result = _carry_out(session.load(), plan, None, folder, command, {})
    return replace(result, output=output)


def export(
    directory: str,
    form: str,
    output: Path,
    *,
    dtype: str = "auto",
    tensor_type: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a model directory in another form or precision and verifies it; its plan and card come along.

    Args:
        tensor_type: how a form that quantises stores matrices.

    Returns:
        What a user of the result should know, empty where nothing.

    Raises:
        InputError: the form is unknown, or the directory holds no model that can be written.
        VerificationError: what was written is not the model; no output appears.
    """
    exporter = _exporter(form, tensor_type)
    check_output(output, overwrite=overwrite, resume=False)
    source = resolve(directory, dtype=dtype, save_dtype=dtype)
    _require_other_folder(output, source)
    exporter.check(source.config)
    tokenizer = source.load_tokenizer()
    model = source.load_model()
    if source.gguf_file:
        model.config.depthcut = _origin(source, ())
    first_ids = torch.arange(PROBE_TOKENS)[None] + min(PROBE_TOKENS, len(tokenizer) // 2)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        exporter.write(model, tokenizer, folder)
        exporter.verify(folder, model, first_ids % len(tokenizer))
        for name in ARTEFACTS:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
        if all((folder / name).is_file() for name in ("plan.json", "results.json", "README.md")):
            run = Run.from_directory(source.folder)
            command = f"{run.command}\n{shlex.join(['depthcut', 'export', 'OUT', '--to', form, '-o', output.name])}"
            renew_model_card(folder / "README.md", replace(run, command=command))
    return exporter.note


def _exporter(form: str, tensor_type: str | None) -> Export:
    form, exporter = EXPORTS.parse(form)
    if tensor_type is None:
        return exporter
    if "tensor_type" not in {field.name for field in dataclasses.fields(exporter)}:  # type: ignore[arg-type]
        raise InputError(f"the form {form} takes no tensor type; leave --tensor-type out, or choose --to gguf")
    return replace(exporter, tensor_type=tensor_type.lower())  # type: ignore[type-var]


def _origin(source: ModelSource, removed: Sequence[Unit]) -> dict[str, object]:
    """Where a written model came from, for its configuration."""
    return {
        "version": software()["depthcut"],
        "base_model": source.provenance.model_dump(mode="json"),
        "removed": [str(unit) for unit in removed],
    }


def _carry_out(
    session: Session,
    plan: Plan,
    scores: ScoreTable | None,
    folder: Path | None,
    command: str,
    rivals: Mapping[str, tuple[Unit, ...]],
    ranks: Ranks = ALONE,
) -> Result:
    """Surgery, measurement, and the written directory.

    Args:
        rivals: removed units by name, measured beside the pruned model.
        ranks: the processes that train together; all else is done by the first.
    """
    stream, evaluation, source = session.stream, session.evaluation, session.source
    assert stream is not None and evaluation is not None
    cut = apply(stream.model, source.architecture, plan.removed)
    pruned, repairs = repair(session, plan, cut, folder, ranks)
    if not ranks.is_first:
        return Result(plan, scores, (), repairs, pruned, session.tokenizer)
    beside = {"not repaired": cut} if any(record.kept for record in repairs) else {}
    beside |= {method: apply(stream.model, source.architecture, removed) for method, removed in rivals.items()}
    others = {name: DecoderStream(model, source.architecture) for name, model in ({"pruned": pruned} | beside).items()}
    # What pages its weights would be timed by its disk.
    speed = session.recipe.speed and stream.pager is None
    measurements = compare(stream, others, evaluation, speed=speed)
    if plan.cost.seconds:
        taken = Measurement(name="search_seconds", value=plan.cost.seconds, unit="s", model=SEARCH)
        measurements = [*measurements, taken]
    result = Result(plan, scores, tuple(_about(source, measurements)), repairs, pruned, session.tokenizer)
    if folder is None:
        return _ask(session, result, None)
    pruned.config.depthcut = _origin(source, plan.removed)
    write_directory(pruned, session.tokenizer, folder)
    probe_ids = evaluation.input_ids[:1, :PROBE_TOKENS]
    verify_directory(folder, pruned, probe_ids)
    if problem := misread(pruned.config):
        print(f"llama.cpp would not compute what this model does, since {problem}", file=sys.stderr)
    result = _ask(session, result, folder)
    result = replace(result, not_written=_write_forms(session, pruned, folder, probe_ids))
    result = replace(result, measurements=(*result.measurements, *_bytes_on_disk(source, folder)))
    _write_artefacts(session, result, folder, command)
    return result


def _ask(session: Session, result: Result, folder: Path | None) -> Result:
    """The result with the tasks and texts that both models were asked for.

    Args:
        folder: where the pruned model is written, by whose files a task's results are known again.
    """
    questions, source, stream = session.questions, session.source, session.stream
    assert stream is not None
    if questions.suite is None and not questions.generation:
        return result
    written = None if folder is None else resolve(str(folder), dtype=source.provenance.dtype)
    dense = questions.ask("dense", stream.model, session.tokenizer, model_digest(source))
    digest = None if written is None else model_digest(written)
    pruned = questions.ask("pruned", result.model, session.tokenizer, digest)
    measurements = _about(source, questions.compare(dense, pruned, stream.model))
    return replace(
        result, measurements=(*result.measurements, *measurements), generation=questions.samples(dense, pruned)
    )


def _write_forms(
    session: Session, model: PreTrainedModel, folder: Path, input_ids: torch.Tensor
) -> tuple[tuple[str, str], ...]:
    """Writes and verifies the further forms, each in a folder of its name.

    Returns:
        The forms that cannot hold this very model, with the reason: what a search has found is not lost over them.
    """
    not_written = []
    for text in session.recipe.export:
        form, exporter = EXPORTS.parse(text)
        target = folder / form
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            exporter.check(model.config)
            exporter.write(model, session.tokenizer, target)
        except InputError as refusal:
            shutil.rmtree(target)
            not_written.append((form, str(refusal)))
            continue
        exporter.verify(target, model, input_ids)
    return tuple(not_written)


def repair(
    session: Session, plan: Plan, pruned: PreTrainedModel, folder: Path | None, ranks: Ranks = ALONE
) -> tuple[PreTrainedModel, tuple[Repair, ...]]:
    """The model after the recipe's repairs, one after the other, and what each of them did.

    Args:
        ranks: they train together. What is solved before a training is solved by each of them; what comes after the
            last one, by the first alone.
    """
    if not session.repairs or not plan.removed:
        return pruned, ()
    assert session.stream is not None and session.repair_text is not None
    num_samples = len(session.repair_text.input_ids)
    text, held_out = session.repair_text.split(num_samples - max(1, num_samples // JUDGING_SHARE))
    records: list[Repair] = []
    last_trained = max((i for i, (_, r) in enumerate(session.recipe.repairs) if r.num_sequences), default=-1)
    for index, (name, method) in enumerate(session.recipe.repairs):
        if index > last_trained and not ranks.is_first:
            break
        with progress(f"repairing by {name}, %", 100) as percent:
            damage = Damage(
                dense=session.stream,
                removed=frozenset(plan.removed),
                text=text,
                held_out=held_out,
                memory_budget=session.room.kept,
                solving_bytes=session.room.solving,
                batch_size=session.recipe.batch_size,
                seed=session.recipe.seed,
                folder=None if folder is None else folder / CHECKPOINTS / str(len(records)),
                advance=percent,
                ranks=ranks if index <= last_trained else ALONE,
            )
            pruned, record = repair_and_judge(name, method, damage, pruned)
        records.append(record)
    if folder is not None and ranks.is_first:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return pruned, tuple(records)


def _about(source: ModelSource, measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with the model they are about, so that `results.json` can be read alone."""
    return [measurement.model_copy(update={"source": str(source.provenance)}) for measurement in measurements]


def _bytes_on_disk(source: ModelSource, folder: Path) -> list[Measurement]:
    dense_files = [source.folder / source.gguf_file] if source.gguf_file else source.folder.glob("*.safetensors")
    written = str(source.written_dtype).removeprefix("torch.")
    stored = source.provenance.quantisation or written
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
            ("pruned", folder.glob("*.safetensors"), written if source.gguf_file else stored),
        )
    ]
    return _about(source, sizes)


def _write_artefacts(session: Session, result: Result, folder: Path, command: str) -> None:
    result.plan.write(folder / "plan.json")
    write_measurements(list(result.measurements), folder / "results.json")
    if result.repairs:
        write_repairs(list(result.repairs), folder / "repair.json")
    if result.generation:
        write_generation(list(result.generation), folder / "generation.json")
    recipe = folder / "recipe.yaml"
    run = Run(
        plan=result.plan,
        scores=result.scores,
        measurements=result.measurements,
        command=command,
        software=software(),
        repairs=result.repairs,
        generation=result.generation,
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )
    write_report(folder / "report.html", run)
    write_model_card(
        folder / "README.md",
        run,
        base_model=session.source.base_model,
        license=session.source.license or license_of(session.source.folder),
    )


def _require_other_folder(output: Path, source: ModelSource) -> None:
    """Raises InputError where the result would replace the model that it is made from."""
    if output.resolve() == source.folder.resolve():
        raise InputError(f"the output {output} is the model itself; choose another directory")


def require_same_recipe(recipe: Recipe, folder: Path) -> None:
    """A run is resumed only under the recipe that it was begun with."""
    file = folder / "recipe.yaml"
    if file.is_file():
        if file.read_text(encoding="utf-8") != recipe.to_yaml():
            raise InputError(
                f"the unfinished run in {folder} was begun with other options (see its recipe.yaml); give the same "
                "options to resume it, or --overwrite to begin anew"
            )
        return
    # Whole or not at all: half a recipe would be another run's.
    partial = file.with_suffix(".partial")
    partial.write_text(recipe.to_yaml(), encoding="utf-8")
    partial.replace(file)
