"""One typed tree for a run. TOML comes in, JSON goes out; nothing here imports torch.

A `Preset` says what is trained (model, data, optimiser, steps); a `CodecConfig` what travels instead of
K and V; an `Arm` which exchange, codec and synchronisation a trainer uses and on which link. Targets,
that is the nodes that are emulated, live in `testbed.targets`.
"""

from testbed.config.arm import STANDARD_ARMS, Arm, WeightSync
from testbed.config.codec import CodecConfig, SubspaceConfig
from testbed.config.data import Data
from testbed.config.model import Model
from testbed.config.preset import Preset
from testbed.config.tree import EXPERIMENTS, SCHEMA_VERSION, STRICT, at_least, load_toml, names_in, parse, to_json

__all__ = [
    "EXPERIMENTS",
    "SCHEMA_VERSION",
    "STANDARD_ARMS",
    "STRICT",
    "Arm",
    "CodecConfig",
    "Data",
    "Model",
    "Preset",
    "SubspaceConfig",
    "WeightSync",
    "at_least",
    "load_toml",
    "names_in",
    "parse",
    "to_json",
]
