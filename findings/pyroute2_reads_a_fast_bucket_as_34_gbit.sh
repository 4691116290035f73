#!/usr/bin/env bash
# pyroute2 0.9.7 (Linux 6.18): a token bucket (tbf) of 40 or 100 Gbit/s reads as 34.36 Gbit/s, an htb class of the same
# rate as what it is, and the limit of a bfifo as a text of four bytes.
#
# Expected: the rate that the kernel has, as `tc` shows it. A rate of 2^32 bytes a second and more (34.36 Gbit/s) does not fit
# into the old field; the kernel puts 2^32 - 1 there and the rate into an attribute of its own, for tbf TCA_TBF_RATE64 and
# TCA_TBF_PRATE64, for htb TCA_HTB_RATE64 and TCA_HTB_CEIL64 (linux/pkt_sched.h, since 3.13).
# Real: pyroute2's decoder of htb knows these attributes, its decoder of tbf ends before them: the saturated field is all that a
# caller gets, and nothing says that there was more. For a bfifo or pfifo it has no decoder, and gives the bytes in hex.
#
# Why trainers over slow links meet it: the other half of each comparison is a cluster's link. Whoever shapes 100 Gbit/s and
# proves it by reading it back finds 34.36, and either refuses a right link or, comparing with the same reader's value from
# before, passes any rate above that.
#
# Seen:
#   40gbit: tc 40Gbit, pyroute2 tbf 34359738360, htb 40000000000
#   100gbit: tc 100Gbit, pyroute2 tbf 34359738360, htb 100000000000
#   30gbit: tc 30Gbit, pyroute2 tbf 30000000000, htb 30000000000
#   bfifo of 1000000 bytes: 40:42:0f:00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyroute2==0.9.7"
cat >"$folder/look.py" <<'PY'
import re
import subprocess

from pyroute2 import IPRoute


def tc(words):
    return subprocess.run(["tc", *words.split()], check=True, capture_output=True, text=True).stdout


def options(message):
    return message.get_attr("TCA_OPTIONS")


def bits(found, parms, wide):
    return 8 * (found.get_attr(wide) or found.get_attr(parms)["rate"])


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with IPRoute() as route:
    (index,) = route.link_lookup(ifname="lo")
    for rate in ("40gbit", "100gbit", "30gbit"):
        tc(f"qdisc add dev lo root tbf rate {rate} burst 10mb limit 20mb")
        shown = re.search(r"rate (\S+)", tc("qdisc show dev lo")).group(1)
        (qdisc,) = [q for q in route.get_qdiscs() if q["index"] == index]
        bucket = bits(options(qdisc), "TCA_TBF_PARMS", "TCA_TBF_RATE64")
        tc("qdisc del dev lo root")
        tc("qdisc add dev lo root handle 1: htb")
        tc(f"class add dev lo parent 1: classid 1:1 htb rate {rate}")
        (one,) = route.get_classes(index)
        known = bits(options(one), "TCA_HTB_PARMS", "TCA_HTB_RATE64")
        tc("qdisc del dev lo root")
        print(f"{rate}: tc {shown}, pyroute2 tbf {bucket}, htb {known}")
    tc("qdisc add dev lo root bfifo limit 1000000")
    (qdisc,) = [q for q in route.get_qdiscs() if q["index"] == index]
    print("bfifo of 1000000 bytes:", options(qdisc))
PY
own=$([ "$(id -u)" = 0 ] && echo "--net" || echo "--net --user --map-root-user")
# shellcheck disable=SC2086
PATH="$PATH:/usr/sbin:/sbin" unshare $own "$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
grep -q "^40gbit: tc 40Gbit, pyroute2 tbf 34359738360, htb 40000000000$" "$folder/seen"
grep -q "^100gbit: tc 100Gbit, pyroute2 tbf 34359738360, htb 100000000000$" "$folder/seen"
grep -q "^30gbit: tc 30Gbit, pyroute2 tbf 30000000000, htb 30000000000$" "$folder/seen"
grep -q "^bfifo of 1000000 bytes: 40:42:0f:00$" "$folder/seen"
