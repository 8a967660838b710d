"""`octavo completion`: a completion script for a shell, from the parser itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh")
DESCRIPTION = """Print a completion script. For bash: octavo completion bash >
~/.local/share/bash-completion/completions/octavo"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `completion` to the command line."""
    parser = subparsers.add_parser(
        "completion", help="print a shell completion script", description=DESCRIPTION
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns 0."""
    import shtab  # noqa: PLC0415 - only this command needs it

    from octavo.cli.main import build_parser  # noqa: PLC0415 - main imports this module

    sys.stdout.write(shtab.complete(build_parser(), arguments.shell) + "\n")
    return 0
