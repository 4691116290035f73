"""Attention where there is no flash kernel: the same numbers, tile by tile, in fp32."""

import pytest
import torch

from testbed.parallel import attention
from testbed.parallel.attention import block_attention, block_attention_backward


def inputs(dtype=torch.float32, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 70, 8), (2, kv_heads, 70, 8), (2, kv_heads, 70, 8), (2, 4, 70, 8)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def masks():
    visible = torch.rand(2, 1, 70, 70, generator=torch.Generator().manual_seed(1)) > 0.5
    visible[0, 0, 3] = False  # a query that sees nothing
    return {"causal": True, "all": False, "some": torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)}


@pytest.mark.parametrize("name", ["causal", "all", "some"])
@pytest.mark.parametrize("tile", [16, 33, 2048])
def test_tiles_are_the_kernel(name, tile, monkeypatch):
    """Outputs, denominators and gradients, whatever the tile."""
    monkeypatch.setattr(attention, "_TILE", tile)
    q, k, v, d_out = inputs()
    mask = masks()[name]
    out, lse = block_attention(q, k, v, mask)
    tiled_out, tiled_lse = attention._tiled(q, k, v, mask)
    torch.testing.assert_close(tiled_out, out, atol=2e-6, rtol=0)
    torch.testing.assert_close(tiled_lse, lse, atol=2e-6, rtol=0)
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    for found, wanted in zip(
        attention._tiled_backward(d_out, q, k, v, out, lse, mask),
        block_attention_backward(d_out, q, k, v, out, lse, mask),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=5e-6, rtol=0)


def test_partial_results_of_half_precision_are_kept_in_full():
    """bf16 in, fp32 partials out: rounding them would grow with the number of ranks."""
    q, k, v, _ = inputs(torch.bfloat16)
    out, lse = attention._tiled(q, k, v, True)
    assert (out.dtype, lse.dtype) == (torch.float32, torch.float32)
