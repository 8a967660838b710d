"""Answers what HTTP workers ask about adapters; loading one is a thread's work."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from octavo.engine.protocol import Done, LoadAdapter, UnloadAdapter
from octavo.errors import EngineFaultError, InvalidRequestError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.engine.adapters import Adapters
    from octavo.engine.client import AdapterCard
    from octavo.engine.protocol import ListAdapters

log = logging.getLogger(__name__)


class AdapterDesk:
    """The adapters of an engine as its endpoint sees them.

    Args:
        adapters: None where the engine has no room for any.
        answer_later: Takes a connection's number and an answer, from any thread.
    """

    def __init__(
        self, adapters: Adapters | None, answer_later: Callable[[int, Done], None]
    ) -> None:
        self._adapters = adapters
        self._answer_later = answer_later

    def cards(self) -> list[AdapterCard]:
        """Those that are loaded."""
        return [] if self._adapters is None else self._adapters.cards()

    def id_of(self, name: str) -> int:
        """The id of a loaded adapter; 0 for "", the base model itself.

        Raises:
            UnknownModelError: There is none of that name.
        """
        return self._known().id_of(name) if name else 0

    def handle(
        self, number: int, message: LoadAdapter | UnloadAdapter | ListAdapters
    ) -> Done | None:
        """The answer for connection `number`; None when it comes later."""
        if isinstance(message, LoadAdapter):
            load = threading.Thread(
                target=self._load, args=(number, message), name="load-adapter", daemon=True
            )
            load.start()
            return None
        if isinstance(message, UnloadAdapter):
            return _done(message.token, lambda: self._known().unload(message.name))
        return Done(message.token)

    def _load(self, number: int, message: LoadAdapter) -> None:
        def load() -> None:
            self._known().load_below_root(message.name, message.path, replaces=message.replaces)

        self._answer_later(number, _done(message.token, load))

    def _known(self) -> Adapters:
        if self._adapters is None:
            raise InvalidRequestError("This engine has no adapters.")
        return self._adapters


def _done(token: int, work: Callable[[], None]) -> Done:
    """Do it; what came of it."""
    try:
        work()
    except RequestError as error:
        return Done(token, type(error).__name__, error.message, error.param)
    except Exception:
        log.exception("An adapter could not be loaded")
        return Done(token, EngineFaultError.__name__, "The adapter could not be loaded.")
    return Done(token)
