"""AdamW beside PyTorch's own."""

import torch

from testbed.trainer.optimizer import AdamW


def test_it_is_the_optimiser_of_pytorch_to_the_last_bit():
    """Weights, both moments and the count of steps, parameters without a gradient left alone."""
    found = []
    for own in (True, False):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((7, 5), (3,), (2,))]
        said = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
        optimizer = AdamW(weights, **said) if own else torch.optim.AdamW(weights, **said, fused=True)
        for _ in range(5):
            for weight in weights[:2]:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()
        found.append([*weights, *(value for state in optimizer.state.values() for value in state.values())])
    assert len(found[0]) == len(found[1]) == 3 + 2 * 3
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
