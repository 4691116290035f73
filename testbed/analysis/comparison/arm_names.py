"""What tables and figures call the arms of a comparison."""

from testbed.analysis.comparison.load import Comparison
from testbed.analysis.plot.style import shown

__all__ = ["arm_names", "shown_arms"]


def shown_arms(comparison: Comparison) -> dict[str, str]:
    """What figures call each arm, by name: its name, and where its times are not valid, that."""
    return {arm.arm: shown(arm.arm) + ("" if arm.valid else " (not valid)") for arm in comparison.arms}


def arm_names(comparison: Comparison) -> list[str]:
    """Names of the arms, in their order."""
    return [arm.arm for arm in comparison.arms]
