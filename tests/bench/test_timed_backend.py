"""The backend that times operations hands every one of them on."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def methods(text: str) -> set[str]:
    """The virtual methods that class Backend declares."""
    body = text.split("\nclass Backend {")[1].split("\n};", maxsplit=1)[0]
    code = re.sub(r"//[^\n]*", "", body)
    return set(re.findall(r"\bvirtual\s[^(;{}]*?(?<!~)\b(\w+)\(", code)) - {"Backend"}


def test_no_method_is_left_out() -> None:
    """One that has a default would run that, not the inner backend's, and nobody would notice."""
    expected = methods((ROOT / "cpp/backend/backend.h").read_text())
    assert {"sample", "gated_mlp", "create_projection", "max_steps_in_flight"} <= expected
    timed = (ROOT / "bench/cpp/timed_backend.h").read_text()
    overridden = set(re.findall(r"\b(\w+)\([^;{}]*\)(?: const)? override", timed))
    handed_on = set(re.findall(r"\binner_\.(\w+)\(", timed))
    assert expected - overridden == set()
    assert expected - handed_on == set()
