"""Links carry what was asked for, and a link that does not is found."""

import pytest

pytestmark = pytest.mark.world

MEASURE = """
network = net({n}, "{rate}", "{accounting}")
with NetnsBackend(network) as backend:
    return verify.verify(backend, network)
"""


@pytest.mark.parametrize(
    ("n", "rate", "accounting"), [(4, "10mbit", "nic"), (4, "100mbit", "pair"), (3, "300mbit", "nic")]
)
def test_links_carry_what_was_asked_for(world, n, rate, accounting):
    measured = world(MEASURE.format(n=n, rate=rate, accounting=accounting))
    assert measured["ok"]
    alone = [each["ratio"] for each in measured["links"] if each["phase"] == "alone"]
    assert len(alone) == (2 * n if accounting == "nic" else n * (n - 1))
    assert all(0.98 <= ratio <= 1.02 for ratio in alone)
    assert all(each["median_us"] < 20_000 for each in measured["round_trips"])


WRONG = """
network = net(2, "100mbit", "{accounting}")
with NetnsBackend(network) as backend:
    {change}
    measured = verify.measure(backend, network, 0.3)
    return verify.check(measured)
"""


@pytest.mark.parametrize(
    ("accounting", "change", "says"),
    [
        ("nic", "backend.shape(network.unshaped())", "n1 down, alone"),
        ("pair", "backend.shape(linked(network, rate_bps=120_000_000))", "(+2"),
        (
            "nic",
            'sh("tc -n switch qdisc replace dev sw1 root tbf rate 90mbit burst 40000b limit 400000b")',
            "n1 down, alone",
        ),
        ("pair", 'sh("tc -n n0 filter del dev eth0 parent 1:")', "n0 -> n1, alone"),
    ],
)
def test_a_wrong_link_is_found(world, accounting, change, says):
    problems = world(WRONG.format(accounting=accounting, change=change))
    assert any(says in each for each in problems), problems


def test_verify_refuses_a_wrong_link_in_one_sentence(world):
    said = world("""
network = net(2, "100mbit")
with NetnsBackend(network) as backend:
    backend.shape(linked(network, rate_bps=50_000_000))
    try:
        verify.verify(backend, network)
    except LinkError as error:
        return str(error)
""")
    assert "100mbit" in said
    assert "Try again" in said


def test_the_capacity_of_this_machine_is_gigabits(world):
    found = world("""
with NetnsBackend(net(4)) as backend:
    began = time.monotonic()
    return asdict(verify.capacity(backend)) | {"seconds": time.monotonic() - began}
""")
    assert found["aggregate_bps"] > 5e8
    assert 1 < found["round_trip_us"] < 20_000
    assert found["seconds"] < 5


def test_many_connections_load_every_link_with_what_the_delay_line_carries(world):
    """32 connections make super-packets of two segments: on 300 Mbit/s they are too many for four flows at once."""
    measured = world(
        """
network = net(4, "300mbit", "nic", delay_us=20_000)
with NetnsBackend(network, delays="delay line") as backend:
    return verify.verify(backend, network, streams=(32,))
""",
        timeout=150,
    )
    many = [each["ratio"] for each in measured["links"] if each["phase"] == "32 streams"]
    assert len(many) == 8
    assert all(0.98 <= ratio <= 1.02 for ratio in many)
