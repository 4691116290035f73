"""The decoder beside Hugging Face transformers' Llama on the same weights, built here, without a download."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from testbed.config import Model
from testbed.model import Decoder
from testbed.parallel.exchanges import Local

MODEL = Model(vocabulary=97, width=64, layers=3, heads=8, kv_heads=8, ffn=112)
NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name[0] if name != 'output' else 'o'}_proj" for name in ("query", "key", "value", "output")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def llama(decoder: Decoder) -> torch.nn.Module:
    """Theirs, with our weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    model = decoder.config
    config = transformers.LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tied,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    missing, unexpected = theirs.load_state_dict(
        {theirs_name(name): value for name, value in decoder.state_dict().items()}, strict=False
    )
    assert not missing
    assert not unexpected
    return theirs


def theirs_name(name: str) -> str:
    """What they call a parameter of ours."""
    *layer, kind, _ = name.split(".")
    return ".".join([*(["model", *layer] if layer else []), NAMES[kind], "weight"])


def tokens() -> Tensor:
    """Two sequences and their labels."""
    return torch.randint(MODEL.vocabulary, (2, 49), generator=torch.Generator().manual_seed(2))


def both(model: Model) -> tuple[Decoder, torch.nn.Module, float, float]:
    """(ours, theirs, difference of logits, the worst parameter's of gradients over its largest) on the same weights."""
    ours = Decoder(model, seed=4)
    theirs = llama(ours)
    inputs, labels = tokens()[:, :-1], tokens()[:, 1:]
    logits = ours(inputs, Local(model))
    reference = theirs(inputs, use_cache=False).logits
    for one in (logits, reference):
        F.cross_entropy(one.flatten(0, 1), labels.flatten()).backward()
    expected = dict(theirs.named_parameters())
    worst = 0.0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        gradient = expected[theirs_name(name)].grad
        assert gradient is not None
        worst = max(worst, float((parameter.grad - gradient).abs().max() / gradient.abs().max()))
    return ours, theirs, float((logits - reference).detach().abs().max()), worst


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_it_is_llama(kv_heads, tied):
    """Logits within 1e-5, every parameter's gradient within 1e-5 of its largest."""
    ours, theirs, logits, gradients = both(replace(MODEL, kv_heads=kv_heads, tied=tied))
    assert logits <= 1e-5
    assert gradients <= 1e-5
    assert sum(p.numel() for p in theirs.parameters()) == ours.config.parameters


@pytest.mark.parametrize("changed", [{"rope_base": 500_000.0}, {"norm_eps": 1e-2}])
def test_another_llama_is_noticed(changed):
    """Negative control: ours with another constant of the rotation or of the norms is far off."""
    theirs = llama(Decoder(MODEL, seed=4))
    ours = Decoder(replace(MODEL, **changed), seed=4)
    inputs = tokens()[:, :-1]
    with torch.no_grad():
        assert (ours(inputs, Local(ours.config)) - theirs(inputs, use_cache=False).logits).abs().max() > 1e-3
