"""Fault 16, short: some seconds of mixed load. The hour: see README.md beside this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.plot import TITLES, plot
from faults.soak import Plan, lengths, soak

if TYPE_CHECKING:
    from e2e.serving import Server


def test_some_seconds_of_everything(server: Server) -> None:
    plan = Plan(seconds=5, burst_s=1, warm_up_s=2, rate=40, every_s=1, sizes=lengths(None))
    report = soak(server, plan)
    assert report["faults"] == []
    assert report["canary_streams"] > 0
    assert sum(report["deeds"].values()) > 20
    picture = plot(report["samples"])
    assert all(title in picture for title in TITLES.values())
