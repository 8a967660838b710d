"""Long work off the event loop.

A gunicorn worker serves all its connections from one event loop; whatever computes there for
milliseconds stops every stream. Encoding text releases the interpreter lock, so the loop's thread
pool does it beside the streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

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
    result, error = gevent.get_hub().threadpool.apply(_outcome, (function, args, kwargs))
    if error is not None:
        raise error
    value: T = result
    return value


def _outcome(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Exception | None]:
    """What a call returns or raises; the pool would write what it raises to standard error."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        return None, error
