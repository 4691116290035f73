"""What namespaces are held to, containers are: tests of links, delays, faults, counters and their guards, taken from
tests/emulation, on containers shaped by root and on containers shaped by others beside them."""

import os
import sys
from pathlib import Path

import pytest

from tests.docker.conftest import IMAGE
from tests.emulation import test_controls, test_delays, test_live, test_netns, test_quick, test_verify
from tests.emulation.conftest import in_world
from tests.worlds import needs_world

SUITE = {
    test_controls: ("a_network_that_is_wrong_is_found", "a_way_past_the_links_shows_in_the_bytes"),
    test_delays: (
        "a_broken_delay_line_is_found",
        "a_dead_relay_lets_nothing_pass",
        "a_delay_changes_in_place_and_goes_again",
        "a_wrong_delay_is_found",
        "paths_differ_where_links_do",
    ),
    test_live: (
        "a_fault_that_is_changed_behind_our_back_is_found",
        "a_link_goes_down_and_up",
        "a_loss_that_comes_meets_every_packet_on_its_own",
        "a_rate_changes_in_the_middle_of_a_flow",
        "delay_and_loss_come_and_go",
        "partitions_and_links_down_decide_who_reaches_whom",
    ),
    test_netns: (
        "a_second_path_is_found",
        "an_idle_network_carries_no_byte",
        "counters_work_from_inside_a_node_and_across_reshaping",
        "every_segments_header_is_counted",
        "the_kernel_has_what_was_asked_for_also_after_reshaping",
        "with_eth0_down_no_byte_reaches_a_peer",
    ),
    test_quick: (
        "every_second_carries_what_the_trace_has",
        "rates_that_are_not_what_was_asked_for_end_playing",
    ),
    test_verify: ("a_wrong_link_is_found",),
}
for module, names in SUITE.items():
    globals().update({f"test_{name}": getattr(module, f"test_{name}") for name in names})

pytestmark = [pytest.mark.world, needs_world, pytest.mark.timeout(900)]  # the first builds an image

PRELUDE = f"""
import re
from emulation.nodes.docker import DockerBackend
from emulation.nodes.sidecars import SidecarBackend

sys.executable = "python"  # of a node
def NetnsBackend(network, **options):
    return KIND(network, run="acceptance", image={IMAGE!r}, **options)

NAMESPACE = r"\\b(ip|tc) -n (switch|\\S+)|ip netns exec (switch|\\S+)"
def beside(found):
    name = found[2] or found[3]
    return f"docker exec -i testbed-acceptance-{{name if name == 'switch' else name + '-shaper'}} {{found[1] or ''}}"

def sh(text, check=True, of_namespaces=sh):
    return of_namespaces(text if KIND is DockerBackend else re.sub(NAMESPACE, beside, text), check)

"""


NO_WAY = ('"loopback", node', '"shared memory", node')
"""Past the links, which containers do not have."""
ROOTS_OWN = {
    "delay_line.pid, signal.SIGSTOP": "the relay is in its container: test_a_relay_beside_that_stops_is_found",
    "type veth peer name x1 netns n1": "a node's shaper has no way into another's network",
}
"""What only root can do to a network, and so to that of containers which root shapes."""


@pytest.fixture(params=["DockerBackend", "SidecarBackend"])
def world(request, image, shaper_image):
    """As the fixture of tests/emulation, with `NetnsBackend` and `sh` for containers."""

    def run(body, timeout=60, prelude=""):
        if any(words in body for words in NO_WAY):
            pytest.skip("containers share neither loopback nor memory")
        if request.param == "SidecarBackend":
            for words, why in ROOTS_OWN.items():
                if words in body:
                    pytest.skip(why)
        own, path = f"{PRELUDE}KIND = {request.param}\n", f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        host = {"DOCKER_HOST": os.environ["DOCKER_HOST"]} if "DOCKER_HOST" in os.environ else {}
        return in_world(body, timeout + 30, prelude=own + prelude, beside_engine=True, PATH=path, **host)

    return run


@pytest.mark.parametrize("world", ["SidecarBackend"], indirect=True)
def test_a_relay_beside_that_stops_is_found(world):
    """Though the engine's client, which is all that the driver sees of it, goes on."""
    said = world("""
from emulation.nodes.helper import signal_programs
with NetnsBackend(net(2, "50mbit", "nic", delay_us=10_000), delays="delay line") as backend:
    backend.check_alive()
    backend._helpers["switch"].ask(signal_programs, int(signal.SIGSTOP))
    time.sleep(3.5)
    try:
        backend.check_alive()
    except LinkError as error:
        return str(error)
""")
    assert "silent" in said
