"""PyTorch's AdamW, in processes that compile none of it.

At its first update an optimiser of PyTorch 2.13 imports torch._dynamo, 800 modules, only to keep its compiler away from
the update: a second of each rank's start, as long as importing PyTorch itself.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

__all__ = ["AdamW"]

_KEPT_OUT = "__dynamo_disable"
"""Where PyTorch keeps what it has made of a function to keep its compiler away; with the function itself there, nothing
is made."""

_METHODS = (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict)
for _function in map(inspect.unwrap, (*_METHODS, adam)):
    setattr(_function, _KEPT_OUT, _function)


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, to the last bit: one kernel for all parameters of a device. Not to be compiled."""

    def __init__(self, parameters: list[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
