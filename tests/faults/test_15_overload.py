"""Fault 15, short: ten times what the server can do. The long one: see README.md beside this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.overload import FLAGS, measure
from faults.wire import figures

if TYPE_CHECKING:
    from e2e.serving import Launcher


def test_ten_times_the_capacity(start: Launcher) -> None:
    server = start(*FLAGS).wait_ready()
    found = measure(server, seconds=3)
    figures(15, **found)
    assert found["other"] == 0
    assert found["refused_429"] > found["admitted"]
    assert found["refusal_faults"] == 0
    # Goodput and time to the first token depend on the machine: the long run has their pass lines.
    assert found["admitted"] > 0
