"""Finds a model and loads it: a hub id, a local directory, a `.gguf` file, or the alias of a packaged model.

`resolve` needs no weights: it finds the files, reads the configuration and refuses what depthcut cannot work on.
`load` then reads the weights. Remote code stays off unless asked for; only safetensors and GGUF are read.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from depthcut.gguf.blocks import check_blocks
from depthcut.gguf.container import read_file
from depthcut.model.adapter import adapter_files, check_adapter, merge_adapter
from depthcut.model.architectures import find_architecture
from depthcut.model.branches import Architecture
from depthcut.model.checkpoint import (
    check_directory,
    check_model,
    decoder_entries,
    read_config,
    require_shapes,
    weights_in,
)
from depthcut.model.dequantise import dequantise
from depthcut.model.device import chosen_device
from depthcut.model.files import PACKAGED_MODELS, check_gguf, file_digest, gguf_type, named_path, packaged_file
from depthcut.model.folders import download, identifying_files, stored_dtype_of
from depthcut.model.headers import stored_tensors
from depthcut.model.heads import settle_head
from depthcut.model.islands import remember_islands
from depthcut.model.layer_config import without_prediction_layers
from depthcut.model.paging import Pager, take_weights
from depthcut.model.precision import computing_dtype, write_in
from depthcut.model.prediction import PredictionLayers, find_prediction_layers
from depthcut.model.probe import know
from depthcut.model.quantisation import DEQUANTISED, quantisation, quantisation_entries, quiet, require_reader, settle
from depthcut.model.reading import reading, reading_entries
from depthcut.model.stored import reading_config, remember
from depthcut.model.sublayers import register
from depthcut.model.units import empty_model, shapes_of, sizes_from_config
from depthcut.model.wrappers import auto_class, decoder_config, num_blocks
from depthcut.types import InputError, Provenance

OF_GGUF = {"F32": "float32", "F16": "float16"}
"""What a model from a GGUF file of some types is written in; of all others bfloat16."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found and can be worked on, before its weights are read.

    Attributes:
        folder: directory with the files; of a hub model, at first only the small ones.
        gguf_file: file name in the folder, for a GGUF.
        has_weights: whether there are any, here or on the hub.
        as_stored: whether kept tensors are written as the files store them, where that is quantised; else dequantised.
        stored_dtype: what the configuration says that weights are stored in.
        adapter: folder of an adapter that is merged on loading.
    """

    provenance: Provenance
    folder: Path
    gguf_file: str | None
    config: PreTrainedConfig
    architecture: Architecture
    trust_remote_code: bool
    base_model: str | None = None
    license: str | None = None
    has_weights: bool = True
    as_stored: bool = True
    stored_dtype: str = "float32"
    adapter: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.provenance.dtype)  # type: ignore[no-any-return]

    @property
    def written_dtype(self) -> torch.dtype:
        """What the pruned model is written in."""
        return getattr(torch, self.provenance.written_dtype or self.provenance.dtype)  # type: ignore[no-any-return]

    def on(self, device: str, room_bytes: float) -> ModelSource:
        """The same, computed in what suits the device best; see `computing_dtype`.

        Args:
            room_bytes: that weights may take.
        """
        parameters = sizes_from_config(self.config, self.architecture, self.dtype).parameters
        dtype = computing_dtype(self.dtype, chosen_device(device), parameters, room_bytes)
        if dtype == self.dtype or self.provenance.quantisation is not None:
            return self
        names = {"dtype": dtype, "written_dtype": self.written_dtype}
        changed = {field: str(chosen).removeprefix("torch.") for field, chosen in names.items()}
        return replace(self, provenance=self.provenance.model_copy(update=changed))

    def written_as_computed(self) -> ModelSource:
        """The same, written in what it is computed in: of a paged model, whose weights stay in their files."""
        return replace(self, provenance=self.provenance.model_copy(update={"written_dtype": None}))

    @property
    def is_dequantised(self) -> bool:
        """Whether a directory's quantised weights are computed with dequantised."""
        return not self.gguf_file and self.provenance.quantisation in DEQUANTISED

    @property
    def stays_quantised(self) -> bool:
        """Whether a directory's quantised weights are computed with as they are."""
        return not self.gguf_file and self.provenance.quantisation not in (None, *DEQUANTISED)

    @property
    def weight_bytes(self) -> int:
        """What all weights take in memory; of those that stay quantised, what their files take."""
        if self.stays_quantised:
            return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        return sizes_from_config(self.config, self.architecture, self.dtype).parameters * self.dtype.itemsize

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return arguments | ({"gguf_file": self.gguf_file} if self.gguf_file else {})

    @property
    def _origin(self) -> Path:
        """Where it was read from; beside a GGUF file lies what may be another model's."""
        return self.folder / self.gguf_file if self.gguf_file else self.folder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        with reading(self.provenance.source, "tokenizer"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder, **self._arguments())
            # Some settings are looked at only in use.
            tokenizer("a")
        tokenizer.name_or_path = str(self._origin)
        return tokenizer

    def load_model(self, device: str = "auto", pager: Pager | None = None) -> PreTrainedModel:
        """Reads the weights; the model is in eval mode and can be saved (a dequantised one too).

        Args:
            device: a torch device, or `auto`: the first GPU where there is one.
            pager: what brings weights into memory as layers run; the device is then the CPU.

        Raises:
            InputError: the weights cannot be read, or are stored in a way that cannot be paged.
        """
        device = chosen_device(device)
        arguments = self._arguments()
        if self.provenance.format == "hub":
            download(self.provenance.source, self.provenance.revision, ["*.safetensors"])
        stored = self.provenance.quantisation if self.stays_quantised else None
        if self.is_dequantised:
            arguments["config"] = reading_config(self.config, self.folder)
        if pager is not None:
            return self._load_paged(pager, arguments, stored)
        if self.gguf_file:
            arguments["quantization_config"] = GgufConfig(dequantize=True)
        else:
            arguments["use_safetensors"] = True
        if stored is not None:
            quiet()
            # Quantised weights are put where they stay: not every kind can be moved afterwards.
            arguments["device_map"] = {"": device}
        with reading(self.provenance.source, "weights"):
            model, found = auto_class(self.config).from_pretrained(
                self.folder, dtype=self.dtype, output_loading_info=True, **arguments
            )
        self._require_all(found)
        if self.adapter is not None:
            model = merge_adapter(model, self.adapter)
        self._follow_row_and_head(model)
        if self.gguf_file:
            model.name_or_path = model.config.name_or_path = str(self._origin)
            # A dequantised model still carries its quantisation and would refuse to be saved.
            model.config.__dict__.pop("quantization_config", None)
            model.hf_quantizer = None
            model.is_quantized = False
        settle(model)
        if stored is None:
            # Some devices make a tensor of each name while moving: tied weights become one again.
            model.to(device).tie_weights()
            self._settle_written(model)
        self._leave_out_prediction_layers(model)
        loaded: PreTrainedModel = model.eval()
        return loaded

    def _load_paged(self, pager: Pager, arguments: dict[str, Any], stored: str | None) -> PreTrainedModel:
        if stored is not None:
            raise InputError(
                f"{self.provenance.source} does not fit into the memory budget, and {stored} weights cannot be read "
                "block by block; give a larger --memory-budget"
            )
        if self.adapter is not None:
            raise InputError(
                f"{self.provenance.source} does not fit into the memory budget, and an adapter is merged in memory; "
                "give a larger --memory-budget"
            )
        folder = self.folder
        with reading(self.provenance.source, "weights"):
            if self.gguf_file:
                folder = pager.scratch / "dequantised"
                folder.mkdir()
                dequantise(self.folder / self.gguf_file, self.config, self.dtype, folder, self.written_dtype)
                arguments.pop("gguf_file")
            model, found = auto_class(self.config).from_pretrained(
                folder,
                dtype=self.dtype,
                output_loading_info=True,
                use_safetensors=True,
                device_map={"": "disk"},
                offload_folder=str(pager.scratch),
                **arguments,
            )
            take_weights(model, pager, self.dtype, list(self.architecture.block_list(model)))
        model.name_or_path = model.config.name_or_path = str(self._origin)
        self._require_all(found)
        self._follow_row_and_head(model)
        self._settle_written(model)
        self._leave_out_prediction_layers(model)
        loaded: PreTrainedModel = model.eval()
        return loaded

    def _settle_written(self, model: PreTrainedModel) -> None:
        """Settles how a model will be written."""
        if self.is_dequantised:
            remember(model, self.architecture, self.folder, as_stored=self.as_stored, dtype=self.dtype)
        elif not self.gguf_file:
            remember_islands(model, self.folder, getattr(torch, self.stored_dtype))
        if not (self.is_dequantised and self.as_stored):
            write_in(model, self.written_dtype)

    def _leave_out_prediction_layers(self, model: PreTrainedModel) -> None:
        if left_out := self.prediction_layers:
            print(f"left out: {left_out}, which transformers does not load", file=sys.stderr)
        without_prediction_layers(decoder_config(model.config))

    @property
    def prediction_layers(self) -> PredictionLayers | None:
        """Layers behind the last block that files bring and that are left out; None where there are none."""
        if self.gguf_file or not (self.folder / "config.json").is_file():
            return None
        entries = decoder_entries(read_config(self.folder))
        return find_prediction_layers(entries, stored_tensors(self.folder), self.provenance.num_blocks)

    def _follow_row_and_head(self, model: PreTrainedModel) -> None:
        """Has the configuration say what its family's row asks for, and that the head is its own where it is.

        transformers 5 loads another head, transformers 4 the embedding: only what says what there is reads alike.
        """
        config = decoder_config(model.config)
        self.architecture.settle(config)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = getattr(config, "tie_word_embeddings", False) or getattr(model.config, "tie_word_embeddings", False)
        if not tied or head is None or head.weight is embedding.weight:
            return
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
        print(
            f"the weights of {self.provenance.source} hold a head of their own, though its config.json says that it is "
            "the embedding (tie_word_embeddings); the head is used, and what is written says so",
            file=sys.stderr,
        )

    def _require_all(self, found: dict[str, Any]) -> None:
        """Raises InputError where weights are missing."""
        if found["missing_keys"]:
            raise InputError(
                f"the weights of {self.provenance.source} lack {min(found['missing_keys'])}, which would be made up at "
                "random; download or write the model again"
            )


