"""Models and servers for the end-to-end tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e.serving import Launcher, launcher
from e2e.tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path) -> Iterator[Launcher]:
    """Starts servers of the tiny model; they end with the test."""
    with launcher(tmp_path, tiny_model) as launch:
        yield launch
