"""A generation as the body of a streamed response."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from octavo.server.sse import KEEP_ALIVE_S, EventStream, error_events, send_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import falcon

    from octavo.errors import RequestError
    from octavo.server.generation import Generation, Piece


def stream_generation(
    req: falcon.Request,
    resp: falcon.Response,
    generation: Generation,
    events: Callable[[Iterator[Piece | None]], Iterator[bytes]],
    describe: Callable[[RequestError], bytes] = error_events,
) -> None:
    """Stream what `events` makes of the pieces; None stands for 15 s without one.

    The status line waits for the first piece, so that what the engine refuses has its own status.

    Raises:
        RequestError: The engine refused the request, or failed before the first piece.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(generation)
        stack.enter_context(generation.attended(req.env))
        first = generation.get(KEEP_ALIVE_S)
        close = stack.pop_all().close
    send_events(resp, EventStream(events(_pieces(first, generation)), close, describe))


def _pieces(first: Piece | None, generation: Generation) -> Iterator[Piece | None]:
    piece = first
    while piece is not None or not generation.is_finished:
        yield piece
        piece = generation.get(KEEP_ALIVE_S)
