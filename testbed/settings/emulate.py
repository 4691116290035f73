"""What a user asks of `testbed emulate`, checked and resolved before anything is created."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from re import fullmatch
from typing import Annotated, Literal

from emulation.spec.network import Network
from emulation.spec.schedule import Schedule, load_schedule
from emulation.spec.units import format_rate, parse_duration, parse_rate
from testbed.commandline import flag
from testbed.config import STANDARD_ARMS, Arm, Preset, load_toml, names_in
from testbed.config.arm import PACED
from testbed.config.arms import arm_named, standard_arms
from testbed.data.integrity import check_data
from testbed.errors import UsageError
from testbed.rundir.directory import check_name
from testbed.settings.network_flags import Asked, BackendName, network_for
from testbed.targets import Target

__all__ = ["Request", "Settings", "check_arm", "check_nodes", "preset_of", "resolve", "settle", "target_of"]

SUB_CHUNKS = 4
"""A node's chunk must divide by it (`testbed.codecs.subspace`)."""


@dataclass(frozen=True, kw_only=True)
class Request(Asked):
    """What a user may set, as given: texts are not parsed yet. Nodes: by default 4, with accounting nic and a target
    all of the target's."""

    schedule: Annotated[str | None, flag("FILE")] = None
    """How links change and fail while arms train (--live or --pace none): a .toml, .csv, or Mahimahi .up/.down file."""
    preset: Annotated[str, flag("NAME|FILE")] = "snapshot"
    """What is trained: a name in experiments/presets, or a .toml file."""
    target: Annotated[str, flag("NAME|FILE")] = "paper-800m"
    """Whose speed and message sizes a node has: a name in experiments/targets, or a .toml file."""
    pace: Annotated[str | None, flag("none")] = None
    """none: no target; the machine's own speed and message sizes."""
    live: Annotated[str | None, flag("TIME")] = None
    """Train every arm paced for this long (10min) instead of learning, timing and composing."""
    backend: Annotated[BackendName, flag("netns|docker|host")] = "netns"
    """Network namespaces, containers (docs/docker.md), or processes on loopback (unshaped; links modelled)."""
    seed: Annotated[int, flag("N")] = 0
    """Seed of weights and data."""
    steps: Annotated[int | None, flag("N")] = None
    """Context-parallel steps; the preset's unless given."""
    arms: Annotated[str | None, flag("ARM,…")] = None
    """Only these: centralised,decentralised,subspace,latent,control, or others beside them: no-cp,ring,best,int8 …"""
    name: Annotated[str | None, flag("NAME")] = None
    """The run's folder in runs/; date, time and rate unless given."""
    budget: Annotated[str, flag("TIME")] = "100s"
    """Time for one arm's timed steps; fewer of the target's like layers are timed to keep to it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A comparison, resolved. Rates in bit/s, times in seconds."""

    folder: Path
    command: str
    network: Network
    """With the links under test; unshaped where they are not needed."""
    schedule: Schedule | None
    """How they change while arms train live."""
    backend: BackendName
    preset_name: str
    preset: Preset
    target: Target | None
    """Whom the nodes stand for; None: no pace."""
    live_seconds: float | None
    arms: tuple[Arm, ...]
    seed: int
    share: bool
    seconds_per_arm: float
    """Time budget for the timed steps of one arm; fewer of the target's like layers are timed to keep it."""
    thrifty: bool = False
    """One cell of many: as few steps as tell the time within the budget, and arms of one link share what a
    synchronisation takes."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Of arms whose folder is none of `folder`'s own."""
    image: str | None = None
    """Of the containers, if nodes are such; the usual one unless given."""
    live_steps: int | None = None
    """Train every arm paced for so many steps, instead of learning, timing and composing."""

    def folder_of(self, arm: Arm) -> Path:
        """Where everything of an arm is written."""
        return self.folders.get(arm.name, self.folder / arm.name)

    @property
    def mode(self) -> Literal["composed", "live", "unpaced"]:
        """Learn, time and compose; or train paced for a given time; or train as this machine does."""
        if self.target is None:
            return "unpaced"
        return "composed" if self.live_seconds is None and self.live_steps is None else "live"

    @property
    def nodes(self) -> int:
        return len(self.network.nodes)

    @property
    def accounting(self) -> Literal["pair", "nic"]:
        return self.network.accounting

    @property
    def rate_bps(self) -> int:
        """Of the slowest path, on which a synchronous step waits."""
        assert self.network.slowest_bps is not None
        return self.network.slowest_bps


