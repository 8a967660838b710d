"""Long work off the event loop.

A gunicorn worker serves all its connections from one event loop; whatever computes there for
milliseconds stops every stream. Encoding text releases the interpreter lock, so the loop's thread
pool does it beside the streams.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import gevent
from gevent import monkey

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def offload(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function; other greenlets run meanwhile where the server is gevent's."""
    if not monkey.is_module_patched("threading"):
        return function(*args, **kwargs)
    work = partial(function, *args, **kwargs)
    result, error = gevent.get_hub().threadpool.apply(_attempt, (work,))
    if error is not None:
        raise error
    return cast("T", result)


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What the work returns or raises: gevent writes a traceback of what a pool's task raises."""
    try:
        return work(), None
    except Exception as error:
        return None, error
