"""A written model in another format or precision: the work of `depthcut export`."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from depthcut.export import EXPORTS, Export, check_form
from depthcut.model.load import resolve
from depthcut.process.workspace import check_output, workspace
from depthcut.registry import split_settings
from depthcut.report import Run, renew_model_card
from depthcut.run.session import PROBE_TOKENS
from depthcut.run.write import LAYER_MAP, RECIPE, origin, require_other_folder
from depthcut.types import InputError

ARTEFACTS = (
    "plan.json",
    "scores.json",
    "repair.json",
    "results.json",
    "generation.json",
    LAYER_MAP,
    RECIPE,
    "report.html",
    "README.md",
)


def export_model(
    directory: str,
    form: str,
    output: Path,
    *,
    dtype: str = "auto",
    tensor_type: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a model directory in another format or precision and verifies it; its plan and card come along.

    Args:
        tensor_type: how a format that quantises stores matrices.

    Returns:
        What a user of the result should know, empty where nothing.

    Raises:
        InputError: the format is unknown, or the directory holds no model that can be written.
        VerificationError: what was written is not the model; no output appears.
    """
    exporter = _exporter(form, tensor_type)
    check_output(output, overwrite=overwrite, resume=False)
    source = resolve(directory, dtype=dtype, save_dtype=dtype)
    require_other_folder(output, source)
    check_form(split_settings(form)[0], exporter, source.config)
    tokenizer = source.load_tokenizer()
    model = source.load_model()
    if source.gguf_file:
        model.config.depthcut = origin(source, ())
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
        raise InputError(f"the format {form} takes no tensor type; leave --tensor-type out, or choose --to gguf")
    return replace(exporter, tensor_type=tensor_type.lower())  # type: ignore[type-var]
