#!/usr/bin/env bash
# Linux 6.18, pyroute2 0.9.7: asking for one qdisc is told to every listener in the words of a change, and without
# NLM_F_ECHO to the asker not at all.
#
# Expected (rtnetlink(7): a request is answered to who sent it; groups are for changes): the asker gets RTM_NEWQDISC,
# and a listener in the group of traffic control hears nothing, for nothing has changed.
# Real: the kernel answers a request for one qdisc (no dump) through the same call that announces changes. The listener
# gets RTM_NEWQDISC each time somebody looks; the asker gets it too only if its request carries NLM_F_ECHO, and waits for
# an answer in vain otherwise. A dump is answered as expected.
#
# Why trainers over slow links meet it: a testbed listens for changes of its shapers, to know that a link was not altered
# while a step was timed, and reads the shapers' counters after every step. Each of its own looks is a false alarm, and a
# reader written after the manual hangs.
#
# Seen:
#   asked without echo: asker 0 answers, listener 1 notice
#   asked with echo: asker 1 answer, listener 1 notice
#   asked for all (dump): asker 1 answer, listener 0 notices
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyroute2==0.9.7"
cat >"$folder/look.py" <<'PY'
import select
import socket
import struct

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_TC
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

REQUEST, ECHO, DUMP, GETQDISC, ROOT = 0x1, 0x8, 0x300, 38, 0xFFFFFFFF

with IPRoute() as routes:
    index = routes.link_lookup(ifname="lo")[0]
    routes.link("set", index=index, state="up")
    routes.tc("add", "tbf", index, rate="1mbit", burst=16000, latency="50ms")


def sockets():
    ears = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    ears.bind((0, RTMGRP_TC))
    mouth = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    mouth.bind((0, 0))
    return ears, mouth


def qdiscs(sock):
    found = 0
    while select.select([sock], [], [], 0.5)[0]:
        parsed = MarshalRtnl().parse(sock.recv(1 << 16))
        found += sum(message["header"]["type"] == 36 for message in parsed)
    return found


def count(number, thing):
    return f"{number} {thing}{'' if number == 1 else 's'}"


for words, flags in (("without echo", 0), ("with echo", ECHO), ("for all (dump)", DUMP)):
    ears, mouth = sockets()
    body = struct.pack("=B3xiIII", 0, 0 if flags == DUMP else index, 0, 0 if flags == DUMP else ROOT, 0)
    mouth.send(struct.pack("=IHHII", 16 + len(body), GETQDISC, REQUEST | flags, 7, 0) + body)
    print(f"asked {words}: asker {count(qdiscs(mouth), 'answer')}, listener {count(qdiscs(ears), 'notice')}")
PY
own=$([ "$(id -u)" = 0 ] && echo "--net" || echo "--net --user --map-root-user")
# shellcheck disable=SC2086
unshare $own "$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
grep -q "^asked without echo: asker 0 answers, listener 1 notice$" "$folder/seen"
grep -q "^asked with echo: asker 1 answer, listener 1 notice$" "$folder/seen"
grep -q "^asked for all (dump): asker [1-9] answers\?, listener 0 notices$" "$folder/seen"
