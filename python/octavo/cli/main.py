"""The `octavo` command. Only the chosen subcommand's module is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.config import command_line
from octavo.errors import OctavoError
from octavo.options import closest
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

# Name and help; the module is octavo.cli.NAME (- is _ there) with add_parser(subparsers).
COMMANDS = {
    "serve": "serve a model over the OpenAI API",
    "chat": "talk to a model in the terminal",
    "complete": "continue a text",
    "bench": "measure speed",
    "run-batch": "answer the requests of a file",
    "pull": "download a model",
    "doctor": "look at this machine: CPU, GPU, limits, model cache",
    "completion": "print a shell completion script",
}
_EPILOG = "octavo COMMAND --help tells about a command. Start with: octavo serve smollm2"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here: the subcommand's parser knows the nearest flag."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with the nearest known flag, and exit with 2."""
        word = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            hint = closest(word, list(self._option_string_actions))
        self.exit(2, f"ERROR:    {self.prog}: {message}.{hint} See: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(command_line() if argv is None else argv)
    if words == ["--version"]:
        sys.stdout.write(f"octavo {__version__}\n")
        return 0
    if not words:
        words = ["--help"]
    arguments = build_parser(words[0]).parse_args(words)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()  # here, and not at exit, where a closed pipe would be reported
    except OctavoError as error:
        sys.stderr.write(f"ERROR:    {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    else:
        return code


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        command: The only subcommand whose arguments are needed; None for all.
    """
    formatter = _formatter()
    parser = Parser(
        prog="octavo",
        description="Octavo serves large language models.",
        epilog=_EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if command is None or command == name:
            module = importlib.import_module(f"octavo.cli.{name.replace('-', '_')}")
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    for each in subparsers.choices.values():
        each.allow_abbrev = False
        each.formatter_class = formatter
    return parser


def _formatter() -> type[argparse.HelpFormatter]:
    """Colours on a terminal; elsewhere the plain formatter, which is faster to import."""
    if not sys.stdout.isatty():
        return argparse.HelpFormatter
    from rich_argparse import RichHelpFormatter  # noqa: PLC0415

    return RichHelpFormatter


if __name__ == "__main__":
    sys.exit(main())
