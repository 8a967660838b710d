"""Flags that the terminal commands share. Light: parsing a command line imports nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.options import closest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Setting:
    """A field of a request: its type and what it does."""

    parse: Callable[[str], Any]
    help: str


SETTINGS = {
    "temperature": Setting(float, "0 always takes the likeliest token"),
    "top_p": Setting(float, "keep the likeliest tokens up to this probability"),
    "top_k": Setting(int, "keep this many of the likeliest tokens; 0 keeps all"),
    "min_p": Setting(float, "drop tokens below this share of the likeliest one"),
    "max_tokens": Setting(int, "longest answer"),
    "seed": Setting(int, "makes the draw repeatable"),
    "presence_penalty": Setting(float, "against tokens that have come already"),
    "frequency_penalty": Setting(float, "against tokens, each time they have come"),
    "repetition_penalty": Setting(float, "against tokens of prompt and answer; 1 is none"),
}


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --url, --api-key, --model, --timeout and --wait."""
    group = parser.add_argument_group("Server")
    group.add_argument(
        "--url", help=f"base URL of the server (default: OPENAI_BASE_URL, else {DEFAULT_URL})"
    )
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="key to send (default: OPENAI_API_KEY, with OPENAI_BASE_URL)",
    )
    group.add_argument("--model", metavar="NAME", help="model to ask (default: the server's first)")
    group.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="longest silence in an answer"
    )
    group.add_argument(
        "--wait", type=float, default=600.0, metavar="S", help="longest wait for a loading server"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting, and --stop."""
    group = parser.add_argument_group("Sampling (default: what the server or the model says)")
    for name, setting in SETTINGS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=setting.parse,
            metavar="N" if setting.parse is int else "X",
            help=setting.help,
        )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end there; may be repeated")


def sampling_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request fields that the command line sets."""
    names = [*SETTINGS, "stop"]
    return {name: v for name in names if (v := getattr(arguments, name)) is not None}


def parse_setting(name: str, text: str) -> tuple[str, Any]:
    """The request field and value of a setting typed as two words.

    Raises:
        ConfigError: No such setting, or not a value of it.
    """
    name = name.replace("-", "_")
    if name == "stop":
        return name, [text]
    if name not in SETTINGS:
        raise ConfigError(
            f"No setting {name!r}. There are: {', '.join([*SETTINGS, 'stop'])}."
            + closest(name, list(SETTINGS))
        )
    try:
        return name, SETTINGS[name].parse(text)
    except ValueError:
        kind = "a whole number" if SETTINGS[name].parse is int else "a number"
        raise ConfigError(f"{name}: {text!r} is not {kind}.") from None