def resolve(asked: Request, *, command: str) -> Settings:
    """Every text parsed, every combination checked; raises `UsageError` with one sentence."""
    preset, target = preset_of(asked), target_of(asked)
    network = _network(asked, target)
    label = f"emulate-{asked.network_name or format_rate(network.slowest_bps or 0)}-{network.accounting}"
    return settle(
        asked,
        preset,
        target,
        _choose_arms(asked.arms),
        folder=check_name(asked.name, label),
        command=command,
    )


def preset_of(asked: Request) -> Preset:
    """What is trained."""
    preset = load_toml(Preset, "presets", asked.preset)
    if asked.steps is None:
        return preset
    if asked.steps < 1:
        raise UsageError(f"{asked.steps} steps were asked for; at least 1 is needed")
    return replace(preset, steps=asked.steps)


def target_of(asked: Request) -> Target | None:
    """Whom the nodes stand for."""
    name = _target_name(asked.target, asked.pace, asked.live)
    return load_toml(Target, "targets", name) if name else None


def _network(asked: Request, target: Target | None) -> Network:
    if asked.bw is None and asked.network is None:
        raise UsageError("no links were asked for: give a rate, BW=300mbit, or a network, NETWORK=cable")
    network = network_for(asked, nic_nodes=target.nodes if target is not None else None)
    if not network.shaped:
        raise UsageError("no rate was given: type BW=300mbit, or NETWORK= and a network whose links have rates")
    return network


def settle(
    asked: Request, preset: Preset, target: Target | None, arms: tuple[Arm, ...], *, folder: Path, command: str
) -> Settings:
    """What was asked for, with preset, target and arms as they are given; raises `UsageError` with one sentence."""
    network = _network(asked, target)
    check_nodes(len(network.nodes), preset, target, whole=network.accounting == "nic")
    _check_fit(preset, target)
    for arm in arms:
        check_arm(arm, preset, len(network.nodes), target)
    if asked.backend == "host" and (network.impaired or not network.uniform):
        raise UsageError("host nodes are loopback: links there have a modelled rate only; use netns nodes for the rest")
    schedule = load_schedule(asked.schedule, network) if asked.schedule else None
    if schedule is not None and asked.live is None and target is not None:
        raise UsageError("links that change need arms that train live on them: add LIVE=10min (or PACE=none)")
    if schedule is not None and asked.backend == "host":
        raise UsageError("host nodes are loopback, where a schedule has no link to change: use netns nodes")
    if schedule is not None and "restart" in schedule.kinds():
        raise UsageError(
            "the schedule restarts programs, which only programs under exec can do; leave restart out of it"
        )
    if not 0 <= asked.seed < 2**32:
        raise UsageError(f"a seed of {asked.seed} was given; seeds are whole numbers from 0 to {2**32 - 1}")
    return Settings(
        folder=folder,
        command=command,
        network=network,
        schedule=schedule,
        backend=asked.backend,
        image=asked.image,
        preset_name=asked.preset,
        preset=preset,
        target=target,
        live_seconds=None if asked.live is None else _positive(parse_duration(asked.live), asked.live),
        arms=arms,
        seed=asked.seed,
        share=asked.share,
        seconds_per_arm=_positive(parse_duration(asked.budget), asked.budget),
    )


def _target_name(target: str, pace: str | None, live: str | None) -> str | None:
    """The target's name, or None where there is no pace; refuses names that are not there."""
    known = names_in("targets")
    if pace == "none":
        if live is not None:
            raise UsageError("LIVE is a paced run; with PACE=none give STEPS instead")
        return None
    for given in (target, pace):
        if given is not None and given not in known and not given.endswith(".toml"):
            raise UsageError(f"'{given}' is no target; known are {', '.join(known)}, or 'none' for PACE")
    if pace is not None and target != Request.target and pace != target:
        raise UsageError(f"TARGET={target} and PACE={pace} name two targets; give one")
    return pace or target


