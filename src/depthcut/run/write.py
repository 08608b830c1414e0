"""The last stages of a run: the model written and verified, further formats, and the pages about it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from depthcut.evaluation.compare import software
from depthcut.export import EXPORTS, check_form
from depthcut.export.hf import verify_directory, write_directory
from depthcut.export.llama_cpp import misread
from depthcut.model.checkpoint import read_config
from depthcut.model.lineage import layer_map
from depthcut.model.load import ModelSource
from depthcut.model.quantisation import kind_of
from depthcut.model.stored import stored_model
from depthcut.report import Run, license_of, write_model_card, write_report
from depthcut.results import Measurement, write_list
from depthcut.run.measure import about
from depthcut.run.recipe import Recipe
from depthcut.run.result import Result
from depthcut.run.session import PROBE_TOKENS, Loaded
from depthcut.types import InputError, Plan, Unit

RECIPE = "recipe.yaml"
LAYER_MAP = "layer_map.json"
"""By block of the pruned model, the dense block that each of its sublayers was."""


def require_other_folder(output: Path, source: ModelSource) -> None:
    """Raises InputError where the result would replace the model that it is made from."""
    if output.resolve() == source.folder.resolve():
        raise InputError(f"the output {output} is the model itself; choose another directory")


def require_same_recipe(recipe: Recipe, folder: Path) -> None:
    """A run is resumed only under the recipe that it was begun with."""
    file = folder / RECIPE
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


def write_model(loaded: Loaded, plan: Plan, pruned: PreTrainedModel, folder: Path) -> None:
    """Writes the pruned model, and reads it in a fresh process.

    Raises:
        VerificationError: what was written is not the model in memory.
    """
    pruned.config.depthcut = origin(loaded.source, plan.removed)
    write_directory(pruned, loaded.tokenizer, folder)
    source = loaded.source
    if source.is_dequantised and source.as_stored and stored_model(pruned, source.architecture) is None:
        print(
            f"written dequantised in {source.provenance.dtype}: blocks that lack sublayers are read by a type of their "
            f"own, which puts no experts together that are stored one by one as {source.provenance.quantisation}",
            file=sys.stderr,
        )
    verify_directory(folder, pruned, loaded.evaluation.input_ids[:1, :PROBE_TOKENS])
    if problem := misread(pruned.config):
        print(f"llama.cpp would not compute what this model does, since {problem}", file=sys.stderr)


def origin(source: ModelSource, removed: Sequence[Unit]) -> dict[str, object]:
    """Where a written model came from, for its configuration."""
    return {
        "version": software()["depthcut"],
        "base_model": source.provenance.model_dump(mode="json"),
        "removed": [str(unit) for unit in removed],
    }


def write_forms(
    loaded: Loaded, model: PreTrainedModel, folder: Path, input_ids: torch.Tensor
) -> tuple[tuple[str, str], ...]:
    """Writes and verifies the further formats, each in a folder of its name.

    Returns:
        The formats that cannot hold this very model, with the reason: what a search has found is not lost over them.
    """
    not_written = []
    for text in loaded.recipe.export:
        form, exporter = EXPORTS.parse(text)
        target = folder / form
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            check_form(form, exporter, model.config)
            exporter.write(model, loaded.tokenizer, target)
        except InputError as refusal:
            shutil.rmtree(target)
            not_written.append((form, str(refusal)))
            continue
        exporter.verify(target, model, input_ids)
    return tuple(not_written)


def bytes_on_disk(source: ModelSource, folder: Path) -> tuple[Measurement, ...]:
    """What both models take in files."""
    dense_files = [source.folder / source.gguf_file] if source.gguf_file else source.folder.glob("*.safetensors")
    written = str(source.written_dtype).removeprefix("torch.")
    stored = source.provenance.quantisation or written
    of_written = kind_of(read_config(folder).get("quantization_config") or {})
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
            ("pruned", folder.glob("*.safetensors"), of_written or written),
        )
    ]
    return about(source, sizes)


def left_out(source: ModelSource) -> tuple[Measurement, ...]:
    """Layers of the source's files that the written model is without, though no search removed them."""
    layers = source.prediction_layers
    if layers is None:
        return ()
    counts = {"dense": layers.count, "pruned": 0}
    rows = [Measurement(name="prediction_layers", value=n, unit="layers", model=model) for model, n in counts.items()]
    return about(source, rows)


def write_artefacts(loaded: Loaded, result: Result, folder: Path, command: str) -> None:
    """The plan, the results, the report and the model card."""
    result.plan.write(folder / "plan.json")
    write_list(result.measurements, folder / "results.json")
    kept = layer_map(result.plan, loaded.source.architecture)
    lines = ",\n".join(f"  {json.dumps(block)}" for block in kept)
    (folder / LAYER_MAP).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    if result.repairs:
        write_list(result.repairs, folder / "repair.json")
    if result.generation:
        write_list(result.generation, folder / "generation.json")
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
        base_model=loaded.source.base_model,
        license=loaded.source.license or license_of(loaded.source.folder),
    )
