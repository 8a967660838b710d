"""The exception tree. Start-up errors carry an exit code, request errors an HTTP status."""

from __future__ import annotations


class OctavoError(Exception):
    """Base class of everything that Octavo raises on purpose."""

    exit_code = 70


class ConfigError(OctavoError, ValueError):
    """A flag, variable or configuration key is wrong."""

    exit_code = 2


class ModelNotFoundError(OctavoError):
    """The model does not exist, cannot be downloaded or cannot be read."""

    exit_code = 3


class CheckpointError(ModelNotFoundError):
    """A file of the model is not what it claims to be; the message names file and tensor."""


class UnsupportedModelError(OctavoError):
    """A sound checkpoint that this version cannot run; the message names what it needs."""

    exit_code = 4


class OutOfMemoryError(OctavoError, MemoryError):
    """Weights or KV cache do not fit; the message names the sizes and a remedy."""

    exit_code = 5


class AddressInUseError(OctavoError):
    """The port or socket is taken, or may not be bound."""

    exit_code = 6


class StartupTimeoutError(OctavoError):
    """The start made no progress for --startup-timeout."""

    exit_code = 7


class EngineError(OctavoError):
    """The engine failed or went away."""

    exit_code = 70


class RequestError(OctavoError):
    """A request that gets an HTTP error.

    Attributes:
        status: The HTTP status code.
        type: The error's `type` in the OpenAI shape.
        param: The request field at fault, if one is.
        code: The error's `code` in the OpenAI shape.
        retry_after_s: Seconds for the Retry-After header, if the client should come again.
    """

    status = 400
    type = "invalid_request_error"
    code: str | int | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(RequestError, ValueError):
    """The body, a parameter or the prompt is not acceptable: 400."""


class UnauthorizedError(RequestError):
    """No key, or a wrong one: 401."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class UnknownModelError(RequestError):
    """A model that is not served here: 404."""

    status = 404
    type = "not_found_error"
    code = "model_not_found"


class QueueFullError(RequestError):
    """Too many requests wait already: 429."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1


class NotReadyError(RequestError):
    """Loading or draining: 503."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"
    retry_after_s = 1


class EngineFaultError(RequestError):
    """The engine failed while it served the request: 500."""

    status = 500
    type = "internal_server_error"
    code = "engine_error"
