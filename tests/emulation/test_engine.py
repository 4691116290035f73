"""Engines that cannot be used: each says of itself what it is, over a socket as an engine's."""

import json
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from emulation.errors import CapabilityError
from emulation.nodes.engine import engine


class Answers(BaseHTTPRequestHandler):
    """What is asked of an engine before anything else."""

    about: dict

    def do_GET(self):
        body = json.dumps({"ApiVersion": "1.41"} if self.path.endswith("/version") else self.about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "the driver"

    def log_message(self, format: str, *args) -> None:
        """Nothing."""


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine_that_says(tmp_path, monkeypatch):
    """`engine_that_says(about)`: from then on it is this machine's."""
    client = tmp_path / "docker"
    client.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    servers = []

    def start(about):
        servers.append(Server(f"{tmp_path}/docker.sock", type("Handler", (Answers,), {"about": about})))
        threading.Thread(target=servers[0].serve_forever, daemon=True).start()

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"OperatingSystem": "Docker Desktop"}, "virtual machine"),
        ({"OperatingSystem": "Debian", "SecurityOptions": ["name=seccomp", "name=rootless"]}, "other users"),
        ({"OperatingSystem": "Debian", "SecurityOptions": ["name=userns"]}, "other users"),
    ],
)
def test_engines_whose_containers_cannot_be_reached_are_refused(engine_that_says, about, said):
    """Before anything is created, with what to do instead."""
    engine_that_says(about)
    with pytest.raises(CapabilityError, match=said) as caught:
        engine()
    assert "docker compose" in " ".join(f"{caught.value}".split())
    assert "netns nodes need no engine" in f"{caught.value}"


def test_an_ordinary_engine_is_not(engine_that_says):
    """The negative control."""
    engine_that_says({"OperatingSystem": "Debian", "SecurityOptions": ["name=apparmor", "name=seccomp"]})
    engine().close()
