"""A stream's concatenation is the text that is answered whole, byte for byte.

Every byte is a token of its own, so every code point of more than one byte is split.
"""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import pytest
from app_under_test import Server, events
from scripted_engine import say

PIECES = (
    "word", " ", "\n", "naïve", "1,024", "“quoted”", "e\u0301", "a\u0328\u0301", "क्षि", "ก็", "한글",
    "汉字", "かな", "𠮷", "😀", "👨‍👩‍👧", "🏳️‍🌈", "🇫🇷", "مرحبا",
    "\u200d", "\ufeff", "\u202e", "\\", "</s>",
)  # fmt: skip
STOPS = ("字", "👩", "STOP", "\u0301", "ï", "\n", "🇷", "e\u0301a")


def made_up(seed: int) -> tuple[str, list[str], dict[str, Any]]:
    """A text, stop strings that it may hold, and how it is asked for."""
    rng = random.Random(seed)
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
    if rng.random() < 0.3:
        position = rng.randint(0, len(text))
        text = text[:position] + "STOP" + text[position:]
    stops = rng.sample(STOPS, rng.randint(0, 3))
    if text and rng.random() < 0.3:
        begin = rng.randrange(len(text))
        stops.append(text[begin : begin + rng.randint(1, 4)])
    options = {"include_stop_str_in_output": rng.random() < 0.5, "n": rng.choice((1, 1, 2))}
    return text, stops, options


def first_stop(text: str, stops: list[str], *, keep: bool) -> str:
    """The text up to the stop string that is complete first; of several the longest."""
    ends = [(text.index(s) + len(s), text.index(s), s) for s in stops if s in text]
    if not ends:
        return text
    end, begin, _ = min(ends)
    return text[:end] if keep else text[:begin]


@pytest.mark.parametrize("chunk", range(10))
def test_completions_and_chats(server: Server, chunk: int) -> None:
    for seed in range(20 * chunk, 20 * chunk + 20):
        text, stops, options = made_up(seed)
        server.engine.script = say(text)
        server.engine.tokens_per_step = seed % 5 + 1
        fields = {"max_tokens": 400, "stop": stops, **options}
        expected = first_stop(text, stops, keep=options["include_stop_str_in_output"])

        whole = server.complete(**fields).json["choices"]
        chunks = events(server.complete(**fields, stream=True))
        for choice in whole:
            parts = [c for e in chunks for c in e["choices"] if c["index"] == choice["index"]]
            assert choice["text"] == expected, seed
            assert "".join(part["text"] for part in parts) == expected, seed
            assert parts[-1]["finish_reason"] == choice["finish_reason"] == "stop"
            assert parts[-1]["stop_reason"] == choice["stop_reason"]

        answers = server.chat(**fields).json["choices"]
        chunks = events(server.chat(**fields, stream=True))
        for choice in answers:
            parts = [c for e in chunks for c in e["choices"] if c["index"] == choice["index"]]
            assert choice["message"]["content"] == expected, seed
            assert "".join(p["delta"].get("content") or "" for p in parts) == expected, seed


def test_what_is_made_up_has_every_kind() -> None:
    texts = [made_up(seed)[0] for seed in range(200)]
    joined = "".join(texts)
    assert all(piece in joined for piece in PIECES)
    assert any(unicodedata.combining(character) for character in joined)
    assert sum(any(stop in text for stop in made_up(i)[1]) for i, text in enumerate(texts)) > 60
