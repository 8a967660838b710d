"""octavo pull: download a model, so that a later start finds it."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from octavo.config import cache_directory
from octavo.options import AUTO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from octavo.model.resolve import ResolvedModel

    Progress = Callable[[int, int], None]

_LINE_INTERVAL_S = 10.0  # between lines where there is no terminal


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "pull",
        help="download a model",
        description="Downloads a model, or what is new of it, and checks that it is complete.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="hub id, hub id with :FILE.gguf, or the demo smollm2"
    )
    parser.add_argument("--revision", default="", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--download-dir",
        default="",
        metavar="DIR",
        help="where to keep it (default: the hub's cache)",
    )
    parser.add_argument(
        "--load-format",
        default=AUTO,
        choices=(AUTO, "safetensors", "gguf"),
        help="how the weights are to be stored",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download the model and print where it is; returns the exit code."""
    from octavo.model.resolve import ResolveOptions, refresh  # noqa: PLC0415 - not for --help

    options = ResolveOptions(
        cache_dir=cache_directory(),
        revision=args.revision,
        download_dir=args.download_dir,
        load_format=args.load_format,
    )

    def fetch(progress: Progress) -> ResolvedModel:
        return refresh(args.model, options, progress)

    found = _with_bar(fetch) if sys.stderr.isatty() else _with_lines(fetch)
    sys.stdout.write(f"{found.path}\n")
    return 0


def _with_bar(fetch: Callable[[Progress], ResolvedModel]) -> ResolvedModel:
    """A progress bar on the terminal."""
    from rich import progress as bars  # noqa: PLC0415 - not for --help
    from rich.console import Console  # noqa: PLC0415

    columns = (
        bars.TextColumn("Downloading"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)

        def report(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        return fetch(report)


def _with_lines(fetch: Callable[[Progress], ResolvedModel]) -> ResolvedModel:
    """A line now and then, for logs."""
    lock = threading.Lock()
    due = 0.0

    def report(done: int, total: int) -> None:
        nonlocal due
        with lock:
            now = time.monotonic()
            if now < due and done < total:
                return
            due = now + _LINE_INTERVAL_S
        share = done / total if total else 0.0
        sys.stderr.write(
            f"INFO:     Downloading {done / 1e6:.0f} of {total / 1e6:.0f} MB ({share:.0%})\n"
        )

    return fetch(report)
