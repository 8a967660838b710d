"""`octavo bench serve`: load on any OpenAI-compatible server, and what it answered."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from octavo.bench.load import LoadGenerator, Record, Target
from octavo.bench.report import Goals, serving_figures
from octavo.bench.workloads import Item, fixed
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from collections.abc import Sequence

START_DELAY_S = 0.2  # enough for every process to be ready for the common start
WARM_UP_SEED = 99  # ids of the warm-up: none of its prompts is in a workload


class LoadError(OctavoError):
    """A load process failed; no figures can be given."""

    exit_code = 1


@dataclass(frozen=True)
class Load:
    """How the requests are sent.

    Attributes:
        concurrency: Requests at a time, over all processes; None sends at the items' arrival times.
        num_processes: Load processes that share the requests.
        num_warm_up: Requests sent before, whose answers do not count.
        goals: What a request must keep to count into goodput; None leaves goodput out.
        timeout_s: Seconds without an event after which a request counts as failed.
    """

    concurrency: int | None = 1
    num_processes: int = 1
    num_warm_up: int = 4
    goals: Goals | None = None
    timeout_s: float = 600.0


class _Part(msgspec.Struct):
    """What one load process reports."""

    records: list[Record]
    busy: float  # share of a core that it used


@dataclass
class Run:
    """Records of all processes and what the load itself cost."""

    records: list[Record] = field(default_factory=list)
    busiest: float = 0.0


def measure(target: Target, items: Sequence[Item], load: Load) -> dict[str, object]:
    """Warm up, run the load, and compute the figures.

    Raises:
        LoadError: A load process died.
        ConfigError: The URL is no URL.
    """
    warm_up(target, load)
    run = drive(target, items, load)
    figures = serving_figures(run.records, load.goals)
    # Above about 0.9 the client, not the server, sets the figures: use more processes.
    figures["client_core_share"] = run.busiest
    return figures


def warm_up(target: Target, load: Load) -> None:
    """Send requests of the load's own concurrency whose answers are dropped.

    Raises:
        LoadError: The server answers none of them.
    """
    if not load.num_warm_up:
        return
    generator = LoadGenerator(target, timeout_s=load.timeout_s)
    items = fixed(load.num_warm_up, 64, 16, seed=WARM_UP_SEED)
    records = generator.run(items, concurrency=load.concurrency or load.num_warm_up)
    generator.close()
    if all(record.error for record in records):
        raise LoadError(f"{target.url}: {records[0].error}")


def drive(target: Target, items: Sequence[Item], load: Load) -> Run:
    """Run the load without a warm-up: in this process, or spread over several.

    Raises:
        LoadError: A load process died.
    """
    start_s = time.monotonic() + START_DELAY_S
    count = min(load.num_processes, len(items), load.concurrency or len(items))
    if count <= 1:
        parts = [_drive_part(target, items, load.concurrency, load.timeout_s, start_s)]
    else:
        pipes = []
        for index in range(count):
            share = _share(load.concurrency, index, count)
            pipes.append(_fork(target, items[index::count], share, load.timeout_s, start_s))
        parts = [_collect(*pipe) for pipe in pipes]
    records = [record for part in parts for record in part.records]
    return Run(records, max(part.busy for part in parts))


def _share(concurrency: int | None, index: int, count: int) -> int | None:
    """This process's part of the concurrency; the parts add up to the whole."""
    if concurrency is None:
        return None
    return concurrency // count + (index < concurrency % count)


def _drive_part(
    target: Target,
    items: Sequence[Item],
    concurrency: int | None,
    timeout_s: float,
    start_s: float,
) -> _Part:
    generator = LoadGenerator(target, timeout_s=timeout_s)
    used_s = time.process_time()
    records = generator.run(items, concurrency=concurrency, start_s=start_s)
    busy = (time.process_time() - used_s) / max(time.monotonic() - start_s, 1e-9)
    generator.close()
    return _Part(records, busy)


def _fork(
    target: Target,
    items: Sequence[Item],
    concurrency: int | None,
    timeout_s: float,
    start_s: float,
) -> tuple[int, int]:
    """Start a load process; returns its id and the pipe that its result comes through."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    try:
        os.close(read_end)
        part = _drive_part(target, items, concurrency, timeout_s, start_s)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(msgspec.msgpack.encode(part))
        os._exit(0)
    finally:
        os._exit(1)


def _collect(pid: int, read_end: int) -> _Part:
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0 or not data:
        raise LoadError("A load process died: use fewer requests or --processes 1.")
    return msgspec.msgpack.decode(data, type=_Part)
