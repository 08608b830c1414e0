"""Examines a type of model that has no row: finds the row, or says why there is none.

What a type's blocks do is decided by the class, not by the weights, so the examination needs none: it builds two
random blocks of the configuration, runs a few tokens through them, and looks at what every module of a block was given
and gave. A block fits when it is branches on one stream, block output = input + what its mixer adds + what its
feed-forward part adds, each up to a constant factor, with norms before and after them; when with its branches taken
out it passes the stream on bit for bit; and when it does the same wherever it stands. Feed-forward parts whose pieces
stand in the block by themselves are not found: such a family needs a row written by hand.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from depthcut.model.architectures import FAMILIES, REFUSED, family_type, find_architecture
from depthcut.model.branches import Architecture, Branch
from depthcut.model.layer_config import check_layer_config, cut_config
from depthcut.model.packing import PackedBlock
from depthcut.model.proof import prove
from depthcut.model.stream import DecoderStream
from depthcut.model.watch import Call, first, watch
from depthcut.model.whole_blocks import UnfitError, block_list, find_whole
from depthcut.model.wrappers import decoder_config, num_blocks
from depthcut.types import InputError, UnitKind

NUM_TOKENS = 7
VOCABULARY = 32
TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that rounding explains."""

FAILURES = (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot be built, or run without a branch."""


@dataclass(frozen=True)
class _Call:
    """What one module of a block was given and gave.

    Attributes:
        given: the first tensor.
        others: further positional arguments.
        returned: the first tensor.
        num_outputs: values returned.
    """

    name: str
    module: nn.Module
    given: torch.Tensor
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    returned: torch.Tensor
    num_outputs: int


def know(config: PreTrainedConfig) -> str | None:
    """Makes a configuration's type known where it is not, so that `find_architecture` finds its row.

    Costs building and running two random blocks, in float32, where the type is new to this process.

    Returns:
        The row that was found, as it would stand in `FAMILIES`; None where there was one.

    Raises:
        InputError: the type does not fit, is refused, or is none of transformers'.
    """
    model_type = family_type(config)
    known = model_type in FAMILIES or {model_type, config.model_type} & REFUSED.keys()
    if known or model_type not in CONFIG_MAPPING:
        find_architecture(config)
        return None
    found = examine(decoder_config(config))
    FAMILIES[model_type] = found
    return row(model_type, found)


def row(model_type: str, architecture: Architecture) -> str:
    """A row of `FAMILIES` as Python source."""
    branches = ", ".join(f'"{kind}": {_source(branch)}' for kind, branch in architecture.branches.items())
    settings = "".join(
        f", {field.name}={getattr(architecture, field.name)!r}"
        for field in dataclasses.fields(architecture)
        if field.name != "branches" and getattr(architecture, field.name) not in (field.default, {})
    )
    return f'"{model_type}": Architecture({{{branches}}}{settings}),'


def _source(branch: Branch) -> str:
    plain = Branch(branch.core)
    values = {field.name: getattr(branch, field.name) for field in dataclasses.fields(branch)}
    given = [f"{name}={value!r}" for name, value in values.items() if value != getattr(plain, name)]
    return f"Branch({', '.join([repr(branch.core), *given])})"


@torch.no_grad()
def examine(config: PreTrainedConfig) -> Architecture:
    """The row for a type, found by running two random blocks of it.

    Raises:
        InputError: its blocks are no residual branches on one stream; with the reason.
    """
    model_type = family_type(config)
    reasons = []
    for find in (_find, lambda model: find_whole(model, num_blocks(model.config))):
        try:
            small = _small(config, [0, 1])
            model = _random_model(small)
            found = find(model)
            _prove(model, found, small)
        except UnfitError as unfit:
            reasons.append(str(unfit))
        except InputError as refusal:
            reasons.append(str(refusal).removesuffix("; give another model"))
        except FAILURES as failure:
            reasons.append(f"it failed ({type(failure).__name__}: {(str(failure).splitlines() or [''])[0]})")
        else:
            return found
    raise InputError(
        f"models of type {model_type!r} cannot be pruned: they have no row, and on examination {reasons[-1]}; give "
        "another model, or add a row (docs/adding-a-family.md)"
    )


def _small(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """A configuration of some blocks of another, with few tokens."""
    small = copy.deepcopy(config)
    count = num_blocks(small) if hasattr(small, "num_hidden_layers") else 0
    if count < 2:
        raise UnfitError("its configuration has no num_hidden_layers of at least 2")
    packed = [PackedBlock({"attn": layer, "ffn": layer}) for layer in layers]
    check_layer_config(small, packed)
    cut_config(small, packed, count)
    small.vocab_size = VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, name, 0)
    return small


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights that hide nothing: norms and factors that are not one, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stored = model.state_dict()
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored and buffer.is_floating_point()]
    for parameter in (*model.parameters(), *buffers):
        scale = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def _find(model: PreTrainedModel) -> Architecture:
    """The row that the second block's calls say."""
    path, blocks = block_list(model, num_blocks(model.config))
    if dict(blocks[0].named_children()).keys() != dict(blocks[1].named_children()).keys():
        raise UnfitError("its blocks are of different kinds")
    input_ids = torch.arange(NUM_TOKENS)[None] % VOCABULARY
    with _calls({"": blocks[1], **dict(blocks[1].named_children())}) as calls:
        model(input_ids=input_ids, use_cache=False)
    block = calls.pop()
    cores = [call for call in calls if any(weight.dim() > 1 for weight in call.module.parameters())]
    # What gives back what it was given (dropout) is none.
    norms = [call for call in calls if call not in cores and not _agree(call.returned, call.given)]
    if len(cores) not in (1, 2):
        raise UnfitError(
            f"its blocks call {len(cores)} modules with matrices ({', '.join(c.name for c in cores)}), not 2"
        )
    mixes = [_mixes_tokens(call) for call in cores]
    if mixes != [True, False][: len(cores)]:
        raise UnfitError(f"its blocks do not mix tokens first and then work on each by itself ({cores[0].name} first)")
    sources = [_before(call, norms) for call in cores]
    added = [_after(call, norms, source) for call, (source, _) in zip(cores, sources, strict=True)]
    _same(sources[0][0], block.given, f"its {cores[0].name} does not read the stream")
    parallel = len(cores) == 2 and _agree(sources[1][0], block.given)
    stream = block.given
    if len(cores) == 2 and not parallel:
        _plus(stream, added[0][0], sources[1][0], f"its {cores[1].name} reads more than stream + {cores[0].name}")
        stream = sources[1][0]
    last = added[0][0] + added[1][0] if parallel else added[-1][0]
    _plus(stream, last, block.returned, "it gives more than its input and what its branches add")
    shared: set[str] = set()
    if parallel or len(cores) == 1:
        # A norm that is all of its block's may be asked for its dtype, so it stays too.
        shared.update(sources[0][1])
        shared.intersection_update(*(norms_before for _, norms_before in sources))
    kinds: list[UnitKind] = ["attn", "ffn"] if len(cores) == 2 else ["mixer"]
    branches = {
        kind: _branch(call, before, after, shared)
        for kind, call, (_, before), (_, after) in zip(kinds, cores, sources, added, strict=True)
    }
    return Architecture(branches, blocks=path, parallel=parallel, block_outputs=block.num_outputs)


def _branch(call: _Call, before: tuple[str, ...], after: tuple[str, ...], shared: set[str]) -> Branch:
    return Branch(
        call.name,
        projection=_projection(call),
        norms_before=tuple(name for name in before if name not in shared),
        norms_after=after,
        shared_norms=tuple(name for name in before if name in shared),
        num_outputs=call.num_outputs,
        adds_residual=_adds_residual(call),
    )


def _mixes_tokens(call: _Call) -> bool:
    """Whether what a module gives for the last token changes with the first one."""
    changed = call.given.clone()
    changed[:, 0] += 1
    returned = first(call.module(changed, *call.others, **call.keywords))
    return not _agree(returned[:, -1], call.returned[:, -1])


def _before(call: _Call, norms: list[_Call]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What is read before the norms that lead to a module, and these norms in order."""
    names: tuple[str, ...] = ()
    reached = call.given
    while norm := next((norm for norm in norms if norm.name not in names and _agree(norm.returned, reached)), None):
        reached, names = norm.given, (norm.name, *names)
    return reached, names


def _after(call: _Call, norms: list[_Call], source: torch.Tensor) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What a branch adds, after the norms that follow its module, and these norms in order."""
    if _adds_residual(call):
        return call.returned - source, ()
    names: tuple[str, ...] = ()
    reached = call.returned
    while norm := next((norm for norm in norms if norm.name not in names and _agree(norm.given, reached)), None):
        reached, names = norm.returned, (*names, norm.name)
    return reached, names


def _adds_residual(call: _Call) -> bool:
    """Whether a module is given the stream beside what it reads. Then it is what the module adds to."""
    first = call.others[0] if call.others else None
    return isinstance(first, torch.Tensor) and first.shape == call.returned.shape


def _projection(call: _Call) -> str:
    """Path of the linear map whose output the module returns; empty where there is none."""
    linear: dict[str, nn.Module] = {
        name: module for name, module in call.module.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    with _calls(linear) as calls:
        returned = first(call.module(call.given, *call.others, **call.keywords))
    written = returned - call.others[0] if _adds_residual(call) else returned
    for inner in reversed(calls):
        if inner.returned.numel() == written.numel() and _agree(inner.returned.view_as(written), written):
            return ".".join(part for part in (call.name, inner.name) if part)
    return ""


def _prove(model: PreTrainedModel, found: Architecture, config: PreTrainedConfig) -> None:
    """That blocks are branches bit for bit, and that one of them does the same elsewhere."""
    input_ids = torch.arange(NUM_TOKENS)[None] % VOCABULARY
    stream = DecoderStream(model, found)
    prove(stream, input_ids)
    alone = DecoderStream(_random_model(_small(config, [1])), found)
    alone.blocks[0].load_state_dict(stream.blocks[1].state_dict())
    batch, other = (engine.prepare(input_ids) for engine in (stream, alone))
    # What the model hands to a block is the block's own matter where it is its share of a table.
    given = batch if found.whole else other
    outputs = [
        engine.block(len(engine.blocks) - 1, batch.embedded, of.calls[-1])
        for engine, of in ((stream, batch), (alone, given))
    ]
    _same(outputs[0], outputs[1], "its blocks compute with their index or their number")


def _plus(stream: torch.Tensor, added: torch.Tensor, found: torch.Tensor, problem: str) -> None:
    """Raises UnfitError unless found = stream + a constant times what was added."""
    change = found - stream
    factor = (change * added).sum() / added.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    _same(change, factor * added, problem)


def _same(one: torch.Tensor, other: torch.Tensor, problem: str) -> None:
    if not _agree(one, other):
        raise UnfitError(problem)


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if one.shape != other.shape:
        return False
    return float((one - other).abs().max()) <= TOLERANCE * float(other.abs().max())


@contextmanager
def _calls(modules: dict[str, nn.Module]) -> Iterator[list[_Call]]:
    """Collects the calls of modules that are given and give a tensor, in the order in which they end."""
    names = {module: name for name, module in modules.items()}
    found: list[_Call] = []

    def keep(call: Call) -> None:
        if isinstance(call.given, torch.Tensor) and isinstance(call.returned, torch.Tensor):
            given, returned = call.given.clone(), call.returned.clone()
            count = len(call.output) if isinstance(call.output, tuple) else 1
            found.append(_Call(names[call.module], call.module, given, call.others, call.keywords, returned, count))

    with watch(modules.values(), keep):
        yield found
