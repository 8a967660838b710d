"""Fault 15, short: ten times what the server can do. The long one: see README.md beside this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.overload import FLAGS, measure
from faults.wire import figures, patience

if TYPE_CHECKING:
    from e2e.serving import Launcher


def test_ten_times_the_capacity(start: Launcher) -> None:
    server = start(*FLAGS).wait_ready()
    found = measure(server, seconds=2)
    figures(15, **found)
    assert found["other"] == 0
    assert found["refused_429"] > found["admitted"]
    assert found["refusal_faults"] == 0
    assert found["refusals_looked_at"] > 0
    # The client has its share of the same cores here; the long run has the pass line of 90 %.
    assert found["goodput_of_peak"] > 0.5 / patience()
    assert found["ttft_p99_s"] < found["ttft_bound_s"] * patience()
