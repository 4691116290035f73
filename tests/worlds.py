"""A mark for tests that build a network."""

import pytest

from tests.emulation.conftest import refusal

__all__ = ["needs_world"]

needs_world = pytest.mark.skipif(bool(refusal()), reason=f"no private world here: {refusal()}")
