"""How strong the suite is: plants small faults, one at a time, and sees whether the tests that should notice do.

    .venv/bin/python benchmarks/guards.py               # what was not tried since its function or its tests changed
    .venv/bin/python benchmarks/guards.py merge Tbf     # those whose function is called so
    .venv/bin/python benchmarks/guards.py --survivors   # the whole suite over what the expected tests let pass
    .venv/bin/python benchmarks/guards.py --check       # only whether every fault still finds its place

Each fault edits a named function, wherever its file is, in a copy of the last commit; its tests stop at the first
failure. Without a fault the same tests must pass, or nothing is said. Results are in benchmarks/guards.jsonl, by fault
and by the text of its function and its tests: what is unchanged is not tried again. `noticed`: a test failed, or a
test's time was up; `survived`: all passed; `broken`: no test ran.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "guards.jsonl"
PACKAGES = ("emulation", "testbed")
_SECONDS = 600
_WHOLE = ["tests"]
_MOMENTS = itertools.count(10**9)
"""Times of change of the files with a fault, in seconds, each once: by these, and not by the clock, compiled modules
are known to be old."""


@dataclass(frozen=True)
class Fault:
    """In `function` (qualified name), `old` becomes `new`, and `tests` (files, apart by blanks) should notice."""

    function: str
    old: str
    new: str
    tests: str

    @property
    def key(self) -> str:
        """Of its result."""
        return f"{self.function}: {self.old} -> {self.new}"


_QUICK = "tests/emulation/test_quick.py"
_GREETING = "tests/parallel/test_greeting.py"
_HOSTILE = "tests/test_hostile.py"
_UNITS = "tests/emulation/test_units.py"
_TC = "tests/emulation/test_tc.py"
_NET = "tests/emulation/test_network.py"
_SCHEDULE = "tests/emulation/test_schedule.py"
_VERIFY = "tests/emulation/test_judgement.py tests/emulation/test_verify.py tests/emulation/test_controls.py"
_LEDGER = "tests/parallel/test_transport.py tests/collector"
_EXCHANGES = "tests/parallel/test_exchanges.py tests/parallel/test_attention.py"
_BYTES = "tests/parallel/test_bytes.py"
_WIRE = "tests/codecs/test_wire.py"
_CODECS = "tests/codecs"
_DATA = "tests/data"
_OPTIMIZER = "tests/trainer/test_optimizer.py"
_CHECKPOINT = "tests/trainer/test_checkpoint.py"
_GRID = "tests/sweep/test_grid.py"
_COMPOSE = "tests/analysis/test_compose.py"
_PACE = "tests/test_pace.py"
_IDS = "tests/parallel/test_ids.py"
_SNAPSHOT = "tests/data/test_snapshot.py"
_QUALITY = "tests/analysis/test_quality.py"
_MODEL = "tests/test_model.py tests/parallel/test_exchanges.py"

FAULTS = tuple(
    Fault(*each)
    for each in (
        # the network, as text and as data
        ("parse_rate", "if not 0 < rate", "if not 0 <= rate", _UNITS),
        ("_whole", "value.denominator != 1", "False", _UNITS),
        ("_format", "sorted(table.items(), key=lambda item: -item[1])", "table.items()", _UNITS),
        ("parse_delay", "delay > LARGEST_DELAY_US", "False", _UNITS),
        ("Network.path", "min(rates, default=None)", "max(rates, default=None)", f"{_NET} tests/test_networks.py"),
        ("Network.mtu_of", "min(own.get", "max(own.get", f"{_NET} tests/test_networks.py {_TC}"),
        ("Network.round_trip_us", " + self.path(target, source).delay_us", "", f"{_NET} {_TC} tests/test_networks.py"),
        ("Network.pairs", "in self.peers(node)", "in self.peers(node)[:1]", f"{_NET} {_TC}"),
        ("Link.down_bps", "if self.rate_down_bps is None else self.rate_down_bps", "", f"{_NET} {_TC}"),
        ("Link.impaired", "self.delay_us or self.loss", "self.delay_us", f"{_NET} {_TC} {_SCHEDULE}"),
        ("Link.smallest_burst", "max(1.0, self.loss / (1.0 - self.loss))", "1.0", f"{_NET} {_SCHEDULE}"),
        # shapers
        ("Tbf.lines", "tbf rate {self.rate_bps}bit", "tbf rate {self.rate_bps // 2}bit", _TC),
        ("Tbf.lines", "burst {self.sizes.burst_bytes}b", "burst {4 * self.sizes.burst_bytes}b", _TC),
        ("HtbClass.lines", "htb rate {self.rate_bps}bit", "htb rate {self.rate_bps // 2}bit", _TC),
        ("HtbClass.lines", "match ip dst", "match ip src", f"{_TC} tests/emulation/test_netns.py"),
        ("Pfifo.lines", "self.netem.words() if self.netem else", "", f"{_TC} tests/emulation/test_netns.py"),
        ("node_shapers", "link.down_bps, segments", "link.rate_bps, segments", _TC),
        ("_overhead", "- ETHERNET_HEADER_BYTES", "- FRAMING_BYTES[network.framing]", _TC),
        ("_bytes_of", "ticks * TICK_NS", "2 * ticks * TICK_NS", f"{_TC} tests/emulation/test_netns.py"),
        ("_options", '"overhead_bytes": fields[2],\n            "burst', '"overhead_bytes": 0,\n            "burst',
         f"{_TC} tests/emulation/test_netns.py"),
        ("decode_filter", "mask == b", "True or mask == b", f"{_TC} tests/emulation/test_netns.py"),
        ("WireCounter.read", '+ rx["drops"]', "", "tests/emulation/test_netns.py tests/emulation/test_live.py"),
        # proofs of links
        ("check", 'abs(each.off) > allowed.rate', "False", _VERIFY),
        ("check", 'each.off > allowed.rate]', "False]", _VERIFY),
        ("check", 'each.first_ratio > 1 + allowed.rate', "False", _VERIFY),
        ("_ping_problems", "abs(ping.median_us - expected) > slack", "False and slack > 0", _VERIFY),
        ("loss_problems", 'not loss.lowest <= loss.loss <= loss.highest', "False",
         "tests/emulation/test_delays.py tests/emulation/test_verify.py"),
        ("prove", "ok=clean == needed", "ok=True", _VERIFY),
        # changes over time
        ("Schedule._own", "number * (self.repeat_seconds or 0.0)", "number * 1.0", _SCHEDULE),
        ("Schedule._own", "if at >= seconds", "if at > seconds", _SCHEDULE),
        ("Schedule.events_until",
         "heapq.merge(*parts, key=_time)", "iter(sorted((e for part in parts for e in part), key=_time))", _SCHEDULE),
        ("Fault.check", "named.count(node.index) != 1", "False", _SCHEDULE),
        ("_check_same_kind", "_without_rate(before) != _without_rate(after)", "False", _SCHEDULE),
        ("_samples", "for sign in (-1, 1)", "for sign in (1,)", _SCHEDULE),
        # the ledger
        ("socket_bytes", "acked += struct", "acked = struct", _LEDGER),
        ("balance", "sockets.acked != handed_bytes", "False", f"{_LEDGER} tests/runs/test_guards.py"),
        ("balance", "least - allowed <= wire_bytes <= most + allowed", "least - allowed <= wire_bytes",
         f"{_LEDGER} tests/runs/test_guards.py"),
        ("predicted_wire_bytes", " + HEADER_BYTES * sockets.segments", "",
         f"{_LEDGER} tests/emulation/test_netns.py tests/runs/test_guards.py"),
        # attention and exchanges
        ("merge", "(lse_2 - base)", "(lse_1 - base)", _EXCHANGES),
        ("block_attention", "lse = lse.masked_fill((additive == -torch.inf).all(-1), -torch.inf)", "pass", _EXCHANGES),
        ("_scores", "there > here", "there >= here", _EXCHANGES),
        ("rotate", "(-second, first)", "(second, first)", "tests/test_model.py"),
        ("Layout.chunks", "2 * self.world - 1 - rank", "self.world + rank", _EXCHANGES),
        ("Layout.check", "if context % chunks", "if False", "tests/parallel tests/trainer/test_weights.py"),
        ("_Call.sender", "rank - hop", "rank + hop", _EXCHANGES),
        ("_plus", "else a + b", "else a", _EXCHANGES),
        ("_Ring.backward", "dq = dq + dq_far", "dq = dq", _EXCHANGES),
        ("Ring.traffic", "direction, world - 1)\n        return", "direction, world)\n        return", _BYTES),
        ("Layer.feed_forward", "F.silu", "F.gelu", "tests/test_model.py"),
        # codecs
        ("Integer.pack", "(low & 0xF) | (high << 4)", "(high & 0xF) | (low << 4)", _WIRE),
        ("Integer.pack", ".round_()", "", f"{_WIRE} tests/codecs/test_quantised.py"),
        ("Integer.nbytes", "2 * groups + codes", "groups + codes", f"{_WIRE} {_BYTES}"),
        ("Indices.nbytes", "min(shape[-1] * self.item, -(-self.width // 8))", "shape[-1] * self.item", _WIRE),
        ("TopK.encode", ".detach().abs()", ".detach()", "tests/codecs/test_topk.py"),
        ("Quantised._rotated", "not self.config.hadamard", "True", "tests/codecs/test_quantised.py"),
        # data
        ("Vocabulary.__init__", ' and self._ids("Hello world") == GPT2_HELLO_WORLD', "", f"{_DATA}/test_tokens.py"),
        ("Vocabulary.__init__", "self.vocabulary == GPT2_VOCABULARY and ", "", f"{_DATA}/test_tokens.py"),
        ("_cut_back", "file.truncate(size)", "pass", _DATA),
        ("_asked", "(last < chunk_start) == remote", "True", f"{_DATA}/test_recall.py"),
        ("RecallMix._sequence", "counted[position] = False\n", "pass\n", f"{_DATA}/test_recall.py"),
        ("RecallMix._sequence", "facts[key] = (fact, position + 1)", "pass", f"{_DATA}/test_recall.py"),
        # checkpoints, cells, composition, pace
        ("identity", '"seed": seed, ', "", _CHECKPOINT),
        ("_state", 'moments["exp_avg"], moments["exp_avg_sq"] =', "moments_ = 0; _, _ =", _CHECKPOINT),
        ("prune", "own[:-_KEEP]", "own", _CHECKPOINT),
        ("steps_held", "for part in parts", "for part in parts[:1]", f"{_CHECKPOINT} tests/trainer/test_launch.py"),
        ("Timed.asked", '"seed": settings.seed,', "", _GRID),
        ("Timed.asked", 'if key != "name"', "", _GRID),
        ("compose", "step // (sync_every or 1)", "step // (sync_every or 1) + 1", _COMPOSE),
        ("_walks", "/ math.sqrt(len(known))", "", _COMPOSE),
        ("known_within", "len(values) < 3", "len(values) < 1", _COMPOSE),
        ("t_quantile", "* math.sqrt(freedom)", "", _COMPOSE),
        ("plan_for", "+ 2 * forward,", "+ forward,", _PACE),
        ("Pace.ballast", "return size - payload", "return size", f"{_PACE} {_BYTES}"),
        ("at_target", "round(given * far / near)", "given", "tests/codecs/test_at_target.py"),
        ("_check_size", "if silent", "if False", "tests/codecs/test_at_target.py"),
        ("learning_content", '"data": data_identity(data),', "", "tests/runs/test_identity.py"),
        ("Cell.config", ', "content": plain_json(self.content)', "", "tests/runs/test_identity.py"),
        ("check_host", "if asked.get(part) != here.get(part)", "if False", "tests/runs/test_identity.py"),
        ("CommandCell.hash", ', "content": self.content', "", "tests/runs/test_identity.py"),
        ("_tree", "{_definition(root, node.module, alias.name)}", "", "tests/runs/test_identity.py"),
        ("judged", "median_low(good)", "max(good)", "tests/runs/test_validity.py"),
        ("_too_short", "(1 - _FASTER) * least", "0 * least", "tests/runs/test_validity.py"),
        ("judged", " and not _too_short(each, floor)", "", "tests/runs/test_validity.py"),
        ("resends", "share > _RESENT else", "False else", "tests/runs/test_validity.py"),
        ("_Ear._said", "yield _SAID[kind]", "pass", "tests/emulation/test_notices.py"),
        ("_Ear._said", "if _settings(found) not in self._known", "if False", "tests/emulation/test_notices.py"),
        ("Files.__init__", '"sha256": digest_of_files(self._files),', "", "tests/data/test_content.py"),
        ("_tensors", "file_sha256(path) != sha256", "False", _CHECKPOINT),
        ("_check_alike", "(theirs.shape, theirs.dtype) != (tensor.shape, tensor.dtype)", "False", _CHECKPOINT),
        ("Clock._run", "now > deadline[0] + stood_still", "False", "tests/trainer/test_watchdog.py"),
        ("name_nodes", '*names])', '])', "tests/runs/test_execute.py"),
        ("_said", '.split("\\r")', '.split("\\n")', "tests/sweep/test_grid.py"),
        ("_held", "if busy and not share", "if False", "tests/runs/test_cli.py"),
        ("identity", '"data": data', '"data": ""', _CHECKPOINT),
        ("Rate.serve", "self.left_bytes -= (until_ns - self.until_ns) * self.bytes_per_ns", "pass", _QUICK),
        ("Rate.put", "self.held_bytes + size > self.limit_bytes", "False", _QUICK),
        ("Schedule.quick", "> QUICK_SHARE * seconds * rate", "> 9 * QUICK_SHARE * seconds * rate", _QUICK),
        ("Schedule._check_relay", "or total > QUICK_TOTAL_BPS", "", _QUICK),
        ("Schedule.highest", "event.at_seconds > 0 or len(states) > 1", "True", _QUICK),
        ("Player._record_told", "self._told[0][0] <= self._elapsed()", "True", _QUICK),
        ("Player._end", "self._backend.change(self._now)", "pass", _QUICK),
        ("_accepted", "if left > 0 else None", "", _GREETING),
        ("_introduced", "if not hmac.compare_digest(proof,", "if False and not hmac.compare_digest(proof,", _GREETING),
        ("call", "if not hmac.compare_digest(answer[_NONCE_BYTES:],", "if len(answer) < len(", _GREETING),
        ("Secret.proof", "role.encode(), caller, acceptor", "b'', caller, acceptor", _GREETING),
        ("find_secret", "_SHORTEST <= len(words)", "0 <= len(words)", _GREETING),
        ("legible", "each.isprintable()", "True", _HOSTILE),
        ("_shortened", "len(text) <= longest", "True", _HOSTILE),
        ("at_least", "value >= 1 << 63", "False", _HOSTILE),
        ("judge", "GRAIN_SECONDS / max(seconds, 1e-9)", "0.0", "tests/collector/test_fidelity.py"),
        ("_one_way", "round(ways[0] * 500)", "round(ways[0] * 1000)", "tests/test_networks.py"),
        # planted by hand first, for they were in no list
        ("all_reduce", "total += mine[rank] if message", "total += 0 if message", "tests/trainer/test_weights.py"),
        ("Line.lost", "return self.random.random() < self.loss", "return False", "tests/emulation/test_delays.py"),
        ("check_isolation", "if problems:", "if False:", "tests/emulation/test_netns.py"),
        ("_as_shell", "return 128 - code if code < 0 else code", "return 0", "tests/runs/test_execute.py"),
        # the null that sends token ids, a task that it cannot solve, and what is recovered beyond it
        ("Ids._make", "number + 1 < self.layers", "False", _IDS),
        ("Ids.read", "max(self.layout.chunks", "min(self.layout.chunks", _IDS),
        ("Ids._begin", "layer < len(self._made)", "layer < 1", _IDS),
        ("Ids.traffic", "ID_BYTES * batch", "batch", _IDS),
        ("_window", "(back >= 0) &", "", _IDS),
        ("_window", "back <= (", "back < (", _IDS),
        ("InProcess.read", "here[:, None] - window", "here[:, None] - window + 1", _IDS),
        ("made_flops", "(depth - 1)", "depth", _IDS),
        ("Snapshot._held", "if not whole:", "if whole:", _SNAPSHOT),
        ("Snapshot._places", "self._registers - 1 + lead", "self._registers", _SNAPSHOT),
        ("Snapshot._asked", "rng.permutation(marks * self._registers)", "rng.integers(marks, size=marks)", _SNAPSHOT),
        ("Snapshot._sequence", "held[registers, holding[asked]]", "held[registers, holding[asked] - 1]", _SNAPSHOT),
        ("_best_null", "losses[there].min(axis=1)", "losses[there].max(axis=1)", _QUALITY),
        ("_best_null", "set(there) != set(nulls)", "False", _QUALITY),
        ("_best_null", "shows and worth > 0 and", "", _QUALITY),
        ("_comparable", '["tokens"]', '["steps"] * 0', _QUALITY),
        ("check_snapshot", "data.marks < most", "False", _SNAPSHOT),
        ("_best_null", "gap.low > WORTH", "gap.mean > WORTH", _QUALITY),
        ("_beyond", "not null.counts", "False", _QUALITY),
        ("_beyond", "arm.val_loss_above_exact.high", "arm.val_loss_above_exact.mean", _QUALITY),
        ("parse", "not __debug__", "False", "tests/runs/test_cli.py"),
        ("Codec.pack", "packed[-1].numel() != wire.nbytes(direction)", "False", "tests/runs/test_own_codec.py"),
        ("Fidelity.read", 'delays["dropped"]', "0", "tests/collector/test_fidelity.py"),
        # a warm start whose contexts grow, what may be known without an exchange
        ("Preset.short_context", "step * len(self.short_contexts)", "0", "tests/trainer/test_loop.py"),
        ("guessed", "range(1, data.values + 1)", "range(1, data.values)", _SNAPSHOT),
        ("relate", "void_reason(arms, guess)", "void_reason(arms)", "tests/analysis/test_relations.py"),
        ("_say_where", "if not report:", "if False:", "tests/runs/test_emulate.py"),
        # token ids in paced time
        ("plan_for", "target.tokens_per_node) * (target.nodes - 1)", "target.tokens_per_node)", "tests/test_pace.py"),
        ("Pace.first_ballast", "self.plan.first_bytes - payload", "0", "tests/test_pace.py"),
        ("Pace.after_first", "self.shift(spent)", "pass", "tests/test_pace.py"),
        # starting ranks, and what their machine carries
        ("AdamW.step", "inspect.unwrap(torch.optim.AdamW.step)(self, closure)", "None", _OPTIMIZER),
        ("AdamW.__init__", "weight_decay=weight_decay, fused", "fused", _OPTIMIZER),
        ("capacity", "datagrams(probers, backend.network.unshaped())", "([], [])", "tests/emulation/test_verify.py"),
        ("standard_library_files", "if name not in _INSTALLED", "if True", "tests/data/test_batch.py"),
        ("standard_library_files", "if not path.is_symlink()", "if True", "tests/data/test_batch.py"),
        # two runs side by side
        ("differences", "left.get(what) != right.get(what)", "False", "tests/runs/test_differences.py"),
        ("_apart", "> sum(known)", "> 10 * sum(known)", "tests/runs/test_differences.py"),
        # names and the machine
        ("check_name", "_NAME.fullmatch(name)", "name", "tests/runs/test_cli.py tests/runs/test_settings.py"),
    )
)  # fmt: skip


def place(top: Path, fault: Fault) -> tuple[Path, str, str]:
    """The one file in whose function the fault can be planted, its text with the fault, and the function's without;
    ValueError if not one."""
    found = []
    for file in sorted(path for package in PACKAGES for path in (top / package).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if fault.function.split(".")[-1] not in text or fault.old not in text:
            continue
        lines = text.splitlines(keepends=True)
        for name, node in _functions(ast.parse(text)):
            body = "".join(lines[node.lineno - 1 : node.end_lineno])
            if name == fault.function and body.count(fault.old) == 1:
                start, end = "".join(lines[: node.lineno - 1]), "".join(lines[node.end_lineno :])
                found.append((file, start + body.replace(fault.old, fault.new) + end, body))
    if len(found) != 1:
        raise ValueError(f"{len(found)} places for a fault, where one should be: {fault.key}")
    compile(found[0][1], str(found[0][0]), "exec")
    return found[0]


def fingerprint(top: Path, fault: Fault) -> str:
    """Of its function and of the tests that should notice, by which a result is known to be of both."""
    parts = [place(top, fault)[2]]
    for name in fault.tests.split():
        files = sorted((top / name).rglob("*.py")) if (top / name).is_dir() else [top / name]
        parts += [file.read_text(encoding="utf-8") for file in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            found.append((prefix + node.name, node))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found += _functions(node, f"{prefix}{node.name}.")
    return found


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def copy_of(place: Path) -> Path:
    """The last commit, in a folder."""
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        tar.extractall(place, filter="data")
    return place


def tried(top: Path, tests: list[str], *, many: bool = False) -> tuple[str, str]:
    """What became of it, and which test said so first; `many` tests run side by side. Run this on an idle machine."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    words += ["-o", "addopts=", "--timeout", "120", "-m", "not acceptance"]
    words += ["-n", "3", "--dist", "loadscope"] if many else []
    environment = {**os.environ, "PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen(
        words + tests, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = process.communicate(timeout=3 * _SECONDS if many else _SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        return "noticed", f"nothing ended within {_SECONDS} s"
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if process.returncode == 0:
        return "survived", ""
    if process.returncode == 1 or any("::" in line or ".py" in line for line in failed):
        return "noticed", failed[0].split(" - ")[0].split(" ", 1)[-1] if failed else said[-200:]
    return "broken", said[-500:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only faults in functions with one of these in their name")
    parser.add_argument("--check", action="store_true", help="plant nothing; does every fault find its place?")
    parser.add_argument("--survivors", action="store_true", help="once more, over the whole suite")
    asked = parser.parse_args()
    chosen = [each for each in FAULTS if not asked.names or any(name in each.function for name in asked.names)]
    if not chosen:
        parser.error(f"no fault is in a function called {' or '.join(asked.names)}")
    if asked.check:
        for fault in chosen:
            place(ROOT, fault)
        print(f"{len(chosen)} faults, each with its one place")
        return 0
    done = _done()
    with tempfile.TemporaryDirectory() as folder:
        top = copy_of(Path(folder))
        current = {fault.key: fingerprint(top, fault) for fault in chosen}
        found = {key: line for key, line in done.items() if line["of"] == current.get(key)}
        known = {key for key, line in found.items() if not (asked.survivors and line["result"] == "survived")}
        again = [fault for fault in chosen if fault.key not in known]
        print(f"{len(again)} of {len(chosen)} faults to try", flush=True)
        whole = sorted({test for each in again for test in each.tests.split()})
        if whole:
            result, by = tried(top, whole, many=True)
            if result != "survived":
                print(f"without any fault: {result}, {by}", file=sys.stderr)
                return 1
        for fault in again:
            file, text, _ = place(top, fault)
            before = file.read_text(encoding="utf-8")
            tests = _WHOLE if asked.survivors else fault.tests.split()
            _put(file, text)
            result, by = tried(top, tests, many=asked.survivors)
            _put(file, before)
            found[fault.key] = {"fault": fault.key, "of": current[fault.key], "commit": commit()[:12]}
            found[fault.key] |= {"tests": " ".join(tests), "result": result, "by": by}
            print(f"{result:9} {fault.key!r} {by}", flush=True)
            _keep(_done() | {fault.key: found[fault.key]})
    results = [found[fault.key]["result"] for fault in chosen]
    noticed = results.count("noticed")
    print(f"{noticed} of {len(results)} noticed ({noticed / len(results):.0%}), {results.count('broken')} broken")
    return 0


def _put(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    moment = next(_MOMENTS)
    os.utime(file, (moment, moment))


def _done() -> dict[str, dict]:
    """The latest result of each fault."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {found["fault"]: found for found in map(json.loads, lines)}


def _keep(results: dict[str, dict]) -> None:
    """Those of faults that are in the list, in its order."""
    lines = [json.dumps(results[fault.key]) + "\n" for fault in FAULTS if fault.key in results]
    part = RESULTS.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
