"""What modules are given and give back while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        given: the first argument, or the hidden states where they are passed by name.
        others: further positional arguments.
        keywords: keyword arguments but for `given`.
        output: all that was returned; None before the module has run.
    """

    module: nn.Module
    given: Any
    others: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any = None

    @property
    def returned(self) -> torch.Tensor:
        """The hidden states among the output."""
        return first(self.output)


def first(output: Any) -> torch.Tensor:
    """The hidden states among what a block or branch returns."""
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


@contextmanager
def watch(modules: Iterable[nn.Module], see: Callable[[Call], None], *, before: bool = False) -> Iterator[None]:
    """Inside the context, `see` is called after, or before, each call of the modules."""

    def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any = None) -> None:
        keywords = dict(keywords)
        given = args[0] if args else keywords.pop("hidden_states", None)
        see(Call(module, given, args[1:], keywords, output))

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        if before
        else module.register_forward_hook(hook, with_kwargs=True)
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
