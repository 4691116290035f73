"""Codecs with a starting state, every kind of them, and what they are tested with."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from testbed.codecs import Codec, Shape, make_codec, whole
from testbed.codecs.rotated import Rotated
from testbed.config import CodecConfig, SubspaceConfig

WIDTH, MODEL_WIDTH, HEADS = 16, 24, 4


def subspace(**options) -> CodecConfig:
    return CodecConfig(name="subspace", ranks=(4, 8), subspace=SubspaceConfig(**options))


CODECS = {
    "exact": CodecConfig(),
    "int8": CodecConfig(name="int8", group=8),
    "int4 hadamard": CodecConfig(name="int4", group=8, hadamard=True, wire_backward="int8"),
    "topk": CodecConfig(name="topk", fraction=0.2),
    "latent": CodecConfig(name="latent+int4", ranks=(6,)),
    "latent projected": CodecConfig(name="latent", ranks=(8,), own_chunk="projected", wire_backward="fp32"),
    "best": CodecConfig(name="best"),
    "pca": CodecConfig(name="pca", ranks=(5,)),
    "recent": CodecConfig(name="recent", fraction=0.3),
    "random": CodecConfig(name="random+int8", ranks=(6,)),
    "random projected": CodecConfig(name="random", ranks=(6,), own_chunk="projected"),
    "subspace": subspace(),
    "subspace int8": CodecConfig(name="subspace+int8", ranks=(4, 8)),
    "subspace own exact": replace(subspace(), own_chunk="exact"),
    "subspace three generators": subspace(generators=3),
    "subspace exact exponential": subspace(rotation="exact", generators=2),
    "subspace literal": subspace(theta="literal"),
    "subspace frobenius": subspace(normalisation="frobenius"),
    "subspace per head": subspace(heads="per-head"),
    "subspace fixed": subspace(rotation="none"),
    "subspace random rotation": subspace(rotation="random"),
    "subspace random start": subspace(start="random"),
    "subspace trained": subspace(rotation="none", basis="trained"),
}


def layers(bias: bool = False, width: int = WIDTH, model_width: int = MODEL_WIDTH) -> tuple[nn.Linear, nn.Linear]:
    """K's and V's weights, the same each time."""
    generator = torch.Generator().manual_seed(2)
    made = nn.Linear(model_width, width, bias=bias), nn.Linear(model_width, width, bias=bias)
    for layer in made:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=generator)
    return made


def unstarted(config: CodecConfig, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> Codec:
    return make_codec(config, width, layer=1, seed=3, kv_heads=HEADS).to(dtype)


def started(config: CodecConfig, width: int = WIDTH, dtype: torch.dtype = torch.float32, turned: bool = True) -> Codec:
    """As a run starts it; `turned`: with angles that matter, as after some training."""
    codec = unstarted(config, width, dtype)
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(300, 2 * width, generator=generator, dtype=torch.float64)
    key, value = layers(width=width)
    codec.start(key.to(dtype), value.to(dtype), activations.to(dtype))
    for module in codec.modules():
        if turned and isinstance(module, Rotated) and hasattr(module, "angle"):
            nn.init.normal_(module.angle.weight, generator=generator)
    return codec


def floating(config: CodecConfig) -> CodecConfig:
    """The same with numbers that the wire does not round: for tests of arithmetic in double precision."""
    plain = replace(config)
    object.__setattr__(plain, "wire", "fp64")
    object.__setattr__(plain, "wire_backward", None)
    return plain


def chunk(batch: int = 2, tokens: int = 8, width: int = WIDTH, seed: int = 1, **kind) -> tuple[Tensor, Tensor]:
    """K and V of a chunk."""
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, batch, tokens, width, generator=generator, **kind)
    return key, value


def seen(codec: Codec, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """K and V as other nodes see them, the wire's rounding included."""
    shape = Shape(batch=key.shape[0], tokens=key.shape[1])
    with torch.no_grad():
        parts = codec.unpack(codec.pack(codec.encode(key, value).parts, shape), shape, key)
        return codec.decode(whole(parts), codec.decoder_parameters())
