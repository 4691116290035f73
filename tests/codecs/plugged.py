"""A codec, an exchange or a task in a package of its own, as a user installs it."""

from pathlib import Path

__all__ = ["install"]


def install(folder: Path, code: str, kind: str = "codecs", **names: str) -> str:
    """Write a package that adds some of a kind (`name="Class"` of `code`); the folder to put on the path."""
    module = f"own_{abs(hash(code))}"
    known = folder / f"{module}-1.dist-info"
    known.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    entries = "".join(f"{name} = {module}:{what}\n" for name, what in names.items())
    (known / "entry_points.txt").write_text(f"[testbed.{kind}]\n{entries}")
    return str(folder)
