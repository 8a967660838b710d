"""Fault 4, its last part: a lost device ends the engine and not the server.

Deaths by signal are in tests/e2e/test_failure.py.
"""

from __future__ import annotations

import time

from e2e.serving import FAKE, Launcher, wait_for
from faults.wire import figures

LOST = 999  # the prompt's token at which the double loses its device


def test_requests_end_and_another_engine_serves(start: Launcher) -> None:
    server = start(command=FAKE, plan={"step_s": 0.02, "lost_on_token": LOST}).wait_ready()
    engine = server.engine_pid()
    stream = server.stream(max_tokens=10**6).wait_started()
    began = time.monotonic()
    assert server.complete(prompt=[LOST], max_tokens=100).status in (500, 503)
    stream.join()
    assert stream.fault is not None
    ended_after = time.monotonic() - began
    wait_for(lambda: server.engine_pid() != engine and server.status_of() == 200, "another engine")
    figures(
        4, error_after_s=round(ended_after, 2), ready_after_s=round(time.monotonic() - began, 2)
    )
    assert server.complete().status == 200
    assert "device is lost" in server.log()
