"""Shows an answer while it streams: plain text, or Markdown that is set block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from octavo.cli.openai_client import Usage

FENCES = ("```", "~~~")
REFRESHES_PER_S = 12
ROWS_KEPT_FREE = 2


def split_blocks(text: str) -> tuple[list[str], str]:
    """Cut Markdown into blocks that are whole and the rest, which may still change.

    A block ends at an empty line outside a code fence; joined again, the parts are the text.
    """
    blocks, begin, position, fence = [], 0, 0, ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = line.strip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in FENCES:
            fence = mark
        if not fence and not line.strip() and line.endswith("\n"):
            blocks.append(text[begin:position])
            begin = position
    return blocks, text[begin:]


def show_plain(console: Console, pieces: Iterable[str]) -> None:
    """Write the pieces as they come."""
    for piece in pieces:
        console.out(piece, end="", highlight=False)
        console.file.flush()


def show_markdown(console: Console, pieces: Iterable[str]) -> None:
    """Set whole blocks as Markdown for good; the block that still grows is shown below, as text.

    Only as much of it as fits on the screen: what has scrolled away cannot be taken back.
    """
    text = ""
    try:
        with Live(console=console, transient=True, refresh_per_second=REFRESHES_PER_S) as live:
            for piece in pieces:
                blocks, text = split_blocks(text + piece)
                for block in blocks:
                    _print_block(console, block)
                live.update(_tail(text, console))
    finally:
        _print_block(console, text)


def _print_block(console: Console, block: str) -> None:
    if block.strip():
        console.print(Markdown(block), end="\n")


def _tail(text: str, console: Console) -> Text:
    rows = max(console.height - ROWS_KEPT_FREE, 1)
    lines = Text(text).wrap(console, console.width)
    return Text("\n").join(lines[-rows:])


def usage_line(usage: Usage) -> str:
    """Counts and speed of an answer in one line."""
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    parts = [
        f"{usage.prompt_tokens:,} prompt tokens{cached}",
        f"{usage.completion_tokens:,} tokens",
        f"first after {usage.first_s:.2f} s",
    ]
    if usage.completion_tokens > 1:
        parts.append(f"{usage.tokens_per_s:.1f} tokens/s")
    if usage.finish_reason == "length":
        parts.append("cut at the longest length")
    return " · ".join(parts)
