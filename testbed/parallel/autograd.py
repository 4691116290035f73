"""Types for functions with a backward pass of their own: what `apply` takes and returns, and what their context holds.

PyTorch gives `torch.autograd.Function.apply` no types, and its context takes any attribute.
"""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Context", "operation"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Context(FunctionCtx):
    """What `forward` leaves for `backward`. A function's own context names its attributes."""

    saved_tensors: tuple[Tensor, ...]
    """What `save_for_backward` was given."""


def operation(
    kind: type[torch.autograd.Function],
    forward: Callable[Concatenate[Any, Arguments], Result],  # noqa: ARG001
) -> Callable[Arguments, Result]:
    """`kind.apply`, which takes what `kind.forward` takes behind the context and returns what it returns."""
    apply: Callable[..., Any] = kind.apply
    return apply
