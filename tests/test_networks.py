"""Network presets: every one loads and is what it says; what a file may not say."""

import pytest

from emulation.errors import UsageError as EmulationUsageError
from emulation.spec.network import Link, Network
from emulation.spec.units import parse_delay, parse_rate
from testbed.config import names_in
from testbed.errors import UsageError
from testbed.settings.networks import network_from, network_spec

NODES = {
    "adsl2plus": 4, "cable": 4, "fibre": 4, "islands": 4, "lte": 4, "nr": 4, "paper-nic": 8, "paper-pair": 4,
    "region": 4, "wan10": 10,
}  # fmt: skip


def rate(network: Network, first: int, second: int) -> int | None:
    return network.path(network.nodes[first], network.nodes[second]).rate_bps


def delay(network: Network, first: int, second: int) -> int:
    return network.path(network.nodes[first], network.nodes[second]).delay_us


@pytest.fixture
def own(tmp_path):
    """A network from a file of one's own."""

    def go(text: str, nodes: int | None = None) -> Network:
        path = tmp_path / "mine.toml"
        path.write_text(f'name = "mine"\nsource = "made up"\n{text}')
        return network_from(str(path), nodes)

    return go


def test_the_presets_are_these():
    assert names_in("networks") == sorted(NODES)


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_preset_loads(name):
    spec = network_spec(name)
    network = network_from(name)
    assert spec.name == name
    assert len(spec.source.split()) > 10
    assert len(network.nodes) == NODES[name]
    assert network.shaped
    for source, target in network.pairs:
        assert network.path(source, target).rate_bps is not None


@pytest.mark.parametrize("name", sorted(NODES))
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_every_preset_takes_another_number_of_nodes(name, nodes):
    assert len(network_from(name, nodes).nodes) == nodes


def test_the_papers_link_in_both_accountings():
    for name, accounting in (("paper-pair", "pair"), ("paper-nic", "nic")):
        network = network_from(name)
        assert (network.accounting, network.link) == (accounting, Link(rate_bps=300_000_000))


def test_an_access_link_has_two_rates_and_its_whole_round_trip():
    network = network_from("cable")
    assert (network.link.rate_bps, network.link.rate_down_bps) == (20_000_000, 300_000_000)
    assert network.round_trip_us(*network.nodes[:2]) == 20_000


def test_the_wide_area_is_symmetric_and_faster_than_light_nowhere():
    network = network_from("wan10")
    for first, second in network.pairs:
        there, back = delay(network, first.index, second.index), delay(network, second.index, first.index)
        assert there == back
        assert 12_000 <= there <= 200_000
    assert delay(network, 3, 4) == 12_500
    assert rate(network, 0, 9) == 300_000_000


def test_nodes_are_placed_in_turn_over_regions():
    network = network_from("islands", 5)
    assert [rate(network, 0, other) for other in (1, 2, 3, 4)] == [300_000_000, 10**10, 300_000_000, 10**10]
    assert [delay(network, 1, other) for other in (0, 2, 3, 4)] == [20_000, 20_000, 50, 20_000]
    network = network_from("wan10", 20)
    assert rate(network, 4, 14) == 5 * 10**9
    assert delay(network, 4, 13) == 12_500


OWN = """
accounting = "pair"
nodes = 4
mtu = 1500
framing = "ethernet"
[link]
rate = "100mbit"
delay = "10ms"
jitter = "1ms"
distribution = "uniform"
loss = "0.1%"
loss_burst = 3
reorder = "0.5%"
queue = "500kB"
[[node]]
nodes = [3]
rate = "20mbit"
queue = "40ms"
mtu = 1400
[[pair]]
from = [0, 1]
to = [0, 2]
delay = "80ms"
"""


def test_a_network_of_ones_own(own):
    network = own(OWN)
    assert network.link == Link(
        rate_bps=100_000_000, delay_us=10_000, jitter_us=1000, distribution="uniform", loss=0.001, loss_burst=3,
        reorder=0.005, queue_bytes=500_000,
    )  # fmt: skip
    assert network.framing == "ethernet"
    third = network.path(network.nodes[3], network.nodes[1])
    assert (third.rate_bps, third.queue_bytes, third.queue_us) == (20_000_000, None, 40_000)
    assert network.node_mtus == ((3, 1400),)
    own_links = [(0, 2), (1, 0), (1, 2), (3, 0), (3, 1), (3, 2)]
    assert [(first, second) for first, second, _ in network.pair_links] == own_links
    assert [delay(network, *pair) for pair in ((0, 2), (2, 0))] == [80_000, 10_000]
    assert rate(network, 0, 3) == 100_000_000


