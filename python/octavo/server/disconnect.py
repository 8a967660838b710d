"""Noticing that a client has gone while its request still waits or computes."""

from __future__ import annotations

import contextlib
import select
from typing import TYPE_CHECKING, Any

import gevent
from gevent import monkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_READ = 1
_poll = monkey.get_original("select", "poll")  # the loop must not wait, so not gevent's


@contextlib.contextmanager
def watch(environ: Mapping[str, Any], on_gone: Callable[[], None]) -> Iterator[None]:
    """Call `on_gone` once if the client closes its connection meanwhile.

    It is called on the event loop, so it must not block. Under a server other than ours there is
    nothing to watch, and a client's end shows at the next write. A client that only half-closes
    counts as gone: HTTP clients that wait for an answer do not do that.

    Args:
        environ: The request's WSGI environment.
        on_gone: Usually the stream's abort.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None or not monkey.is_module_patched("socket"):
        yield
        return
    fd = connection.fileno()
    watcher = gevent.get_hub().loop.io(fd, _READ)

    def look() -> None:
        gone = _is_gone(fd)
        if gone is not None:
            watcher.stop()
        if gone:
            on_gone()

    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()


def _is_gone(fd: int) -> bool | None:
    """True: closed. False: sent bytes, so it lives and nothing more can be learnt. None: neither.

    Nothing is read: on a TLS connection the bytes are not ours.
    """
    poll = _poll()
    poll.register(fd, select.POLLIN | select.POLLRDHUP)
    for _, events in poll.poll(0):
        return bool(events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR))
    return None
