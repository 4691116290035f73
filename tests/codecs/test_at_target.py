"""What a codec sends at a target is what its class says, whatever it is called."""

import pytest

from testbed.config import Arm, CodecConfig, Preset, load_toml
from testbed.config.arms import arm_named
from testbed.errors import UsageError
from testbed.pace import plan_for
from testbed.targets import Target
from tests.codecs.plugged import install

PAPER = load_toml(Target, "targets", "paper-800m")
QUICK = load_toml(Preset, "presets", "quick")
CODE = """
from testbed.codecs.base import Codec
from testbed.codecs.random_projection import RandomProjection

class Mine(RandomProjection):
    pass

class Share(RandomProjection):
    @classmethod
    def ranks_for(cls, scale):
        return (scale.kv_width // 4,)

class Mute(RandomProjection):
    @classmethod
    def ranks_for(cls, scale):
        return None

class Undeclared(RandomProjection):
    @classmethod
    def ranks_for(cls, scale):
        return ()

class Sixteen(RandomProjection):
    def ranks(self, *limits):
        return (16,)

class Constant(Codec):
    def wires(self, shape):
        return (self.wire(shape.batch, shape.tokens, 16),)

    def encode(self, key_BTE, value_BTE): ...

    def decode(self, parts, decoder): ...
"""


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """The codecs of CODE, installed."""
    names = {kind.lower(): kind for kind in ("Mine", "Share", "Mute", "Undeclared", "Sixteen", "Constant")}
    monkeypatch.syspath_prepend(install(tmp_path, CODE, **names))


def message(name: str, ranks: tuple[int, ...] = ()) -> int:
    """Bytes of one message at the target."""
    codec = CodecConfig(name=name, ranks=ranks, wire="int4")
    arm = Arm(name=name, exchange="all-gather", codec=codec, sync="average", link="bw")
    return plan_for(arm, QUICK, PAPER, timed_layers=8).message_bytes


def test_the_same_class_under_another_name_sends_the_same(plugged):
    """Rank 512 at four bits, for 16,384 tokens; a small model's 16 would be 163,840 bytes."""
    assert message("random") == 16384 * (512 // 2 + 512 // 32 * 2) == 4_718_592
    assert message("mine") == 4_718_592
    assert message("mine", ranks=(QUICK.latent_rank,)) == 4_718_592
    assert message("share") == 4_718_592


def test_ranks_of_an_arms_own_keep_their_ratio_to_the_presets(plugged):
    """Twice the small model's ranks are twice the target's; the preset's own are the target's exactly."""
    assert message("mine", ranks=(QUICK.latent_rank // 2,)) == 4_718_592 // 2

    def subspace(ranks):
        codec = CodecConfig(name="subspace", ranks=ranks)
        arm = Arm(name="subspace", exchange="all-gather", codec=codec, sync="average", link="bw")
        return plan_for(arm, QUICK, PAPER, timed_layers=8).message_bytes

    key, value = QUICK.subspace_ranks
    default = plan_for(arm_named("subspace"), QUICK, PAPER, timed_layers=8).message_bytes
    assert subspace((key, value)) == default
    assert subspace((2 * key, 2 * value)) - default == 16384 * (41 + 102) * 2


@pytest.mark.parametrize(("name", "ranks"), [("mute", ()), ("mute", (16,)), ("undeclared", (16,)), ("constant", ())])
def test_what_cannot_say_is_refused(plugged, name, ranks):
    """Rather than timed at the small model's size."""
    with pytest.raises(UsageError, match=r"give \w+ a ranks_for"):
        message(name, ranks)


def test_a_constant_size_is_fine_where_the_codec_says_so(plugged):
    """`sixteen` inherits an answer, and sends 16 numbers at any width."""
    assert message("sixteen") == 16384 * (8 + 2)
