"""The paper's codec: what travels, what the owner uses, and how it is unplugged."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from testbed.codecs import Shape, make_codec
from testbed.codecs.rotated import SUB_CHUNKS
from testbed.codecs.subspace import Subspace
from testbed.config import CodecConfig, SubspaceConfig
from testbed.errors import UsageError
from tests.codecs.started import HEADS, WIDTH, chunk, floating, layers, seen, started, subspace, unstarted

SHAPE = Shape(batch=2, tokens=8)


@torch.no_grad()
def test_training_starts_at_the_unrotated_basis():
    """ψ starts at zero, so θ = 0 and Ẑ = Z Ū Ūᵀ for the owner too."""
    codec, (key, value) = started(subspace(), turned=False), chunk()
    assert isinstance(codec, Subspace)
    encoded = codec.encode(key, value)
    assert torch.allclose(encoded.key_BTE, key @ codec.key.plain @ codec.key.plain.T, atol=1e-5)
    assert torch.allclose(encoded.value_BTE, value @ codec.value.plain @ codec.value.plain.T, atol=1e-5)


def test_own_chunk_may_stay_exact():
    """own_chunk = exact leaves the owner its K and V, and changes nothing that travels."""
    codec, projected = started(replace(subspace(), own_chunk="exact")), started(subspace())
    key, value = chunk()
    encoded = codec.encode(key, value)
    assert encoded.key_BTE is key
    assert encoded.value_BTE is value
    for ours, theirs in zip(encoded.parts, projected.encode(key, value).parts, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "angles"),
    [
        ({}, SUB_CHUNKS),
        ({"generators": 3}, 3 * SUB_CHUNKS),
        ({"theta": "literal"}, 1),
        ({"rotation": "random"}, 0),
        ({"rotation": "none"}, 0),
        ({"heads": "per-head"}, SUB_CHUNKS),
    ],
)
def test_bytes_of_angles(options, angles):
    """Four bytes for each of k numbers of K and of V, sub-chunk and sequence; none where both ends know θ."""
    payload = unstarted(subspace(**options)).payload(SHAPE)
    assert payload["kv"] == 2 * 8 * (4 + 8) * 2
    assert payload.get("theta", 0) == 2 * 2 * angles * 4


def test_random_rotations_turn_and_are_not_learned():
    """Another basis in every sub-chunk, the same for every sequence, and no parameter."""
    codec = started(subspace(rotation="random"))
    assert not list(codec.parameters())
    key, value = (z[:, :1].expand(-1, 8, -1) for z in chunk(1))
    c_key = codec.encode(key, value).parts[0]
    assert len({tuple(row.tolist()) for row in c_key[0, :, 0]}) == SUB_CHUNKS
    again = codec.encode(torch.cat((key, key)), torch.cat((value, value))).parts[0]
    assert torch.equal(again[0], again[1])


@pytest.mark.parametrize("turned", [False, True])
@torch.no_grad()
def test_unplugged_by_folding_the_function_is_that_of_no_angle(turned):
    """K and V as all see them stay what they were at θ = 0; negative control: with angles they do not."""
    codec = started(floating(subspace()), dtype=torch.float64, turned=turned)
    key, value = (layer.double() for layer in layers(bias=True))
    x = torch.randn(2, 8, key.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    before = seen(codec, key(x), value(x))
    codec.unplug(key, value)
    assert codec.payload(SHAPE) == {"kv": 2 * 8 * (4 + 8) * 8}  # in fp64; no angles any more
    after = seen(codec, key(x), value(x))
    same = all(torch.allclose(a, b, atol=1e-12) for a, b in zip(before, after, strict=True))
    assert same is not turned
    for exact, projected in zip((key(x), value(x)), after, strict=True):
        assert torch.allclose(exact, projected, atol=1e-12)  # the weights now lie in the subspace
    assert codec.token_wise


@torch.no_grad()
def test_unplugged_literally_it_is_exact():
    """ψ and Ū are gone: K and V as they are, at full width, and the payload says so."""
    codec = started(subspace(unplug="literal"))
    key, value = layers()
    weights = key.weight.clone()
    codec.unplug(key, value)
    assert torch.equal(key.weight, weights)
    assert codec.payload(SHAPE) == make_codec(CodecConfig(), WIDTH, layer=0, seed=0).payload(SHAPE)
    k, v = (z.bfloat16().float() for z in chunk())
    assert codec.encode(k, v).key_BTE is k
    for ours, theirs in zip(seen(codec, k, v), (k, v), strict=True):
        assert torch.equal(ours, theirs)
    assert codec.encode_flops(8) == codec.decode_flops(8) == 0


@pytest.mark.parametrize("mode", ["fold", "literal"])
def test_a_checkpoint_knows_that_it_is_unplugged(mode):
    """A codec that loads the state of an unplugged one is unplugged."""
    codec, again = (started(subspace(unplug=mode)) for _ in range(2))
    codec.unplug(*layers())
    assert again.payload(SHAPE) != codec.payload(SHAPE)
    again.load_state_dict(codec.state_dict())
    assert again.payload(SHAPE) == codec.payload(SHAPE)
    assert again.unplugged


def test_the_basis_is_watched():
    """Its hash stays while ψ is trained and changes with a single bit of Ū; the departure is within its bound."""
    codec, (key, value) = started(subspace()), chunk()
    assert isinstance(codec, Subspace)
    first = codec.monitor()
    encoded = codec.encode(key, value)
    (encoded.key_BTE.sum() + encoded.value_BTE.square().sum()).backward()
    torch.optim.AdamW(codec.parameters(), lr=0.1).step()
    codec.after_update()
    codec.encode(key, value)
    watched = codec.monitor()
    assert watched["basis_sha256"] == first["basis_sha256"]
    for which in ("key", "value"):
        largest = max(*(abs(float(watched[f"{which}_theta_{end}"])) for end in ("least", "most")))
        assert 0 < largest <= 0.5
        assert float(watched[f"{which}_departure"]) <= largest**4 / 4 + 1e-5
    codec.key.bases[0, 0, 0] += 1e-6
    assert codec.monitor()["basis_sha256"] != first["basis_sha256"]


def sum_of_squares(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def test_a_trained_basis_is_trained_at_receivers_too():
    """Their losses reach it through `decoder_parameters`; after the update it is orthonormal again."""
    codec, (key, value) = started(subspace(rotation="none", basis="trained")), chunk()
    decoder = tuple(tensor.detach().clone().requires_grad_() for tensor in codec.decoder_parameters())
    parts = tuple(part.detach() for part in codec.encode(key, value).parts)
    sum_of_squares(codec.decode(parts, decoder)).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in decoder)
    sum_of_squares(codec.decode(codec.encode(key, value).parts, codec.decoder_parameters())).backward()
    torch.optim.AdamW(codec.parameters(), lr=0.1).step()
    assert float(codec.monitor()["key_departure"]) > 1e-3
    codec.after_update()
    assert float(codec.monitor()["key_departure"]) < 1e-5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"generators": 0}, "between 1 and 8"),
        ({"generators": 9}, "between 1 and 8"),
        ({"unplug_at": 1.5}, "between 0 and 1"),
        ({"basis": "trained"}, "rotation = 'none'"),
        ({"basis": "trained", "rotation": "none", "heads": "per-head"}, "joint"),
        ({"rotation": "none", "generators": 2}, "no θ"),
        ({"rotation": "none", "theta": "literal"}, "no θ"),
        ({"rotation": "random", "theta": "literal"}, "looks at no token"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(wrong, says):
    """Combinations without a meaning."""
    with pytest.raises(UsageError, match=says) as refusal:
        SubspaceConfig(**wrong)
    assert "\n" not in str(refusal.value)


def test_per_head_needs_heads_that_share_the_rank():
    """Ranks that do not divide, or a number of heads that nobody gave."""
    with pytest.raises(UsageError, match="share"):
        unstarted(replace(subspace(heads="per-head"), ranks=(3, 8)))
    with pytest.raises(UsageError, match="number of K/V heads"):
        make_codec(subspace(heads="per-head"), WIDTH, layer=0, seed=0)
    make_codec(subspace(heads="per-head"), WIDTH, layer=0, seed=0, kv_heads=HEADS)


def test_chunks_divide_into_sub_chunks():
    """Ten tokens have no four equal parts; without angles none are needed."""
    with pytest.raises(UsageError, match="multiple of 4"):
        unstarted(subspace()).wires(Shape(batch=1, tokens=10))
    unstarted(subspace(rotation="none")).wires(Shape(batch=1, tokens=10))
