"""Octavo: an inference server for large language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.api_server import EngineArgs, LLMEngine, create_openai_api_app, run_server
    from octavo.llm import LLM
    from octavo.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "EngineArgs",
    "LLMEngine",
    "SamplingParams",
    "__version__",
    "create_openai_api_app",
    "run_server",
]

_HOMES = {
    "LLM": "octavo.llm",
    "SamplingParams": "octavo.sampling_params",
    "EngineArgs": "octavo.api_server",
    "LLMEngine": "octavo.api_server",
    "create_openai_api_app": "octavo.api_server",
    "run_server": "octavo.api_server",
}


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `octavo --version` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