def check_nodes(nodes: int, preset: Preset, target: Target | None, *, whole: bool) -> None:
    """Whether so many nodes can share the preset's sequences, and stand for the target."""
    most = preset.fewest_short
    if target is not None:
        most = min(most, target.nodes)
    fitting = [n for n in range(2, most + 1) if preset.context % (n * SUB_CHUNKS) == 0]
    if not fitting:
        raise UsageError(
            f"sequences of {preset.context} tokens cannot be shared evenly by 2 nodes or more: change the preset"
        )
    if nodes not in fitting:
        raise UsageError(
            f"{nodes} nodes cannot share sequences of {preset.context} tokens evenly: "
            f"type NODES={fitting[0]}" + "".join(f" or {n}" for n in fitting[1:])
        )
    if target is not None and whole and nodes != target.nodes:
        raise UsageError(
            f"with ACCOUNTING=nic a node's access link carries what it sends to all {target.nodes} nodes of "
            f"{target.name}: type NODES={target.nodes}, or PACE=none for the small model's own traffic"
        )


def _choose_arms(wanted: str | None) -> tuple[Arm, ...]:
    """The five standard ones, or those that were named: standard ones first, in their order."""
    if wanted is None:
        return standard_arms()
    names = list(dict.fromkeys(part.strip() for part in wanted.split(",")))
    arms = {name: arm_named(name) for name in names}
    if len({arm.name for arm in arms.values()}) < len(arms):
        raise UsageError(f"two arms of one name were asked for: {', '.join(names)}; each needs a name of its own")
    order = [*(name for name in STANDARD_ARMS if name in arms), *(name for name in names if name not in STANDARD_ARMS)]
    return tuple(arms[name] for name in order)


def check_arm(arm: Arm, preset: Preset, nodes: int, target: Target | None) -> None:
    """Whether so many nodes can train it, and a folder can be called by its name."""
    model = preset.model
    if not fullmatch(r"[\w.+-]{1,60}", arm.name) or arm.name.startswith("."):
        raise UsageError(
            f"'{arm.name}' cannot be an arm's name: letters, digits, '.', '_', '+' and '-' can, 60 at most"
        )
    if target is not None and (given := _unpaced_only(arm, preset)):
        raise UsageError(
            f"arm '{arm.name}': a paced run knows the messages of all-gather and of none, contiguous, one per layer "
            f"and direction and of one size throughout; for {given} add PACE=none"
        )
    if arm.exchange == "ids":
        arm.ids.depth(model.layers)
    if arm.exchange == "ulysses" and (model.heads % nodes or model.kv_heads % nodes):
        raise UsageError(
            f"arm '{arm.name}': ulysses shares heads among nodes: {model.heads} query and {model.kv_heads} K/V heads "
            f"do not divide by {nodes}"
        )
    if arm.split == "batch" and preset.batch % nodes:
        raise UsageError(
            f"arm '{arm.name}': every node trains whole sequences, and a batch of {preset.batch} cannot be shared by "
            f"{nodes} nodes: set batch = {nodes} in the preset, or leave the arm out"
        )


def _unpaced_only(arm: Arm, preset: Preset) -> str | None:
    """What of an arm the closed form of a paced step (`testbed.pace`) does not know, if anything."""
    unplugged = arm.codec.subspace
    unknown = {
        arm.exchange: arm.exchange not in PACED,
        f"layout = '{arm.layout}'": arm.layout != "contiguous",
        "interleave": arm.interleave,
        f"first_layer = '{arm.first_layer}'": arm.first_layer == "ids",
        f"accumulate = {preset.accumulate}": preset.accumulate > 1,
        "unplug = 'literal'": unplugged.unplug_at is not None and unplugged.unplug == "literal",
    }
    return next((given for given, is_unknown in unknown.items() if is_unknown), None)


def _check_fit(preset: Preset, target: Target | None) -> None:
    """What preset and target ask of each other and of the task."""
    width = preset.model.kv_width
    check_data(preset.data, preset.model)
    if max(preset.subspace_ranks) > width or preset.latent_rank > 2 * width:
        raise UsageError(
            f"ranks {preset.subspace_ranks} and {preset.latent_rank} do not fit K and V of width {width}: "
            f"subspace_ranks can be up to {width}, latent_rank up to {2 * width}"
        )
    if target is None:
        return
    parse_rate(target.fast_rate)
    if target.layers % preset.model.layers:
        raise UsageError(
            f"a model of {preset.model.layers} layers cannot stand for {target.name}'s {target.layers}: it must divide"
        )
    if preset.batch * preset.context * width > target.nodes * target.tokens_per_node * target.kv_width:
        raise UsageError(
            f"the model is larger than {target.name}, whose size its messages are filled up to: type PACE=none"
        )


def _positive(seconds: float, given: str) -> float:
    if seconds <= 0:
        raise UsageError(f"a time of {given} was given; it must be above 0, such as 10min")
    return seconds
