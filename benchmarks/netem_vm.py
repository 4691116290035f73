"""Run a command under Debian's own kernel, for machines whose kernel has no netem.

    python benchmarks/netem_vm.py [--results DIR] [--cache DIR] [--timeout 1800] -- COMMAND…

The kernel boots under qemu, emulated in software, in about 5 seconds; nothing is installed. The guest has two cores and
2 GiB, and sees this machine's files read-only, with its own /tmp and /run in memory. It runs COMMAND in the checkout as
root; what that writes below $RESULTS is left in DIR. Its output (both streams) and exit status become this program's;
124: not done within the timeout.

Needs an x86-64 Debian 12 with the packages qemu-system-x86 and apt. The packages linux-image-amd64 and busybox-static
(72 MB) are fetched by `apt-get download` the first time and unpacked into the cache (0.4 GB).

Programs run about 15 times as slowly as outside, so only the network's figures mean something, and a test that asks for
speed fails. Measured on two cores: netem's 10 ms take 10.3 to 10.4 ms (99 %: below 13 ms), and a round trip of a Python
program 1 to 3 ms more. Links between two nodes are carried within 2 % up to 100 Mbit/s, mostly up to 300. With a dozen
flows at 10 Mbit/s, where a bucket holds few packets, single links measure down to three quarters of their rate.
"""

import argparse
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "dpkg": "dpkg", "apt-get": "apt", "apt-cache": "apt"}
MODULES = """
    crc32c_generic virtio_pci 9pnet_virtio 9p virtio_console virtio_rng
    veth bridge ifb sch_netem sch_tbf sch_htb sch_ingress sch_fq cls_u32 cls_fw cls_matchall act_gact act_mirred
    nfnetlink_queue ip_tables iptable_mangle xt_NFQUEUE xt_tcpudp nf_tables nft_queue nft_compat tcp_bbr
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "RESULTS": "/tmp/results",
}
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 psi=1 mitigations=off nopti tsc=reliable"
MARKER = "netem_vm: exit status"

# Process 1 while there is only the initramfs, and its successor on this machine's files.
INIT = """#!/busybox sh
set -e
busybox=/busybox
for module in {modules}; do $busybox insmod /$module; done
$busybox mount -t devtmpfs none /dev
share() {{ $busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,$3 $1 $2; }}
share root /lower ro,cache=loose
$busybox mount --bind /lower /guest
$busybox mount -t proc none /guest/proc
$busybox mount -t sysfs none /guest/sys
$busybox mount --move /dev /guest/dev
for folder in dev/shm dev/pts; do $busybox mkdir -p /guest/$folder; done
for folder in tmp run var/tmp dev/shm; do $busybox mount -t tmpfs -o mode=1777 none /guest/$folder; done
$busybox mount -t devpts none /guest/dev/pts
$busybox ln -sf /proc/self/fd /guest/dev/fd
$busybox mkdir -p /guest{results} /guest{here} /guest/run/guest
$busybox mount --bind /lower{here} /guest{here}
share results /guest{results} rw,cache=none
$busybox ip link set lo up
for device in ifb0 ifb1; do $busybox ip link del $device; done
$busybox hostname localhost
$busybox cp /busybox /main /guest/run/guest
exec $busybox switch_root /guest /bin/sh /run/guest/main
"""
MAIN = """cd {here}
echo 1 > /proc/sys/kernel/printk
env -i {environment} {command} > /dev/vport0p1 2>&1 < /dev/null
echo "{marker} $?" > /dev/ttyS0
/run/guest/busybox poweroff -f
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slowlink-testbed" / "netem-vm"
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--results", type=Path, metavar="DIR", help="gets what the guest writes below $RESULTS")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    options = parser.parse_args()
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        fail(f"the Debian packages {', '.join(missing)} are missing: type 'sudo apt-get install {' '.join(missing)}'")
    kernel = fetched(options.cache, "linux-image-amd64")
    busybox = fetched(options.cache, "busybox-static")
    with tempfile.TemporaryDirectory(prefix="netem-vm-") as folder:
        results = (options.results or Path(folder, "results")).resolve()
        results.mkdir(parents=True, exist_ok=True)
        initramfs = Path(folder, "initramfs")
        initramfs.write_bytes(archive(kernel, busybox / "bin" / "busybox", options.command))
        (image,) = kernel.glob("boot/vmlinuz-*")
        console = Path(folder, "console")
        return run(qemu(image, initramfs, results, console), console, options.timeout)


