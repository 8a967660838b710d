"""`octavo.server.wsgi:app` for gunicorn's command line.

With `-c python:octavo.server.gunicorn_conf` the workers build their own application around the
engine that they share. Under any other WSGI server `app` starts an engine for its process, with the
settings of the OCTAVO_* variables; use one process with many threads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.server.app import App


@cache
def _make_app() -> App:
    from octavo.api_server import (  # noqa: PLC0415 - not in gunicorn's arbiter
        LLMEngine,
        create_openai_api_app,
    )
    from octavo.config import from_environment  # noqa: PLC0415

    return create_openai_api_app(LLMEngine.from_engine_args(from_environment()))


def __getattr__(name: str) -> object:
    """Build the application when it is asked for."""
    if name == "app":
        return _make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
