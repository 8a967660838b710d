"""Faults that can be known before the port is bound and the model is touched."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.config import resolve_options
from octavo.errors import ConfigError
from octavo.model.resolve import ResolvedModel, resolve_local
from octavo.server.tracing import check_tracing

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.model.resolve import RemoteModel


def preflight(config: ServeConfig) -> None:
    """Check keys, certificate, files and the model's name.

    Raises:
        ConfigError: A file named by a flag, or the chat template, is of no use.
        CheckpointError: An adapter's files are missing or damaged.
        ModelNotFoundError: The model is a path that leads nowhere, or no name at all.
        UnsupportedModelError: Its weights, or an adapter, are of a kind that is not loaded.
    """
    config.api_keys()
    if config.ssl_certfile:
        _check_certificate(config.ssl_certfile, config.ssl_keyfile)
    if config.chat_template:
        from octavo.model.files import given_template  # noqa: PLC0415 - imports jinja2

        given_template(config.chat_template, {})
    if config.otlp_traces_endpoint:
        check_tracing(config.otlp_traces_endpoint)
    if config.adapters:
        from octavo.model.lora import Adapter  # noqa: PLC0415 - only where there are any

        for module in config.adapters:
            Adapter(Path(module.path).expanduser())
    find_model(config)


def find_model(config: ServeConfig) -> ResolvedModel | RemoteModel:
    """The model's files, or where to fetch them from. Looks at the disk only.

    Raises:
        OctavoError: As octavo.model.resolve.resolve_local.
    """
    return resolve_local(config.model, resolve_options(config))


def _check_certificate(certfile: str, keyfile: str) -> None:
    for flag, path in (("--ssl-certfile", certfile), ("--ssl-keyfile", keyfile)):
        _check_readable(flag, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(
            f"--ssl-certfile: {certfile} and {keyfile} are no certificate with its key: {reason}."
        ) from None


def _check_readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path}: {error.strerror}.") from None
