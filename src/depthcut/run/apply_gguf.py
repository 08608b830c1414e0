"""A plan applied to a GGUF, GGUF out: the other way through surgery and export, without torch and transformers."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from depthcut.export.gguf.copy import MODEL_TYPES, Copy, plan_copy
from depthcut.export.gguf.layout import file_name, type_name
from depthcut.gguf.container import GgufFile, read_file
from depthcut.model.files import file_digest, find_gguf, gguf_type
from depthcut.process.workspace import check_output, workspace
from depthcut.results import Measurement, write_measurements
from depthcut.types import InputError, Plan, Provenance


def apply_to_gguf(
    model: str, plan: Plan, output: Path, *, num_steps: int | None = None, overwrite: bool = False
) -> tuple[Path, list[Measurement]]:
    """Writes a GGUF without the units that a plan removes; kept tensors stay as they are, byte for byte.

    Args:
        model: a `.gguf` file, or the alias of a packaged model.
        num_steps: steps to apply; as marked in the plan where left out.

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
    source = read_file(path)
    dense = plan_copy(source, ())
    plan.require_made_for(_provenance(model, source, dense))
    if num_steps is not None:
        plan = plan.applying(num_steps)
    pruned = plan_copy(source, plan.removed)
    with workspace(output, overwrite=overwrite, resume=False, resumable=False) as folder:
        written = folder / file_name(type_name(source.get("general.file_type")))
        pruned.write(written)
        pruned.verify(written)
        measurements = [
            *_sizes("dense", dense, path, plan),
            *_sizes("pruned", pruned, written, plan),
        ]
        plan.write(folder / "plan.json")
        write_measurements(measurements, folder / "results.json")
    return output / written.name, measurements


def _provenance(model: str, source: GgufFile, dense: Copy) -> Provenance:
    architecture = source.get("general.architecture")
    return Provenance(
        source=model,
        format="gguf",
        digest=file_digest([source.path], None),
        model_type=MODEL_TYPES[architecture],
        num_blocks=dense.num_blocks,
        dtype="float32",
        quantisation=gguf_type(source.path.name),
    )


def _sizes(name: str, copy: Copy, path: Path, plan: Plan) -> list[Measurement]:
    software = f"depthcut {importlib.metadata.version('depthcut')}"
    sizes = {
        "parameters": (copy.num_parameters, "parameters"),
        "blocks": (copy.num_blocks, "blocks"),
        "bytes_on_disk": (path.stat().st_size, "bytes"),
    }
    return [
        Measurement(name=what, value=value, unit=unit, model=name, source=str(plan.model), software=software)
        for what, (value, unit) in sizes.items()
    ]
