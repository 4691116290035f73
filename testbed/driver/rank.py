"""The process of a rank, `python -m testbed.driver.rank`; what it does is in `testbed.driver.serve`."""

import gc

__all__ = ["SELDOM", "main"]

SELDOM = 50_000
"""Objects between two collections of the youngest. Imports make some 500,000 that stay, among which the usual 700
collect for a quarter of the time that a process takes to start."""


def main() -> None:
    """Import, then serve."""
    gc.set_threshold(SELDOM)
    from testbed.driver.serve import serve

    gc.freeze()  # a full collection between two of a step's operations would be measured
    serve()


if __name__ == "__main__":
    main()
