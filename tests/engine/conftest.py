"""The stack that the socket tests run on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from engine.stack import Stack, make_stack
from octavo.engine.status_page import StatusPage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    page = StatusPage()
    page.begin_generation()
    page.enter("ready")
    path = str(tmp_path / "engine")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    stacks: list[Stack] = []

    def make(**engine: Any) -> Stack:
        stacks.append(make_stack(listener, path, page, **engine))
        return stacks[-1]

    yield make
    for stack in stacks:
        for client in stack.clients:
            client.close()
        stack.stop()
    listener.close()
