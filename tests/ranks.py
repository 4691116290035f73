"""Ranks of the tests: threads of one process, over real TCP on loopback."""

from testbed.parallel.threads import listeners
from testbed.parallel.threads import on_ranks as run_ranks

__all__ = ["listeners", "run_ranks"]
