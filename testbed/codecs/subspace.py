"""Mixtures of subspaces (Ramasinghe et al., arXiv 2606.16384, section 4).

For Z in {K, V}: the layer is constrained to W = B U Uᵀ, so what everyone uses is Ẑ = Z U Uᵀ with Z = X B,
and what travels is Z U (r numbers per token) and θ. The basis is U(θ) = R(θ) Ū with Ū frozen and

    R(θ) = exp(Σ θ_l A_l) ≈ I + θ A + ½ θ² A²      (one generator; `testbed.codecs.rotated` for more),

the A_l fixed random skew-symmetric matrices of spectral norm 1 that every node draws from the same seed.

Where the paper leaves it open, this is what is built; each is a field of `SubspaceConfig` or `CodecConfig`:
- θ = 0.5 tanh(ψ(mean of Z) / 0.5) with a learned linear ψ that starts at zero; one θ for each of 4 sub-chunks
  of a node's chunk, taken from the *previous* sub-chunk (the first gets θ = 0), so that nothing sees its future.
  `theta = "literal"` is the paper's own mean, of the whole chunk: with a projected own chunk it leaks.
- Ū are the leading directions of the warm-started K (V) weights on the output side, jointly over all heads.
- The own chunk is projected too (`own_chunk = "projected"`), as the constraint on W says.

Unplugged by `fold`, W becomes Ū Ūᵀ W and θ stays 0: the function is that of θ = 0 and the bytes stay small.
Unplugged literally, ψ and Ū are dropped: K and V travel at full width from then on, and the payload says so.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from testbed.codecs.base import Codec, Encoded, Scale, Shape, Wire
from testbed.codecs.rotated import SUB_CHUNKS, Rotated
from testbed.codecs.wire import wire_format
from testbed.config import CodecConfig
from testbed.errors import UsageError

__all__ = ["SUB_CHUNKS", "Rotated", "Subspace"]


def _settle_loaded(codec: nn.Module, _: object) -> None:
    """After a checkpoint: a copy of a codec settles itself, not what it was copied from."""
    assert isinstance(codec, Subspace)
    codec._settle()


class Subspace(Codec):
    """Sends r_K + r_V numbers per token, and 2 · k angles per sequence and sub-chunk where they are learned."""

    options = frozenset({"ranks", "subspace"})
    own_chunks = ("projected", "exact")

    @classmethod
    def ranks_for(cls, scale: Scale) -> tuple[int, ...] | None:
        return scale.subspace_ranks

    def __init__(self, config: CodecConfig, kv_width: int, **place: Any) -> None:
        super().__init__(config, kv_width, **place)
        ranks, heads = self.ranks(kv_width, kv_width), self._heads(config)
        self.key, self.value = (
            Rotated(kv_width, rank, config.subspace, heads=heads, seed=self.own_seed(which))
            for which, rank in enumerate(ranks)
        )
        self.register_buffer("plug", torch.ones(1))  # 0 once unplugged; a buffer, so that checkpoints have it
        self.register_load_state_dict_post_hook(_settle_loaded)
        self.unplugged = False
        self._settle()

    def start(self, key: nn.Linear, value: nn.Linear, kv_NF: Tensor) -> None:  # noqa: ARG002
        self.key.start(key.weight)
        self.value.start(value.weight)

    def wires(self, shape: Shape) -> tuple[Wire, ...]:
        if self._dropped:
            full = self.wire(shape.batch, shape.tokens, self.kv_width)
            return full, full
        if shape.tokens % self.sub_chunks:
            raise UsageError(f"subspace needs chunks of a multiple of {self.sub_chunks} tokens, not {shape.tokens}")
        turned = (self.sub_chunks,) if self._turned else ()
        size = (shape.batch, *turned, shape.tokens // self.sub_chunks)
        numbers = (self.wire(*size, self.key.rank), self.wire(*size, self.value.rank))
        if not self._sends_angles:
            return numbers
        angles = Wire(
            shape=(shape.batch, self.sub_chunks, self.config.subspace.generators),
            format=wire_format("fp64" if self.config.wire == "fp64" else "fp32", 1),
            channel="theta",
        )
        return (*numbers, angles, angles)

    def encode(self, key_BTE: Tensor, value_BTE: Tensor) -> Encoded:
        if self._dropped:
            return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=(key_BTE, value_BTE))
        coefficients, thetas = [], []
        for basis, z_BTE in ((self.key, key_BTE), (self.value, value_BTE)):
            z = z_BTE.unflatten(1, (self.sub_chunks, -1)) if self._turned else z_BTE
            if self._sends_angles:
                thetas.append(basis.angles(z))
            coefficients.append(z @ self._basis(basis, thetas[-1] if thetas else None, basis.plain))
        parts = (*coefficients, *thetas)
        if self.own_chunk == "projected":
            key_BTE, value_BTE = self.decode(parts, self.decoder_parameters())
        return Encoded(key_BTE=key_BTE, value_BTE=value_BTE, parts=parts)

    def decode(self, parts: tuple[Tensor, ...], decoder: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if self._dropped:
            return parts[0], parts[1]
        coefficients, thetas = parts[:2], parts[2:] or (None, None)
        plains = decoder or (self.key.plain, self.value.plain)
        key, value = (
            numbers @ self._basis(basis, theta, plain).transpose(-1, -2)
            for basis, numbers, theta, plain in zip((self.key, self.value), coefficients, thetas, plains, strict=True)
        )
        return (key.flatten(1, 2), value.flatten(1, 2)) if self._turned else (key, value)

    def decoder_parameters(self) -> tuple[Tensor, ...]:
        trained = self.config.subspace.basis == "trained"
        return (self.key.trained, self.value.trained) if trained else ()

    def after_update(self) -> None:
        self.key.retract()
        self.value.retract()

    @torch.no_grad()
    def unplug(self, key: nn.Linear, value: nn.Linear) -> None:
        if self.config.subspace.unplug == "fold":
            for basis, layer in ((self.key, key), (self.value, value)):
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        tensor.copy_(basis.plain @ (basis.plain.T @ tensor))
        self.plug.zero_()
        self._settle()

    def monitor(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {}
        sha = hashlib.sha256()
        for name, basis in (("key", self.key), ("value", self.value)):
            found |= {f"{name}_{figure}": value for figure, value in basis.figures().items()}
            sha.update(basis.plain.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return {**found, "basis_sha256": sha.hexdigest()}

    def encode_flops(self, tokens: int) -> float:
        if self._dropped:
            return 0.0
        turned = self.sub_chunks if self._turned else 0
        return sum(
            2.0 * tokens * self.kv_width * basis.rank + turned * basis.flops(self.kv_width)
            for basis in (self.key, self.value)
        )

    def decode_flops(self, tokens: int) -> float:
        return self.encode_flops(tokens)

    def _heads(self, config: CodecConfig) -> int:
        """How many bases stand side by side."""
        if config.subspace.heads == "joint":
            return 1
        if self.kv_heads is None:
            raise UsageError("heads = 'per-head' needs the number of K/V heads, which was not given to the codec")
        if any(rank % self.kv_heads for rank in config.ranks):
            raise UsageError(f"heads = 'per-head' shares ranks evenly: {config.ranks} over {self.kv_heads} K/V heads")
        return self.kv_heads

    def _settle(self) -> None:
        """What follows from whether the codec is unplugged."""
        options = self.config.subspace
        self.unplugged = not self.plug.is_meta and not self.plug.item()
        self._dropped = self.unplugged and options.unplug == "literal"
        self._turned = not self.unplugged and options.rotation != "none"
        self._sends_angles = self._turned and options.rotation != "random"
        self.token_wise = not self._turned
        self.sub_chunks = SUB_CHUNKS if self._turned and options.theta == "causal" else 1

    def _basis(self, basis: Rotated, theta_BSK: Tensor | None, plain: Tensor) -> Tensor:
        """U of each sub-chunk (B, S, E, R), or the one of all (E, R)."""
        if not self._turned:
            return plain
        return basis.basis(basis.drawn[None] if theta_BSK is None else theta_BSK)
