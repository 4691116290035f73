"""What every codec promises: bytes in closed form, an exact way back, a state that can be saved, no look ahead."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.codecs import Shape, codec_names, whole
from testbed.codecs.pca import PCA
from tests.codecs.started import CODECS, WIDTH, chunk, floating, started, subspace, unstarted

LOOKS_AHEAD = ("subspace literal",)
STATELESS = ("exact", "int8", "int4 hadamard", "topk", "recent")
DIRECTIONS = ("forward", "backward")


def test_every_name_is_tested():
    """No codec of ours is missing from the list that these tests go through."""
    assert {config.kind for config in CODECS.values()} == set(codec_names())


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 3), quarter=st.integers(1, 9), group=st.sampled_from([2, 8, 32]))
def test_packed_bytes_are_the_closed_form(name, batch, quarter, group):
    """Both ways: `payload` says what `pack` makes, and `unpack` gives back parts of the promised shapes."""
    config = CODECS[name]
    if not config.hadamard:
        config = replace(config, group=group)
    codec, shape = started(config), Shape(batch=batch, tokens=4 * quarter)
    parts = codec.encode(*chunk(batch, 4 * quarter)).parts
    for direction in DIRECTIONS:
        given_ = [part.detach() if w.returned else None for part, w in zip(parts, codec.wires(shape), strict=True)]
        message = codec.pack(tuple(given_) if direction == "backward" else parts, shape, direction)
        assert message.dtype == torch.uint8
        assert message.numel() == sum(codec.payload(shape, direction).values())
        back = codec.unpack(message, shape, parts[0], direction)
        for wire, part, again in zip(codec.wires(shape), parts, back, strict=True):
            assert wire.shape == tuple(part.shape)
            assert (again is None) == (direction == "backward" and not wire.returned)
            if again is not None and not part.is_floating_point():
                assert torch.equal(again, part)


@pytest.mark.parametrize("name", CODECS)
def test_the_way_back_is_the_adjoint(name):
    """⟨C x, y⟩ = ⟨x, Cᵀ y⟩ at fixed indices, basis and angles: C as others see x, Cᵀ as gradients come back."""
    config = floating(CODECS[name])
    codec = started(config, dtype=torch.float64, turned=False)
    key, value = (z.requires_grad_() for z in chunk(dtype=torch.float64))
    y_key, y_value = chunk(seed=9, dtype=torch.float64)
    shape = Shape(batch=2, tokens=8)
    encoded = codec.encode(key, value)

    message = codec.pack(tuple(part.detach() for part in encoded.parts), shape)
    wires = codec.wires(shape)
    received = whole(codec.unpack(message, shape, key))
    for wire, part in zip(wires, received, strict=True):
        part.requires_grad_(wire.returned)
    k_seen, v_seen = codec.decode(received, codec.decoder_parameters())
    y_key, y_value = y_key[:, : k_seen.shape[1]], y_value[:, : v_seen.shape[1]]
    returned = [part for wire, part in zip(wires, received, strict=True) if wire.returned]
    gradients = iter(torch.autograd.grad([k_seen, v_seen], returned, [y_key, y_value]))
    outgoing = tuple(next(gradients) if wire.returned else None for wire in wires)
    arrived = codec.unpack(codec.pack(outgoing, shape, "backward"), shape, key, "backward")
    live = [(part, d) for part, d in zip(encoded.parts, arrived, strict=True) if d is not None]
    d_key, d_value = torch.autograd.grad([part for part, _ in live], [key, value], [d for _, d in live])

    there = (k_seen * y_key).sum() + (v_seen * y_value).sum()
    back = (key * d_key).sum() + (value * d_value).sum()
    assert there.item() == pytest.approx(back.item(), rel=1e-12)
    assert abs(there.item()) > 1e-3


def test_the_adjoint_test_notices_a_wrong_way_back():
    """Negative control: with angles that follow the tokens the map is not linear, and the equality fails."""
    codec = started(floating(subspace(theta="literal")), dtype=torch.float64)
    key, value = (z.requires_grad_() for z in chunk(dtype=torch.float64))
    y_key, y_value = chunk(seed=9, dtype=torch.float64)
    k_seen, v_seen = codec.decode(codec.encode(key, value).parts, ())
    there = (k_seen * y_key).sum() + (v_seen * y_value).sum()
    d_key, d_value = torch.autograd.grad(there, [key, value])
    assert there.item() != pytest.approx(((key * d_key).sum() + (value * d_value).sum()).item(), rel=1e-6)


def function_of(codec, batch=1, tokens=4):
    """Everything that a codec's user sees, as a function of K, V and the parameters; and where it is evaluated."""
    parameters = dict(codec.named_parameters())
    inputs = [z.requires_grad_() for z in chunk(batch, tokens, codec.kv_width, dtype=torch.float64)]

    def function(key, value, *given):
        def run(k, v):
            encoded = codec.encode(k, v)
            return (encoded.key_BTE, encoded.value_BTE, *codec.decode(encoded.parts, codec.decoder_parameters()))

        swapped = dict(zip(parameters, given, strict=True))
        return torch.func.functional_call(
            _Called(codec, run), {f"codec.{n}": p for n, p in swapped.items()}, (key, value)
        )

    return function, (*inputs, *(p.detach().clone().requires_grad_() for p in parameters.values()))


