"""Checkpoints: everything a rank needs to go on as if it had never stopped, to the last bit.

    DIR/step00000100/rank0.safetensors   weights, codecs' states, moments, what the ranks agreed on
    DIR/step00000100/rank0.json          what it is of: arm, preset, seed, rank, ranks, step, data, and the SHA-256 of
                                         the tensors' file; written last

Tensors are safetensors, the rest JSON; nothing is unpickled. Each file is written under another name and renamed, the
JSON last, so a checkpoint counts once every rank's JSON is there.

The order of data depends on seed and step only, and there is no other randomness, so nothing else is kept.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from testbed.config import Arm, Preset
from testbed.config.tree import plain_json, table_of
from testbed.data.integrity import file_sha256
from testbed.errors import UsageError
from testbed.trainer.loop import Trainer

__all__ = ["difference", "identity", "prune", "restore", "save", "steps_held", "steps_seen"]

_VERSION = 2
_KEEP = 2
_PLACE = re.compile(r"step[0-9]{8,}")
_OUT = "give --out another folder, or delete this step and go on from the one before"


class Description(TypedDict):
    """The JSON beside the tensors."""

    schema_version: int
    rank: int
    world: int
    step: int
    clock_seconds: float
    sha256: str
    """Of the tensors' file."""
    arm: dict[str, JsonValue]
    preset: dict[str, JsonValue]
    seed: int
    data: str
    """SHA-256 of the text."""


