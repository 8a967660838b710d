"""What the supervisor tells a new engine process: the first line of its standard input, as JSON."""

from __future__ import annotations

from typing import Any

import msgspec


class Launch(msgspec.Struct, frozen=True):
    """The engine process's start.

    Attributes:
        config: Fields of ServeConfig.
        status_fd: The status page, inherited.
        listener_fd: Listening AF_UNIX socket for the workers, inherited.
        parent_pid: The supervisor.
    """

    config: dict[str, Any]
    status_fd: int
    listener_fd: int
    parent_pid: int
