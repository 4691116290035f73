"""`best`: the composition that did best for its bytes when codecs were compared: latent+int4, own chunk exact.

r = d_kv / 4 at four bits in groups of 32 is 9/64 · d_kv bytes per token beside the 4 · d_kv of exact K and V in
bf16: 3.5 %.

Evidence (recall mix, d = 128, 2 layers, 4 nodes, 250 + 250 steps, seeds 0 / 1; validation loss against exact, and
accuracy of recall from another node's chunk, chance 0.125; 18 of 512 bytes unless another number stands there):

    exact                                         512       0                  .999 / .998
    no exchange                                     0    +12.1 / +11.9 %       .138 / .149
    subspace, ranks 3 and 6, own chunk projected         +23   / +25   %       .59  / .57
    subspace, ranks 10 and 18, int4, own chunk exact      +1.6         %       .95
    activation PCA, rank 32, int4, not trained            +0.56        %       .987
    best                                                  +0.23 / +0.37 %      .996 / .996

One or two seeds of one small task: differences below half a per cent are noise. What it rests on: an own chunk
that is projected costs more than all else; bits are better traded for rank; a start at the activations' principal
directions is worth nearly all that training then adds.
"""

from testbed.codecs.latent import Latent
from testbed.errors import UsageError

__all__ = ["Best"]


class Best(Latent):
    """Sends d_kv / 4 four-bit integers per token, and a scale for each group of them."""

    options = frozenset()
    own_chunks = ("exact",)

    def ranks(self, *limits: int) -> tuple[int, ...]:  # noqa: ARG002
        if self.kv_width < 4:
            raise UsageError(f"best has rank d_kv / 4, and K is only {self.kv_width} wide: name latent+int4 and a rank")
        return (self.kv_width // 4,)
