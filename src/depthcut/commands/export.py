"""`depthcut export`: a model in another format or precision."""

from __future__ import annotations

from typing import Annotated

import typer

from depthcut.commands.options import Given, Output, Overwrite, PushToHub, takes
from depthcut.commands.upload import require_token, upload


@takes("dtype")
def export(
    options: Given,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A model directory, or any model.")],
    output_dir: Output,
    to: Annotated[str, typer.Option(help="Format: hf, gguf, nemotron-nas, zeroed, ... (see depthcut ls).")] = "hf",
    tensor_type: Annotated[
        str | None,
        typer.Option(help="For gguf: f32, f16, bf16, q8_0, or a type of your llama-quantize; by default the model's."),
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Write a model in another format or precision, verified in a fresh process."""
    from depthcut.run.export import export_model

    require_token(push_to_hub)
    note = export_model(directory, to, output_dir, dtype=options["dtype"], tensor_type=tensor_type, overwrite=overwrite)
    print("\n".join(filter(None, [f"written to {output_dir}", note])))
    upload(output_dir, push_to_hub)
