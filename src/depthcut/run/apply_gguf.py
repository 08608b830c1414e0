"""A plan applied to a GGUF, GGUF out: the other way through surgery and export, without torch and transformers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from depthcut.export.gguf.copy import Copy, model_type, plan_copy, unit_kinds
from depthcut.export.gguf.layout import file_name, type_name
from depthcut.gguf.blocks import check_blocks
from depthcut.gguf.container import GgufFile, gguf_parts, read_model
from depthcut.gguf.imatrix import cut_imatrix
from depthcut.model.files import file_digest, find_gguf, gguf_type
from depthcut.process.workspace import check_output, workspace
from depthcut.results import Measurement, write_list
from depthcut.run.plan_file import read_plan
from depthcut.types import InputError, Plan, Provenance


def apply_to_gguf(
    model: str,
    plan_file: Path,
    output: Path,
    *,
    num_steps: int | None = None,
    imatrix: Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, list[Measurement]]:
    """Writes a GGUF without the units that a plan removes; kept tensors stay as they are, byte for byte.

    Args:
        model: a `.gguf` file, the first part of one, or the alias of a packaged model.
        plan_file: a plan for it, or nothing but steps.
        num_steps: steps to apply; as marked in the plan where left out.
        imatrix: an importance matrix of the model, which is cut along with it.

    Returns:
        The written file, and its sizes beside those of the source.

    Raises:
        InputError: the model is no GGUF, the plan is of another model, or llama.cpp cannot run what would remain.
        VerificationError: the written file is not what was meant; no output appears.
    """
    check_output(output, overwrite=overwrite, resume=False)
    path = find_gguf(model)
    if path is None:
        raise InputError(
            f"--to gguf prunes a .gguf file as it is, and {model} is none; apply the plan without it, then run "
            "depthcut export OUT --to gguf"
        )
    if imatrix is not None and not imatrix.is_file():
        raise InputError(f"there is no file {imatrix}")
    source = read_model(path)
    check_blocks(source)
    dense = plan_copy(source, ())
    kinds = unit_kinds(source.get("general.architecture"))
    plan = read_plan(plan_file, _provenance(model, source, dense), len(kinds))
    if num_steps is not None:
        plan = plan.applying(num_steps)
    pruned = plan_copy(source, plan.removed)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        written = folder / file_name(type_name(source.get("general.file_type")))
        pruned.write(written)
        pruned.verify(written)
        if imatrix is not None:
            origins = {name: origin.tensor.name for name, origin in pruned.kept.items()}
            cut_imatrix(imatrix, folder / imatrix.name, origins)
        measurements = [
            *_sizes("dense", dense, gguf_parts(path), plan),
            *_sizes("pruned", pruned, [written], plan),
        ]
        plan.write(folder / "plan.json")
        write_list(measurements, folder / "results.json")
    return output / written.name, measurements


def _provenance(model: str, source: GgufFile, dense: Copy) -> Provenance:
    architecture = source.get("general.architecture")
    return Provenance(
        source=model,
        format="gguf",
        digest=file_digest(gguf_parts(source.path), None),
        model_type=model_type(architecture),
        num_blocks=dense.num_blocks,
        dtype="float32",
        quantisation=gguf_type(source.path.name),
    )


def _sizes(name: str, copy: Copy, files: Sequence[Path], plan: Plan) -> list[Measurement]:
    software = f"depthcut {importlib.metadata.version('depthcut')}"
    sizes = {
        "parameters": (copy.num_parameters, "parameters"),
        "blocks": (copy.num_blocks, "blocks"),
        "bytes_on_disk": (sum(file.stat().st_size for file in files), "bytes"),
    }
    return [
        Measurement(name=what, value=value, unit=unit, model=name, source=str(plan.model), software=software)
        for what, (value, unit) in sizes.items()
    ]
