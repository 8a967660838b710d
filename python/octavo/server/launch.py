"""Becoming the server: gunicorn's arbiter in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from octavo import logs
from octavo.errors import EngineError
from octavo.server.arbiter import bind
from octavo.server.gunicorn_settings import gunicorn_settings

if TYPE_CHECKING:
    from octavo.config import ServeConfig


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's view of an Octavo server.

    Args:
        settings: gunicorn's settings.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Give gunicorn its settings."""
        for name, value in self._settings.items():
            self.cfg.set(name, value)


def check_address(config: ServeConfig) -> None:
    """See whether the server could listen, and let go of the address again.

    Raises:
        AddressInUseError: It is taken, or may not be bound.
        ConfigError: It is not of this machine.
    """
    for listener in bind(Application(gunicorn_settings(config)).cfg, None):
        listener.close()
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)


def launch(config: ServeConfig, **adopting: Any) -> NoReturn:
    """Serve until told to end, then exit with the server's exit code.

    Args:
        config: The server's settings.
        adopting: More arguments for octavo.server.arbiter.adopt().
    """
    logs.configure(config)
    Arbiter(Application(gunicorn_settings(config, **adopting))).run()
    raise EngineError("The arbiter returned.")  # it ends by sys.exit()
