"""Models and servers for the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Launcher, launcher
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Launcher]:
    """Starts servers of the tiny model; they end with the test."""
    with launcher(tmp_path, tiny_model) as launch:
        yield launch
