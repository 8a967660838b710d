"""One real server with the demo model for all clients, and a word on which of them ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clients.environments import versions
from e2e.live_server import LiveServer, live_server

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "secret"


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with live_server(*flags, "--api-key", KEY) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if versions:
        names = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
        terminalreporter.write_line(f"Clients that ran: {names}")
