"""Soak: hours of mixed load, and whether anything grows.

    PYTHONPATH=python:tests python -m faults.soak --minutes 60 --trace FILE.csv --out DIRECTORY

The load: streams with the lengths of a trace (cut to what a tiny model does in a moment), clients
that go away, that read slowly, that send nonsense. Beside it a canary. Every few seconds memory,
descriptors, blocks in use, processor time and the canary's gaps are written down; the report gives
slopes.

What is meant to grow grows first: every KV block, all the responses and grammars that are kept, and
by a burst of twice the clients without a pause the heaps, which keep what a peak took. What grows
after that is a leak, however slowly.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.serving import launcher
from e2e.tiny_model import make_tiny_model
from faults.odd_values import odd_request
from faults.plot import plot
from faults.wire import (
    ADMIN_KEY,
    Canary,
    baseline,
    connect,
    counters,
    num_descriptors,
    post,
    read_all,
    statuses,
)

if TYPE_CHECKING:
    from e2e.serving import Server

FLAGS = (
    "--enable-admin", "--client-timeout", "2", "--keep-alive-timeout", "2",
    "--disable-log-requests", "--scheduling-policy", "priority", "--max-num-seqs", "32",
)  # fmt: skip
NUM_CLIENTS = 6
RATE = 8.0  # deeds a second, of all clients
CANARY_PAUSE_S = 0.25
MAX_PROMPT, MAX_OUTPUT = 512, 128
NUM_RESPONSES, NUM_GRAMMARS = 1100, 1100  # more than are kept of each
NUM_PROMPTS = 700  # of MAX_PROMPT tokens: more blocks than there are

_LOG = logging.getLogger(__name__)


def lengths(trace: Path | None) -> list[tuple[int, int]]:
    """Prompt and output lengths of a trace, or a few that are like it."""
    if trace is None:
        return [(374, 44), (396, 109), (879, 55), (91, 16), (1313, 142), (200, 300)]
    with trace.open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]


class Load:
    """The clients. Each does one thing after another until stop()."""

    def __init__(
        self, server: Server, sizes: list[tuple[int, int]], rate: float, num: int = NUM_CLIENTS
    ) -> None:
        self._server = server
        self._sizes = sizes
        self._rate = rate / num
        self._is_over = threading.Event()
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(num)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once each client has finished what it does."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        chance = random.Random(f"{index}/{self._rate}")
        deeds = [self._read, self._cancel, self._read_slowly, self._be_odd, self._send_noise]
        while not self._is_over.is_set():
            deed = chance.choices(deeds, weights=[60, 15, 2, 15, 8])[0]
            name = deed.__name__.strip("_")
            self.counts[name] = self.counts.get(name, 0) + 1
            try:
                deed(chance)
            except OSError as error:
                self.faults.append(f"{name}: {error!r}")
            self._is_over.wait(chance.expovariate(self._rate))

    def _body(self, chance: random.Random) -> dict[str, Any]:
        num_prompt, num_output = chance.choice(self._sizes)
        prompt = [chance.randrange(2, 258) for _ in range(max(1, min(num_prompt, MAX_PROMPT)))]
        output = max(1, min(num_output, MAX_OUTPUT))
        return {"prompt": prompt, "max_tokens": output, "stream": True, "ignore_eos": True}

    def _read(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection:
            connection.sendall(post("/v1/completions", self._body(chance), "Connection: close"))
            received = read_all(connection)
        if statuses(received) != [200] or b"[DONE]" not in received[-40:]:
            self.faults.append(f"read: {received[-200:]!r}")

    def _cancel(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection:
            connection.sendall(post("/v1/completions", {**self._body(chance), "n": 2}))
            self._is_over.wait(chance.random() * 0.1)

    def _read_slowly(self, chance: random.Random) -> None:
        body = {**self._body(chance), "max_tokens": 1500, "logprobs": 5}
        with connect(self._server, 60, receive_bytes=4096) as connection:
            connection.sendall(post("/v1/completions", body))
            for _ in range(30):
                if self._is_over.wait(0.1) or not connection.recv(1):
                    return

    def _be_odd(self, chance: random.Random) -> None:
        path, body = odd_request(chance.randrange(10**9), seed=2)
        with connect(self._server, 60) as connection:
            connection.sendall(post(path, body, "Connection: close"))
            found = statuses(read_all(connection))
        if found[:1] and not (200 <= found[0] < 300 or 400 <= found[0] < 500):
            self.faults.append(f"odd: {found} {path} {json.dumps(body)[:300]}")

    def _send_noise(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(chance.randbytes(chance.randrange(1, 2000)) + b"\r\n\r\n")
            read_all(connection)


class Processes:
    """The server's processes by what they are."""

    def __init__(self, server: Server) -> None:
        self._pids = {"arbiter": server.process.pid, "supervisor": server.supervisor_pid()}
        self._pids |= {"engine": server.engine_pid()}
        self._pids |= {f"worker_{i}": pid for i, pid in enumerate(server.worker_pids())}

    def resident_mb(self) -> dict[str, float]:
        """Of each."""
        return {
            f"{name}_mb": int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
            for name, pid in self._pids.items()
        }

    def cpu_s(self) -> float:
        """Processor time of all of them so far."""
        ticks = 0
        for pid in self._pids.values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def fill_caches(server: Server) -> None:
    """Leave nothing that grows by design and is bounded to grow later."""
    chance = random.Random(0)

    def ask(path: str, body: dict[str, Any]) -> bool:
        with connect(server, 60) as connection:
            connection.sendall(post(path, body, "Connection: close"))
            return statuses(read_all(connection)) == [200]

    for _ in range(NUM_PROMPTS):
        prompt = [chance.randrange(2, 258) for _ in range(MAX_PROMPT)]
        assert ask("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    for index in range(NUM_GRAMMARS):
        form = {"regex": f"{index}[a-z]{{1,9}}"}
        body = {"prompt": "x", "max_tokens": 2, "structured_outputs": form}
        assert ask("/v1/completions", body)
    # As large as those that the load leaves: a store of small ones would go on growing.
    odd = (odd_request(index, seed=3) for index in itertools.count())
    num_kept = 0
    while num_kept < NUM_RESPONSES:
        path, body = next(odd)
        if path == "/v1/responses" and body.get("store") is not False:
            num_kept += ask(path, body)


def slope(samples: list[dict[str, float]], name: str) -> float:
    """Growth of a value in an hour, by least squares."""
    hours = [sample["s"] / 3600 for sample in samples]
    values = [sample[name] for sample in samples]
    middle, mean = sum(hours) / len(hours), sum(values) / len(values)
    spread = sum((hour - middle) ** 2 for hour in hours)
    pairs = zip(hours, values, strict=True)
    return sum((h - middle) * (v - mean) for h, v in pairs) / spread if spread else 0.0


class Recorder:
    """Writes down how the server does."""

    def __init__(self, server: Server, canary: Canary) -> None:
        self._server = server
        self._canary = canary
        self._processes = Processes(server)
        self._began = time.monotonic()
        self._last = self._began, self._cpu_s()
        self.samples: list[dict[str, float]] = []

    def _cpu_s(self) -> float:
        return self._processes.cpu_s() + time.process_time()

    def take(self) -> None:
        """One more sample, of the time since the last one."""
        stats = counters(self._server)
        gaps, self._canary.gaps = sorted(self._canary.gaps) or [0.0], []
        resident = self._processes.resident_mb()
        now, cpu_s = time.monotonic(), self._cpu_s()
        sample = {
            "s": round(now - self._began, 1),
            "resident_mb": round(sum(resident.values()), 3),
            **{name: round(value, 3) for name, value in resident.items()},
            "descriptors": num_descriptors(self._server),
            "held_blocks": stats["num_blocks"] - stats["num_free_blocks"],
            "gap_p99_ms": round(gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))] * 1e3, 3),
            "core_share": round((cpu_s - self._last[1]) / (now - self._last[0]), 3),
        }
        self._last = now, cpu_s
        self.samples.append(sample)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how much.

    Attributes:
        seconds: Of what is judged.
        burst_s: Of as much as goes, first of all.
        warm_up_s: Of the same load before it.
        every_s: Between two samples.
        rate: Deeds a second.
        sizes: Prompt and output lengths.
    """

    seconds: float
    burst_s: float
    warm_up_s: float
    every_s: float
    rate: float = RATE
    sizes: list[tuple[int, int]]


def soak(server: Server, plan: Plan) -> dict[str, Any]:
    """Run the load; samples and what they come to."""
    before = baseline(server)
    load = Load(server, plan.sizes, 1e9, 2 * NUM_CLIENTS)
    load.start()
    time.sleep(plan.burst_s)
    load.stop()
    assert not load.faults, load.faults[:20]
    before.wait(10)
    _LOG.info("burst over: %s", load.counts)
    load = Load(server, plan.sizes, plan.rate)
    with Canary(server, pause_s=CANARY_PAUSE_S) as canary:
        recorder = Recorder(server, canary)
        began = time.monotonic()
        load.start()
        try:
            while time.monotonic() - began < plan.warm_up_s + plan.seconds:
                time.sleep(plan.every_s)
                recorder.take()
        finally:
            load.stop()
    blocks_back_after_s = before.wait(10)
    before.wait_descriptors(10)
    late = [each for each in recorder.samples if each["s"] > plan.warm_up_s]
    names = [name for name in late[0] if name.endswith("_mb")]
    return {
        "seconds": round(time.monotonic() - began, 1),
        "seconds_judged": round(late[-1]["s"] - late[0]["s"], 1),
        "deeds": load.counts,
        "faults": [*load.faults, *canary.faults][:20],
        "canary_streams": canary.num_streams,
        "blocks_back_after_s": round(blocks_back_after_s, 2),
        "descriptors_before": before.descriptors,
        "descriptors_most": max(each["descriptors"] for each in recorder.samples),
        "core_share": round(sum(each["core_share"] for each in late) / len(late), 3),
        "first": late[0],
        "last": late[-1],
        "per_hour": {name: round(slope(late, name), 3) for name in [*names, "descriptors"]},
        "gap_p99_ms_first_half": _median(late[: len(late) // 2]),
        "gap_p99_ms_second_half": _median(late[len(late) // 2 :]),
        "samples": recorder.samples,
    }


def _median(samples: list[dict[str, float]]) -> float:
    values = sorted(each["gap_p99_ms"] for each in samples) or [0.0]
    return values[len(values) // 2]


def main() -> int:
    """Run, write soak.json and soak.svg, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="after the warm-up")
    parser.add_argument("--burst", type=float, default=2, help="minutes of as much as goes")
    parser.add_argument("--warm-up", type=float, default=5, help="minutes of the load")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--rate", type=float, default=RATE, help="deeds a second")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    plan = Plan(
        seconds=arguments.minutes * 60,
        burst_s=arguments.burst * 60,
        warm_up_s=arguments.warm_up * 60,
        every_s=arguments.every,
        rate=arguments.rate,
        sizes=lengths(arguments.trace),
    )
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launch = stack.enter_context(launcher(directory, make_tiny_model(directory / "model")))
        server = launch(*FLAGS, OCTAVO_ADMIN_API_KEY=ADMIN_KEY).wait_ready()
        fill_caches(server)
        _LOG.info("caches are full")
        report = soak(server, plan)
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples = report.pop("samples")
    (arguments.out / "soak.json").write_text(json.dumps({**report, "samples": samples}))
    (arguments.out / "soak.svg").write_text(plot(samples))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
