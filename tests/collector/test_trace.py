"""Spans add up; single ones are kept only where they will be written."""

from testbed.collector.trace import Trace


def test_a_trace_that_is_not_recorded_keeps_nothing():
    """Sums by name per step, and memory that does not grow with the steps; recorded, every span."""
    trace = Trace(0)
    trace.add("compute", 1.0, 2.0)
    trace.add("compute", 2.0, 2.5)
    assert (trace.take(), trace.take(), trace.events) == ({"compute": 1.5}, {}, [])
    trace.recording = True
    trace.add("compute", 3.0, 4.0)
    assert len(trace.events) == 1