class _Called(torch.nn.Module):
    def __init__(self, codec, run) -> None:
        super().__init__()
        self.codec, self.run = codec, run

    def forward(self, key, value):
        return self.run(key, value)


@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].kind != "pca"])
def test_gradients_are_those_of_finite_differences(name):
    """encode and decode in double precision, to K, V and every parameter of the codec."""
    function, inputs = function_of(started(floating(CODECS[name]), width=8, dtype=torch.float64))
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("fixed", [True, False])
def test_chunk_pca_has_a_gradient_only_at_a_fixed_basis(fixed, monkeypatch):
    """The basis is a choice: with it held the gradients are exact; negative control: without, they are not."""
    codec = started(floating(CODECS["pca"]), width=8, dtype=torch.float64)
    assert isinstance(codec, PCA)
    if fixed:
        basis = codec.basis(torch.cat(chunk(1, 4, 8, dtype=torch.float64), -1))
        monkeypatch.setattr(codec, "basis", lambda _: basis)
    function, inputs = function_of(codec)
    assert torch.autograd.gradcheck(function, inputs, raise_exception=False) is fixed


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_state_encodes_the_same_bits(name):
    """state_dict is the whole state; negative control: a codec without it encodes something else."""
    codec, again = started(CODECS[name]), unstarted(CODECS[name])
    shape, (key, value) = Shape(batch=2, tokens=8), chunk()

    def message(one):
        return one.pack(one.encode(key, value).parts, shape)

    if name not in STATELESS:
        assert not torch.equal(message(codec), message(again))
    again.load_state_dict(codec.state_dict())
    assert torch.equal(message(codec), message(again))
    for ours, theirs in zip(codec.encode(key, value).parts, again.encode(key, value).parts, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def moved(codec, position: int, tokens: int = 16) -> tuple[int, list[torch.Tensor]]:
    """(first token of the own K or V, whether each entry of each part) that a change at `position` moves."""
    key, value = chunk(1, tokens)
    before = codec.encode(key, value)
    key, value = key.clone(), value.clone()
    key[:, position] += 1
    value[:, position] -= 1
    after = codec.encode(key, value)
    own = (before.key_BTE != after.key_BTE) | (before.value_BTE != after.value_BTE)
    return int(own[0].any(-1).nonzero()[0]), [a != b for a, b in zip(before.parts, after.parts, strict=True)]


@pytest.mark.parametrize("position", [3, 4, 9, 15])
@pytest.mark.parametrize("name", [name for name in CODECS if name not in LOOKS_AHEAD])
def test_the_own_chunk_does_not_see_its_future(name, position):
    """To the last bit: what the owner uses for earlier tokens is the same whatever comes later."""
    assert moved(started(CODECS[name]), position)[0] == position


def test_literal_angles_see_the_future():
    """Negative control: θ of the chunk itself turns the basis of its first token."""
    assert moved(started(CODECS["subspace literal"]), 15)[0] == 0


@pytest.mark.parametrize("name", [name for name in CODECS if started(CODECS[name]).token_wise])
def test_token_wise_means_that_tokens_may_be_left_out(name):
    """Encoding some tokens gives their part of encoding all; so does decoding."""
    codec, (key, value) = started(CODECS[name]), chunk(1, 16)
    chosen = torch.tensor([1, 4, 5, 11])
    some, all_ = codec.encode(key[:, chosen], value[:, chosen]), codec.encode(key, value)
    for part, full in zip(some.parts, all_.parts, strict=True):
        assert torch.allclose(part.flatten(0, -2), full.flatten(0, -2)[chosen], atol=1e-6)
    few = codec.decode(some.parts, codec.decoder_parameters())
    many = codec.decode(all_.parts, codec.decoder_parameters())
    for part, full in zip(few, many, strict=True):
        assert torch.allclose(part, full[:, chosen], atol=1e-6)


def test_which_codecs_are_token_wise():
    """Those whose parts of a token need no other token; angles, a chunk's basis and the newest tokens do."""
    by_kind = {name: started(config).token_wise for name, config in CODECS.items()}
    apart = {"pca", "recent", *(name for name in CODECS if name.startswith("subspace"))}
    apart -= {"subspace fixed", "subspace trained"}
    assert {name for name, alone in by_kind.items() if not alone} == apart


@pytest.mark.parametrize("name", ["subspace", "subspace three generators", "subspace exact exponential"])
def test_angles_come_from_the_sub_chunk_before(name):
    """A change in one of four sub-chunks moves no part of the ones before, and the angle of the next alone."""
    _, parts = moved(started(CODECS[name]), position=6)  # sub-chunk 1 of 4
    for part in parts[:2]:
        assert part[0].flatten(1).any(-1).tolist() == [False, True, True, False]
    for part in parts[2:]:
        assert part[0].any(-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", CODECS)
def test_all_tokens_come_back_but_those_not_kept(name):
    """decode gives K and V of `kept`, ascending, or of the whole chunk."""
    codec, (key, value) = started(CODECS[name]), chunk()
    kept = codec.kept(Shape(batch=2, tokens=8))
    k_seen, v_seen = codec.decode(codec.encode(key, value).parts, codec.decoder_parameters())
    count = 8 if kept is None else len(kept)
    assert k_seen.shape == v_seen.shape == (2, count, WIDTH)
    assert codec.encode_flops(64) >= 0 <= codec.decode_flops(64)
