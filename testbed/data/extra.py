"""Packages of the extra `data`, which only preparing a corpus needs, and the error of a hub that cannot be reached.

TestbedError
└── Unreachable    a remote set or tokenizer cannot be read now (exit status 1)
"""

import importlib
from typing import Any

from testbed.errors import TestbedError, UsageError

__all__ = ["Unreachable", "require"]


class Unreachable(TestbedError):
    """A remote set or tokenizer cannot be read now; what to type instead."""


def require(package: str, purpose: str) -> Any:
    """The package, or a sentence on how to get it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UsageError(f"{purpose} needs the package '{package}': type pip install -e '.[data]'") from None