def resolve(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    save_dtype: str = "auto",
    trust_remote_code: bool = False,
    needs_weights: bool = True,
    adapter: str | None = None,
) -> ModelSource:
    """Finds a model by hub id, directory, `.gguf` file or alias; reads its configuration, not its weights.

    Args:
        name: what the user wrote.
        revision: commit, tag or branch of a hub model.
        dtype: what is computed in, a torch dtype's name, or `auto`: the stored one (float32 for a GGUF).
        save_dtype: what a pruned model is written in, likewise; `auto` is the stored one (bfloat16 for a
            quantised GGUF).
        trust_remote_code: run code that comes with the model; off unless asked for.
        needs_weights: whether a directory that holds a configuration alone is refused.
        adapter: folder of a peft adapter of the model, which is merged into it on loading.

    Returns:
        The model before its weights are read; of a hub model only small files have been downloaded.

    Raises:
        InputError: there is no such model, it is damaged, or its family is not supported.
    """
    for given in (dtype, save_dtype):
        if given not in ("auto", "float32", "bfloat16", "float16"):
            raise InputError(f"dtype {given!r} is unknown; use auto, float32, bfloat16 or float16")
    packaged = PACKAGED_MODELS.get(name)
    kind: Literal["hub", "directory", "gguf"]
    path = packaged_file(name, packaged) if packaged else named_path(name)
    if path.is_dir():
        kind, folder, gguf_file = "directory", path, None
    elif path.suffix == ".gguf":
        kind, folder, gguf_file = "gguf", path.parent, path.name
        check_gguf(path)
        check_blocks(read_file(path))
    else:
        patterns = ["*.json", "*.model", "*.txt", "*.jinja", "README.md"] + (["*.py"] if trust_remote_code else [])
        kind, folder, gguf_file = "hub", download(name, revision, patterns), None
        revision = folder.name
    if kind == "directory":
        check_model(name)
    elif kind == "hub" and (folder / "config.json").is_file():
        check_directory(folder)
    has_weights = kind != "directory" or weights_in(folder)
    if needs_weights and not has_weights:
        raise InputError(f"{folder} holds no safetensors weights; convert other formats first (pickles are not read)")

    if revision and kind != "hub":
        raise InputError(f"{name} is no model of the hub and has no revision {revision!r}; leave the revision out")
    register()
    arguments: dict[str, Any] = {"local_files_only": True, **({"gguf_file": gguf_file} if gguf_file else {})}
    read: Any = partial(AutoConfig.from_pretrained, trust_remote_code=trust_remote_code, **arguments)
    with reading(name, "configuration") if gguf_file else reading_entries(folder, read):
        config = read(folder)
    settle_head(config, folder, () if gguf_file else stored_tensors(folder))
    if found := know(config):
        print(f"models of type {config.model_type!r} have no row; examined, and found: {found}", file=sys.stderr)
    architecture = find_architecture(config)
    architecture.settle(decoder_config(config))
    stored = "float32" if gguf_file else stored_dtype_of(folder, config)
    stored_as = gguf_type(gguf_file) if gguf_file else quantisation(config)
    if not gguf_file:
        with reading_entries(folder, lambda changed: shapes_of(read(changed))):
            made = shapes_of(config)
        if stored_as is None:
            require_shapes(folder, stored_tensors(folder), made)
    merged = named_path(adapter) if adapter else None
    if merged is not None:
        check_adapter(merged, name, stored_as, empty_model(config, torch.float32))
    if stored_as is not None and not gguf_file:
        require_reader(stored_as, f"the model {name}, stored as {stored_as},", quantisation_entries(config))
    computed = stored if dtype == "auto" else dtype
    # What was computed in 16 bits has no more to write.
    own = OF_GGUF.get(stored_as or "", "bfloat16") if gguf_file else stored
    written = own if computed == "float32" else computed
    written = written if save_dtype == "auto" else save_dtype
    provenance = Provenance(
        source=name,
        format=kind,
        revision=revision if kind == "hub" else None,
        digest=file_digest(
            [*identifying_files(folder, kind, gguf_file), *(adapter_files(merged) if merged else ())],
            revision if kind == "hub" else None,
        ),
        model_type=config.model_type,
        num_blocks=num_blocks(config),
        dtype=computed,
        written_dtype=None if written == computed else written,
        quantisation=stored_as,
        adapter=adapter,
    )
    source = ModelSource(
        provenance,
        folder,
        gguf_file,
        config,
        architecture,
        trust_remote_code,
        has_weights=has_weights,
        as_stored=save_dtype == "auto",
        stored_dtype=stored,
        adapter=merged,
    )
    if packaged:
        return replace(source, base_model=packaged.base_model, license=packaged.license)
    return replace(source, base_model=name if kind == "hub" else None)
