"""Text to integers and back, exactly; whatever can be read two ways is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation.errors import UsageError
from emulation.spec import units

REFUSED_RATES = [
    "", "300", "0mbit", "-1mbit", "nanmbit", "infmbit", "1e400bit", "1e3mbit", "mbit", "3 0mbit", "0.5bit",
    "300furlong", "2tbit", "٣mbit", "1_000mbit",
]  # fmt: skip


@given(st.integers(1, 10**12))
def test_rates_round_trip(rate):
    assert units.parse_rate(units.format_rate(rate)) == rate


@given(st.integers(0, 60 * 10**6))
def test_delays_round_trip(delay):
    assert units.parse_delay(units.format_delay(delay)) == delay


@given(st.integers(0, 2**50))
def test_sizes_round_trip(size):
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(0, 10_000))
def test_percentages_round_trip(hundredths):
    fraction = hundredths / 1e4
    assert units.parse_percent(units.format_percent(fraction)) == pytest.approx(fraction, abs=1e-15)


@given(st.integers(1, 10**7))
def test_durations_round_trip(milliseconds):
    assert units.parse_duration(units.format_duration(milliseconds / 1e3)) == pytest.approx(milliseconds / 1e3)


@given(st.text(max_size=12))
def test_any_text_is_a_rate_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        assert units.parse_rate(text) > 0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("300mbit", 300_000_000),
        ("2.5gbit", 2_500_000_000),
        ("1bit", 1),
        ("64 kbit", 64_000),
        ("10Mbit", 10**7),
    ],
)
def test_rates(text, rate):
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", REFUSED_RATES)
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(UsageError):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("text", "bits", "bytes_"),
    [
        ("300mbps", "300mbit", "2400mbit"),
        ("300kbps", "300kbit", "2400kbit"),
        ("3mb", "3mbit", "24mbit"),
        ("3kb", "3kbit", "24kbit"),
        ("2.5gbps", "2.5gbit", "20gbit"),
        ("8bps", "8bit", "64bit"),
        ("1MB/s", "1mbit", "8mbit"),
    ],
)
def test_an_ambiguous_rate_is_refused_with_both_meanings(text, bits, bytes_):
    with pytest.raises(UsageError) as caught:
        units.parse_rate(text)
    assert bits in str(caught.value)
    assert bytes_ in str(caught.value)


def test_delays_and_sizes_and_percentages_and_durations():
    assert units.parse_delay("20ms") == 20_000
    assert units.parse_delay("0ms") == 0
    assert units.parse_delay("1.5ms") == 1_500
    assert units.parse_size("64KiB") == 65_536
    assert units.parse_size("64kB") == 64_000
    assert units.parse_percent("1%") == 0.01
    assert units.parse_duration("10min") == 600.0
    assert units.format_rate(300_000_000) == "300mbit"
    assert units.format_size(65_536) == "64KiB"
    assert units.format_duration(600) == "10min"


@pytest.mark.parametrize("text", ["64kb", "64KB", "64mb", "64M", "1.5B", "-1B", "64"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError):
        units.parse_size(text)


@pytest.mark.parametrize("text", ["1", "101%", "-1%", "nan%", "1 percent"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(UsageError):
        units.parse_percent(text)


@pytest.mark.parametrize(("text", "delay", "said"), [("15.52345ms", 15_523, "15.523ms"), ("1.5us", 2, "2us")])
def test_a_delay_that_is_too_fine_is_rounded_and_that_is_said(text, delay, said):
    with pytest.warns(units.Rounded, match=f"delay {text} is set as {said}: delays are whole microseconds"):
        assert units.parse_delay(text) == delay


@pytest.mark.parametrize("text", ["20", "0.5us", "-1ms", "61s", "20msec"])
def test_what_is_no_delay_is_refused(text):
    with pytest.raises(UsageError):
        units.parse_delay(text)
