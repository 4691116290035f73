"""What a result was made by: code, versions, machine."""

from dataclasses import dataclass

from testbed.config.tree import STRICT

__all__ = ["Environment", "Place"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """In a learned cell. Of all this only the sources and the versions can change a result on purpose."""

    __pydantic_config__ = STRICT

    commit: str | None
    sources_sha256: str | None = None
    """Digest of the sources that decide what is learned."""
    python: str
    packages: dict[str, str]
    """Versions by name."""
    kernel: str | None = None
    cpu: str | None = None
    cpu_features: tuple[str, ...] | None = None
    """Those by which PyTorch's libraries choose their kernels."""
    host: str | None = None
    """The first digits of the digest of its name."""
    dirty: bool = False
    """Whether sources differed from the commit."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """`environment.json`: a whitelist, never the whole environment."""

    __pydantic_config__ = STRICT

    commit: str | None
    dirty_diff: str | None
    """Against the commit."""
    sources_sha256: str
    python: str
    packages: dict[str, str]
    kernel: str
    cpu: str
    cpu_features: tuple[str, ...]
    host: str
    cores: int | None
    threads_per_rank: int

    @property
    def place(self) -> Place:
        """What a learned cell says of it."""
        return Place(
            commit=self.commit,
            sources_sha256=self.sources_sha256,
            python=self.python,
            packages=self.packages,
            kernel=self.kernel,
            cpu=self.cpu,
            cpu_features=self.cpu_features,
            host=self.host,
            dirty=bool(self.dirty_diff),
        )
