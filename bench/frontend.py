"""The HTTP front end alone: one worker on its own core, before an engine that computes nothing.

    python bench/frontend.py                 every case, medians of three runs
    python bench/frontend.py --runs 1 --case events-32

Socket, protocol, detokenisation, server-sent events and HTTP are the real ones; the model is the
demo's tokenizer. The worker has a core for itself; the null engine and the client share the others.
A worker core's rate is what was answered divided by the processor time that the worker used for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.bench.load import Target
from octavo.bench.process_tree import descendants
from octavo.bench.report import machine
from octavo.bench.serve import Load, measure
from octavo.bench.workloads import fixed, poisson_arrivals
from octavo.cli.main import build_parser
from octavo.config import ServeConfig
from octavo.processes import die_with_parent
from octavo.server.launch import launch

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
READY_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        step_s: Of the engine: every stream gets `burst` tokens so often.
        concurrency: Streams at a time.
        max_tokens: Of each.
        num_requests: In all.
        burst: Tokens that a stream gets at once.
        rate: Requests a second that come at random; 0 sends the next one when one has ended.
    """

    step_s: float
    concurrency: int
    max_tokens: int
    num_requests: int
    burst: int = 1
    rate: float = 0.0


# events: one token a step, as fast as the worker takes them. tokens: more than that, so that they
# join in one event. ttft: tokens far below what a core can do; at 256, 64 requests a second come at
# random and last 4 s each, so that 256 run on average and the first tokens do not come in a burst.
CASES = {
    "events-1": Case(0.00002, 1, 20_000, 4),
    "events-32": Case(0.0008, 32, 2_000, 96),
    "events-256": Case(0.0080, 256, 200, 1_024),
    "events-1024": Case(0.0400, 1_024, 100, 4_096),
    "tokens-32": Case(0.0020, 32, 8_000, 96, burst=8),
    "tokens-256": Case(0.0160, 256, 1_600, 1_024, burst=8),
    "tokens-1024": Case(0.0800, 1_024, 800, 2_048, burst=8),
    "ttft-1": Case(0.0200, 1, 8, 200),
    "ttft-256": Case(0.0200, 256, 200, 1_280, rate=64),
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A running front end: where it listens, and its one worker."""

    url: str
    worker: int

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def front_end(case: Case) -> Iterator[Server]:
    """`octavo serve` with bench/null_engine.py in the place of the engine process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plan = json.dumps({"step_s": case.step_s, "burst": case.burst})
    words = [__file__, "--serve", "smollm2", "--port", str(port), "--disable-log-requests"]
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "NULL_ENGINE": plan, "OCTAVO_LOG_LEVEL": "warning"},
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        await_ready(process, url)
        worker = pin_worker(process.pid)
        yield Server(url, worker)
    finally:
        process.terminate()
        process.wait(READY_S)


def await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
            return
        time.sleep(0.1)
    raise RuntimeError("the front end did not get ready")


def pin_worker(arbiter: int) -> int:
    """Give the worker the last core and everybody else the others; returns the worker."""
    *others, last = sorted(os.sched_getaffinity(0))
    worker = next(pid for pid in descendants(arbiter) if holds_listener(arbiter, pid))
    for pid in [os.getpid(), *descendants(arbiter)]:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {last} if pid == worker else others or {last})
    return worker


def holds_listener(arbiter: int, pid: int) -> bool:
    """Whether a process is a worker: the arbiter's child that is not the engine's supervisor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]) == arbiter and len(descendants(pid)) == 1


def run(case: Case) -> dict[str, float]:
    """One run: figures of the client and what the worker spent."""
    with front_end(case) as server:
        target = Target(server.url, "smollm2")
        before, idle = server.cpu_s(), time.monotonic()
        load = Load(concurrency=None if case.rate else case.concurrency, num_warm_up=0)
        items = fixed(case.num_requests, 64, case.max_tokens)
        if case.rate:
            items = poisson_arrivals(items, case.rate)
        figures = measure(target, items, load)
        spent, lasted = server.cpu_s() - before, time.monotonic() - idle
    if figures["failed"] or figures["wrong_length"]:
        raise RuntimeError(f"{figures['failed']} requests failed: {figures['errors']}")
    ttft, events, tokens = figures["ttft_ms"], figures["events"], figures["output_tokens"]
    return {
        "events_per_s": events / figures["duration_s"],
        "tokens_per_s": figures["output_tokens_per_s"],
        "worker_core_share": spent / lasted,
        "events_per_core_s": events / spent,
        "tokens_per_core_s": tokens / spent,
        "ttft_p50_ms": ttft["p50"],
        "ttft_p99_ms": ttft["p99"],
        "client_core_share": figures["client_core_share"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, help="only this one")
    parser.add_argument("--runs", type=int, default=3, help="of each; the median is shown")
    parser.add_argument("--json", type=Path, help="also write everything here")
    arguments = parser.parse_args()
    medians = {}
    for name in arguments.case or CASES:
        runs = [run(CASES[name]) for _ in range(arguments.runs)]
        medians[name] = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        if len(medians) == 1:
            print(f"{'':12}", *(f"{key:>18}" for key in runs[0]))
        print(f"{name:12}", *(f"{value:18,.2f}" for value in medians[name].values()), flush=True)
    if arguments.json:
        document = {"machine": machine(), "runs": arguments.runs, "medians": medians}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def serve() -> None:
    die_with_parent(os.getppid())
    arguments = build_parser("serve").parse_args(["serve", *sys.argv[2:]])
    command = (sys.executable, str(HERE / "null_engine.py"))
    launch(ServeConfig.from_cli_args(arguments), command=command)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    else:
        main()