def save(trainer: Trainer, folder: Path, *, clock: float = 0.0) -> Path:
    """Write this rank's part of a checkpoint of `trainer.index` steps, which took `clock` seconds."""
    place = _place(folder, trainer.index)
    place.mkdir(parents=True, exist_ok=True)
    name = f"rank{trainer.rank}"
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _state(trainer).items()}
    _by_rename(place / f"{name}.safetensors", lambda path: save_file(tensors, path))
    head = {"schema_version": _VERSION, "rank": trainer.rank, "step": trainer.index, "clock_seconds": clock}
    head |= {"sha256": file_sha256(place / f"{name}.safetensors")}
    text = json.dumps({**head, **_identity(trainer)}, indent=2)
    _by_rename(place / f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return place


def prune(folder: Path, rank: int, common: int) -> None:
    """Remove this rank's parts but the last two, and none since `common`, the newest step that every rank holds."""
    own = [step for step in steps_seen(folder) if (_place(folder, step) / f"rank{rank}.json").is_file()]
    for step in own[:-_KEEP]:
        if step < common:
            place = _place(folder, step)
            for ending in ("json", "safetensors"):
                (place / f"rank{rank}.{ending}").unlink(missing_ok=True)
            with suppress(OSError):  # the last rank to leave takes the folder along
                place.rmdir()


def steps_seen(folder: Path) -> list[int]:
    """Steps of which any rank's part is in this folder, ascending."""
    places = {path.parent.name for path in folder.glob("step*/rank*.json")}
    return sorted(int(name[4:]) for name in places if _PLACE.fullmatch(name))  # copies by other names are the user's


def steps_held(folder: Path, rank: int, world: int) -> set[tuple[int, int]]:
    """(step, ranks that wrote it) from which this rank of `world` can go on: its own part is here, or, where it is of
    another number of ranks, every part."""
    found = set()
    for step in steps_seen(folder):
        place = _place(folder, step)
        if (description := _description(place, rank)).is_file():
            theirs = int(_read(description)["world"])
            parts = [place / f"rank{each}.json" for each in ([rank] if theirs == world else range(theirs))]
            if all(part.is_file() and _read(part)["world"] == theirs for part in parts):
                found.add((step, theirs))
    return found


def restore(trainer: Trainer, folder: Path, step: int) -> float:
    """Put `trainer` where the checkpoint left off: its clock; raises `UsageError` if it is of something else.

    Over another number of ranks only what is summed every step can go on, for there every rank holds the same.
    """
    place = _place(folder, step)
    world = int(_read(_description(place, trainer.rank))["world"])
    rank = trainer.rank if world == trainer.world else 0
    if world != trainer.world and trainer.arm.sync != "gradients":
        raise UsageError(
            f"{place} is of {world} ranks, and between two averagings each holds weights and moments of its own: start "
            f"{world} ranks, not {trainer.world} (only sync = 'gradients' can go on with another number)"
        )
    found = _read(place / f"rank{rank}.json")
    theirs = {**found}
    for key, ours in _identity(trainer).items():
        if key != "world" and theirs[key] != ours:
            raise UsageError(f"{place} is of another {key}: {difference(theirs[key], ours)}; give --out another folder")
    for key, asked in (("rank", rank), ("step", step)):
        if theirs[key] != asked:
            raise UsageError(
                f"{place}/rank{rank}.json is of {key} {theirs[key]}, not of {key} {asked}: somebody put it there; "
                f"{_OUT}"
            )
    state = _state(trainer)
    tensors = _tensors(place / f"rank{rank}.safetensors", found["sha256"])
    _check_alike(place, tensors, state)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])
    trainer.index = int(found["step"])
    codecs = {name: tensors[f"codecs.{name}"] for name in trainer.codecs.state_dict()}
    trainer.codecs.load_state_dict(codecs)  # once more, as a module does: what follows from its buffers follows
    return float(found.get("clock_seconds", 0.0))


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """What was written along with the description that has this digest of it."""
    try:
        if file_sha256(path) != sha256:
            raise UsageError(
                f"{path} is not what its description was written for (another checksum): it is damaged, or of another "
                f"step; {_OUT}"
            )
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _check_alike(place: Path, tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Raise `UsageError` unless both hold tensors of the same names, shapes and types."""
    if tensors.keys() != state.keys():
        odd = sorted(tensors.keys() ^ state.keys())[0]
        raise UsageError(f"{place} is of another model: '{odd}' is on one side only")
    for name, tensor in state.items():
        theirs = tensors[name]
        if (theirs.shape, theirs.dtype) != (tensor.shape, tensor.dtype):
            there, here = (f"{tuple(each.shape)} {each.dtype}".replace("torch.", "") for each in (theirs, tensor))
            raise UsageError(f"{place} is of another model: '{name}' is {there} there, {here} here; {_OUT}")


def _place(folder: Path, step: int) -> Path:
    return folder / f"step{step:08d}"


def _description(place: Path, rank: int) -> Path:
    """This rank's own, or rank 0's where there were fewer ranks."""
    own = place / f"rank{rank}.json"
    return own if own.is_file() else place / "rank0.json"


def _state(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that a step changes, by name; writing into them restores."""
    state = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    if trainer.preset.model.tied:
        del state["model.head.weight"]  # the embedding's
    state |= {f"codecs.{name}": tensor for name, tensor in trainer.codecs.state_dict().items()}
    for name, parameter in trainer.named.items():
        moments = trainer.optimizer.state[parameter]
        if not moments:  # before the first step; what AdamW would begin with
            moments["step"] = torch.zeros((), device=parameter.device)
            moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state |= {f"moments.{name}.{key}": value for key, value in moments.items()}
    for name in ("agreed", "momentum"):
        tensor = getattr(trainer.weights, name)
        if tensor is not None:
            state[f"weights.{name}"] = tensor
    return state


def _identity(trainer: Trainer) -> dict[str, JsonValue]:
    """What a checkpoint must have in common with who goes on from it."""
    return {"world": trainer.world, **identity(trainer.preset, trainer.arm, trainer.seed, trainer.mix.sha256)}


def identity(preset: Preset, arm: Arm, seed: int, data: str) -> dict[str, JsonValue]:
    """All that decides what a training learns; `data`: the text's SHA-256."""
    free = ("validation_sequences", "validation_every", "recompute", "compile")  # they change no weight
    kept = {key: value for key, value in table_of(preset).items() if key not in free}
    return {"arm": table_of(arm), "preset": kept, "seed": seed, "data": data}


def difference(theirs: Any, ours: Any) -> str:
    """The first thing in which two configurations differ, in words: theirs "there", ours "here"."""
    ours = plain_json(ours)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in ours:
            if theirs.get(key) != ours[key]:
                inner = difference(theirs.get(key), ours[key])
                return f"{key}{'.' if isinstance(ours[key], dict) else ' '}{inner}"
    return f"{theirs!r} there, {ours!r} here"


def _read(path: Path) -> Description:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema_version"] != _VERSION:
            raise UsageError(f"{path} has schema version {found['schema_version']}, this testbed reads {_VERSION}")
        return found
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _by_rename(path: Path, write: Any) -> None:
    """Write under another name, then rename: `path` is there whole or not at all."""
    draft = path.with_name(path.name + ".part")
    write(draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