def test_a_matrix_may_be_one_text_for_all(own):
    network = own(
        'accounting="pair"\n[link]\nrate="1gbit"\n[matrix]\nregions=["a","b"]\ndelay="5ms"\nnodes_per_region=3'
    )
    assert len(network.nodes) == 6
    assert {delay(network, a.index, b.index) for a, b in network.pairs} == {parse_delay("5ms")}
    assert network.slowest_bps == parse_rate("1gbit")


def test_a_node_that_differs_differs_in_what_it_sends_to_every_region(own):
    network = own(
        'accounting="pair"\n[matrix]\nregions=["a","b"]\nrate="1gbit"\ndelay="5ms"\nnodes_per_region=2\n'
        '[[node]]\nnodes=[0]\nrate="10mbit"'
    )
    assert {rate(network, 0, other) for other in (1, 2, 3)} == {10_000_000}
    assert {rate(network, other, 0) for other in (1, 2, 3)} == {10**9}


NIC, PAIR = 'accounting="nic"\nnodes=4\n', 'accounting="pair"\nnodes=4\n'
MATRIX = 'accounting="pair"\n[matrix]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "accounting"),
        ('accounting="both"', "accounting"),
        ("nodes = \n", "not valid TOML"),
        (NIC + "speed=1", "unknown key 'speed'"),
        (NIC + "[link]\nrat='1mbit'", "unknown key 'link.rat'; did you mean 'rate'"),
        (NIC + "[link]\nrate=300", "link.rate"),
        (NIC + "[link]\nrate='300'", r"mine: \[link\]: rate: rate '300' has no unit"),
        (NIC + "[link]\ndelay='20'", r"\[link\]: delay: delay '20' has no unit"),
        (NIC + "[link]\nqueue='20mbit'", "neither a size nor a time"),
        (NIC + "[link]\njitter='2ms'", "there is no"),
        (NIC + "[link]\ndown='2mbit'", "none up"),
        (NIC + "[[node]]\nnodes=[4]\nrate='1mbit'", r"mine: \[\[node\]\] 1: node 4 is not there"),
        (NIC + "[[node]]\nnodes=[9]\nmtu=1000", "node 9"),
        (NIC + "[[node]]\nnodes=[0]\nmtu=9000", "allowed are 576"),
        (NIC + "[[node]]\nnodes=[0]", "changes nothing"),
        (NIC + "[[node]]\nnodes=[]\nrate='1mbit'", "changes nothing"),
        (NIC + "[[node]]\nrate='1mbit'", "node.0.nodes"),
        (NIC + "[[node]]\nnodes=['a']\nrate='1mbit'", "node.0.nodes.0"),
        (NIC + "[[pair]]\nfrom=[0]\nto=[1]\nrate='1mbit'", 'write accounting = "pair"'),
        (NIC + "[matrix]\nregions=['a']\ndelay='1ms'", "leave|write accounting"),
        (PAIR + "[link]\nrate='1mbit'\ndown='2mbit'", "down is given"),
        (PAIR + "[[pair]]\nfrom=[0]\nto=[7]\nrate='1mbit'", r"\[\[pair\]\] 1: node 7 is not there"),
        (PAIR + "[[pair]]\nfrom=[0]\nto=[-1]\nrate='1mbit'", "node -1 is not there"),
        (PAIR + "[[pair]]\nfrom=[0]\nto=[0]\nrate='1mbit'", "changes nothing"),
        (PAIR + "[[pair]]\nfrom=[0]\nto=[1]", "changes nothing"),
        (PAIR + "[[pair]]\nfrom=[0]\nto=[1]\nrate='1mbit'\ndown='1mbit'", "unknown key 'pair.0.down'"),
        (PAIR + "[matrix]\nregions=['a']\ndelay='1ms'", "leave nodes out"),
        (PAIR.replace("4", "300"), "allowed are 1 to 250"),
        ('accounting="pair"', "no number of nodes of its own"),
        (MATRIX + "regions=['a','b']", "none of rate, delay and"),
        (MATRIX + "regions=[]\ndelay='1ms'", "regions = 0"),
        (MATRIX + "regions=['a','a']\ndelay='1ms'", "same name"),
        (
            MATRIX + "regions=['a','b']\ndelay=[['1ms']]",
            "1 rows of 1 values, and there are 2 regions; write 2 rows of 2",
        ),
        (MATRIX + "regions=['a','b']\ndelay=[['1ms','2ms'],['1ms']]", "2 rows of 1 or 2 values"),
        (MATRIX + "regions=['a','b']\ndelay=[]", "0 rows of 0 values"),
        (MATRIX + "regions=['a','b']\nrate=['1mbit','2mbit']", "neither one text nor rows"),
        (MATRIX + "regions=['a','b']\nrate=5", "neither one text nor rows"),
        (MATRIX + "regions=['a','b']\nrate=[['1mbit',5],['1mbit','1mbit']]", "from a to b: rate: rate 5"),
        (MATRIX + "regions=['a','b']\ndelay='1'", "from a to a: delay"),
        (MATRIX + "regions=['a']\ndelay='1ms'\nnodes_per_region=0", "nodes_per_region = 0"),
    ],
)
def test_what_a_file_may_not_say(own, text, says):
    with pytest.raises(UsageError, match=says) as refusal:
        own(text)
    assert "\n" not in str(refusal.value)


