"""TokenBytes.density: a bound on how few tokens a text can have."""

from __future__ import annotations

import random

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from octavo.model.detokenizer import TokenBytes


def byte_level(normalizer: object = None, added: AddedToken | None = None) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "ab"), ("Ġ", "Ġ")]
    vocabulary = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({token: index for index, token in enumerate(vocabulary)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([added or AddedToken("<end>")])
    return tokenizer


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_no_text_has_fewer_tokens(normalizer: object) -> None:
    tokenizer = byte_level(normalizer)
    density = TokenBytes(tokenizer).density
    assert density.bytes_per_token >= len("<end>")
    assert density.dropped == b""
    rng = random.Random(0)
    pieces = [
        "abab",
        "  ",
        "<end>",
        "e\u0301",
        "\u1100\u1161\u11a8",
        "\U0001f600",
        "\u03b1\u0313\u0300\u0345",
    ]
    for _ in range(200):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 20)))
        assert len(tokenizer.encode(text).ids) >= len(text.encode()) / density.bytes_per_token


def test_where_bytes_can_be_dropped_there_is_no_bound() -> None:
    assert TokenBytes(byte_level(normalizers.Strip())).density.bytes_per_token == 0
    assert (
        TokenBytes(byte_level(added=AddedToken("<end>", rstrip=True))).density.bytes_per_token == 0
    )
    removing = byte_level()
    removing.pre_tokenizer = pre_tokenizers.Split("x", "removed")
    assert TokenBytes(removing).density.bytes_per_token == 0
    assert TokenBytes(tokenizers.Tokenizer(models.BPE({"a": 0}, []))).density.bytes_per_token == 0


def test_bytes_without_a_token_are_named() -> None:
    alphabet = [each for each in pre_tokenizers.ByteLevel.alphabet() if each not in "ñx"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE({token: index for index, token in enumerate(alphabet)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    density = TokenBytes(tokenizer).density
    assert (density.bytes_per_token, sorted(density.dropped)) == (1, sorted(b"x\xf1"))
    text = "axx\U0007f600b"
    assert len(tokenizer.encode(text).ids) == len(text.encode().translate(None, density.dropped))
