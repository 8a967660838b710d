"""One server for most faults: a tiny model on the real engine, impatient with clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e.serving import Launcher, Server, launcher
from e2e.tiny_model import make_tiny_model
from faults.wire import ADMIN_KEY, Baseline, baseline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLAGS = (
    "--enable-admin", "--client-timeout", "2", "--keep-alive-timeout", "2",
    "--max-num-seqs", "16", "--max-num-batched-tokens", "128", "--disable-log-requests",
    "--scheduling-policy", "priority",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    """The shared server; it must outlive every test."""
    with launcher(tmp_path_factory.mktemp("server"), tiny_model) as launch:
        running = launch(*FLAGS, OCTAVO_ADMIN_API_KEY=ADMIN_KEY).wait_ready()
        engine = running.engine_pid()
        yield running
        assert running.engine_pid() == engine, "a fault has killed the engine"
        assert running.metric("engine_restarts_total") == 0
        assert running.stop() == 0


@pytest.fixture
def before(server: Server) -> Baseline:
    """The shared server's state before a test."""
    return baseline(server)


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Launcher]:
    """Starts servers of a test's own."""
    with launcher(tmp_path, tiny_model) as launch:
        yield launch