def test_a_preset_of_certain_nodes_refuses_fewer(own):
    with pytest.raises(UsageError, match=r"mine \(with 3 nodes\): .*node 3 is not there"):
        own(OWN, 3)


@pytest.mark.parametrize("nodes", [0, -1, 251])
def test_a_number_of_nodes_that_cannot_be_is_refused(nodes):
    with pytest.raises(UsageError, match="allowed are 1 to 250"):
        network_from("cable", nodes)


def test_a_source_is_required(tmp_path):
    path = tmp_path / "mine.toml"
    for text in ('name="mine"\naccounting="nic"', 'name="mine"\nsource=" "\naccounting="nic"'):
        path.write_text(text)
        with pytest.raises(UsageError, match="source"):
            network_from(str(path), 2)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'cabel' is no network; known are adsl2plus, cable, .*did you mean 'cable'"):
        network_from("cabel")


ROUND_TRIPS = """# a cloud's own table
receiver,sender,round_trip_ms,mbit_per_second
"Oregon","Virginia",67,790
Oregon,Tokyo,96.001,523
Virginia,Tokyo,146,300
Tokyo,Virginia,150,300
Tokyo,Tokyo,1,5000
"""
MATRIX = """name = "wan"
source = "A table."
accounting = "pair"
link = { rate = "100mbit" }
[matrix]
regions = ["Oregon", "Virginia", "Tokyo"]
round_trip = "table.csv"
"""


def test_a_table_of_round_trips_is_half_a_delay_each_way(tmp_path):
    """A way that is missing is as long as the one back; what is finer than a microsecond is rounded."""
    (tmp_path / "table.csv").write_text(ROUND_TRIPS)
    (tmp_path / "wan.toml").write_text(MATRIX)
    network = network_from(str(tmp_path / "wan.toml"), 6)
    found = [[delay(network, first, second) if first != second else None for second in range(3)] for first in range(3)]
    assert found == [[None, 33_500, 48_000], [33_500, None, 75_000], [48_000, 73_000, None]]
    assert delay(network, 2, 5) == 500  # both in Tokyo
    assert delay(network, 0, 3) == 0
    assert rate(network, 0, 1) == 100_000_000


@pytest.mark.parametrize(
    ("table", "matrix", "says"),
    [
        (ROUND_TRIPS, MATRIX.replace('"Tokyo"', '"Tokio"'), "table.csv has no 'Tokio'; did you mean 'Tokyo'?"),
        (ROUND_TRIPS.replace("Virginia,Tokyo,146,300\nTokyo,Virginia,150,300\n", ""), MATRIX,
         "no round trip between Virginia and Tokyo; add a row"),
        (ROUND_TRIPS.replace("67", "-67"), MATRIX, "row 2: '-67' is no number of milliseconds"),
        (ROUND_TRIPS.replace("67,", ""), MATRIX, "row 2: 3 values for the 4 columns"),
        (ROUND_TRIPS.replace("round_trip_ms", "rtt"), MATRIX, "a table of round trips needs from, to (or sender, rece"),
        (ROUND_TRIPS + "Oregon,Virginia,200,1\n", MATRIX, "row 7: Virginia to Oregon stands there twice; leave one"),
        ("", MATRIX, "has the columns (none)"),
        (None, MATRIX, "is no file"),
        (ROUND_TRIPS, MATRIX + 'delay = "1ms"\n', "delay and round_trip are given; write one of them"),
    ],
)  # fmt: skip
def test_a_table_of_round_trips_that_does_not_fit_says_where(tmp_path, table, matrix, says):
    if table is not None:
        (tmp_path / "table.csv").write_text(table)
    (tmp_path / "wan.toml").write_text(matrix)
    with pytest.raises((UsageError, EmulationUsageError)) as caught:
        network_from(str(tmp_path / "wan.toml"), 3)
    assert says in str(caught.value)