def fail(why: str) -> NoReturn:
    print(f"netem_vm: {why}.", file=sys.stderr)
    sys.exit(2)


def fetched(cache: Path, package: str) -> Path:
    """The folder with the unpacked files of a Debian package, or of the one that a meta package stands for."""
    target = cache / package
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False)
            real = re.search(rf"Depends: ({package.rpartition('-')[0]}-\d\S+)", depends.stdout)
            name = real[1] if real else package
            done = subprocess.run(["apt-get", "-q", "download", name], cwd=folder, stdout=sys.stderr, check=False)
            if done.returncode != 0:
                fail(f"the Debian package {name} cannot be fetched: try 'sudo apt-get update'")
            (deb,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg", "-x", deb, Path(folder, "files")], check=True)
            Path(folder, "files").rename(target)
    return target


def archive(kernel: Path, busybox: Path, command: list[str]) -> bytes:
    """The initramfs: busybox, modules, and what process 1 does."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in kernel.glob("lib/modules/*/kernel/**/*.ko*")}
    order = dict(needed(files, MODULES.split()))
    environment = shlex.join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    here = shlex.quote(str(Path(__file__).resolve().parents[1]))
    init = INIT.format(modules=" ".join(order), here=here, results=ENVIRONMENT["RESULTS"])
    then = MAIN.format(here=here, environment=environment, command=shlex.join(command), marker=MARKER)
    entries = [(name, 0o040755, b"") for name in ("dev", "lower", "guest")]
    entries += [("busybox", 0o100755, busybox.read_bytes()), ("init", 0o100755, init.encode())]
    entries += [("main", 0o100644, then.encode()), *((name, 0o100644, data) for name, data in order.items())]
    return b"".join(cpio(*entry) for entry in [*entries, ("TRAILER!!!", 0, b"")])


def needed(files: dict[str, Path], names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of modules, each after those that it depends on; built-in ones have no file."""
    for name in names:
        if name in files:
            data = files[name].read_bytes()
            data = lzma.decompress(data) if files[name].suffix == ".xz" else data
            depends = re.search(rb"\0depends=([^\0]*)", data)
            yield from needed(files, depends[1].decode().replace("-", "_").split(",") if depends else [])
            yield name, data


def cpio(name: str, mode: int, data: bytes) -> bytes:
    """One entry of an archive in the format `newc`."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def qemu(image: Path, initramfs: Path, results: Path, console: Path) -> list[str]:
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]
    argv += ["-kernel", str(image), "-initrd", str(initramfs), "-append", KERNEL_OPTIONS]
    argv += ["-serial", f"file:{console}", "-chardev", "stdio,id=out,signal=off", "-device", "virtio-serial"]
    argv += ["-device", "virtserialport,chardev=out,nr=1", "-device", "virtio-rng-pci"]
    share = "local,path={},mount_tag={},security_model=none,multidevs=remap"
    argv += ["-virtfs", share.format("/", "root") + ",readonly=on"]
    return [*argv, "-virtfs", share.format(str(results).replace(",", ",,"), "results")]


def run(argv: list[str], console: Path, timeout: float) -> int:
    """Run the guest, pass its output on, and return its command's exit status."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    start = time.monotonic()
    # A pipe as input, for qemu shuts the guest's port when its input ends.
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    said = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    status = re.search(rf"{MARKER} (\d+)", said)
    if status:
        return int(status[1])
    if time.monotonic() - start >= timeout:
        print(f"netem_vm: not done within {timeout:.0f} s.", file=sys.stderr)
        return 124
    fail(f"the guest ended without an exit status; its console:\n{said.strip()[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
