"""Figures from records, and how they are shown.

A percentile is interpolated linearly between the two nearest ranks (numpy's default). TTFT is from
send to the first event that carries a choice; TPOT is (last event - first event) / (tokens - 1) of
one request; ITL are the gaps between the events of one request, all requests together; E2E is from
send to the last event. A request that failed counts in `failed` and nowhere else.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.bench.load import Record

SHARES = (50, 90, 99)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` percent lie. Requires: ordered ascending, not empty."""
    position = (len(ordered) - 1) * share / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90, p99 and max; empty when there are no values."""
    if not values:
        return {}
    ordered = sorted(values)
    shares = {f"p{share}": percentile(ordered, share) for share in SHARES}
    return {"mean": sum(ordered) / len(ordered), **shares, "max": ordered[-1]}


@dataclass(frozen=True)
class Goals:
    """Limits that a request must keep to count as good; infinite where none is set."""

    ttft_ms: float = float("inf")
    tpot_ms: float = float("inf")
    e2e_ms: float = float("inf")

    def met(self, ttft_ms: float, tpot_ms: float, e2e_ms: float) -> bool:
        """Whether a request with these times keeps every limit."""
        return ttft_ms <= self.ttft_ms and tpot_ms <= self.tpot_ms and e2e_ms <= self.e2e_ms


def serving_figures(records: Sequence[Record], goals: Goals | None = None) -> dict[str, object]:
    """All figures of an online run; times in ms, throughput per second of the whole run."""
    good = [r for r in records if not r.error and r.event_s]
    errors: dict[str, int] = {}
    for record in records:
        if record.error:
            errors[record.error] = errors.get(record.error, 0) + 1
    figures: dict[str, object] = {
        "completed": len(good),
        "failed": len(records) - len(good),
        "errors": errors,
        "wrong_length": sum(r.num_output_tokens != r.expected_tokens for r in good),
    }
    if good:
        figures |= _times(good) | _rates(good, goals)
    return figures


def _times(good: Sequence[Record]) -> dict[str, object]:
    gaps = [b - a for r in good for a, b in zip(r.event_s, r.event_s[1:], strict=False)]
    several = [r for r in good if r.num_output_tokens > 1]
    return {
        "ttft_ms": summary([_ttft_ms(r) for r in good]),
        "tpot_ms": summary([_tpot_ms(r) for r in several]),
        "itl_ms": summary([gap * 1e3 for gap in gaps]),
        "e2e_ms": summary([_e2e_ms(r) for r in good]),
        "send_delay_ms": summary([(r.sent_s - r.due_s) * 1e3 for r in good]),
    }


def _rates(good: Sequence[Record], goals: Goals | None) -> dict[str, object]:
    seconds = max(r.event_s[-1] for r in good) - min(r.sent_s for r in good)
    prompt_tokens = sum(r.num_prompt_tokens for r in good)
    output_tokens = sum(r.num_output_tokens for r in good)
    rates: dict[str, object] = {
        "duration_s": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "events": sum(len(r.event_s) for r in good),
        "requests_per_s": len(good) / seconds,
        "output_tokens_per_s": output_tokens / seconds,
        "total_tokens_per_s": (prompt_tokens + output_tokens) / seconds,
    }
    if goals is not None:
        met = sum(goals.met(_ttft_ms(r), _tpot_ms(r), _e2e_ms(r)) for r in good)
        rates["goodput_requests_per_s"] = met / seconds
    return rates


def _ttft_ms(record: Record) -> float:
    return (record.event_s[0] - record.sent_s) * 1e3


def _tpot_ms(record: Record) -> float:
    tokens = max(record.num_output_tokens - 1, 1)
    return (record.event_s[-1] - record.event_s[0]) / tokens * 1e3


def _e2e_ms(record: Record) -> float:
    return (record.event_s[-1] - record.sent_s) * 1e3


def machine() -> dict[str, object]:
    """What a figure means nothing without."""
    return {
        "octavo": __version__,
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def show(title: str, figures: dict[str, object]) -> None:
    """Print figures as a table on standard output; lists, such as single runs, are left out."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    spreads = {k: v for k, v in figures.items() if isinstance(v, dict) and "p50" in v}
    for name, value in figures.items():
        if name not in spreads and not isinstance(value, list) and value not in ({}, None):
            table.add_row(name.replace("_", " "), _text(value))
    console = Console()
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)
    if spreads:
        console.print(_spread_table(spreads))


def _spread_table(spreads: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("mean", *(f"p{share}" for share in SHARES), "max")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, spread in spreads.items():
        table.add_row(name.replace("_", " "), *(_text(spread[column]) for column in columns))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def publish(title: str, result: dict[str, object], json_path: str | None) -> None:
    """Show the table, and write everything as JSON: to a file, or with "-" to standard output.

    With "-" the JSON is all that standard output gets.
    """
    document = json.dumps({**result, "machine": machine()}, indent=2)
    if json_path == "-":
        print(document)
        return
    figures = result["figures"]
    assert isinstance(figures, dict)
    show(title, figures)
    if json_path:
        Path(json_path).write_text(document + "\n")
