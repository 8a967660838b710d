"""Fault 16, short: some seconds of mixed load. The hour: see README.md beside this file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.plot import TITLES, plot
from faults.soak import soak

if TYPE_CHECKING:
    from e2e.serving import Server


def test_some_seconds_of_everything(server: Server) -> None:
    report = soak(server, seconds=8, every_s=1, trace=None)
    assert report["faults"] == []
    assert report["canary_streams"] > 0
    assert sum(report["deeds"].values()) > 20
    picture = plot(report["samples"])
    assert all(title in picture for title in TITLES.values())
