"""Incremental decoding against the tokenizers library's one-shot decode."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from octavo.model.detokenizer import Detokenizer, DetokenizerOptions, TokenBytes

if TYPE_CHECKING:
    from collections.abc import Sequence

CORPUS = [
    "The capital of France is Paris. Where is the river, and how long is it?",
    "def main(argv: list[str]) -> int:\n    return 0\n\n\tprint('tabs')\n",
    "你好世界、日本語のテキスト。한국어 문장입니다.",
    "Ωμέγα naïve café Ångström Привет мир שלום العربية",
]
TEXTS = [
    "",
    " leading space, trailing space ",
    "family 👨‍👩‍👧‍👦 flags 🇫🇷🇯🇵 skin 👍🏽 plain 😀😃",
    "combining: e\u0301 a\u030a\u0323 n\u0303 zalgo Z\u0351\u036b\u0343",
    "汉字和漢字とかな、한글 𠀀𠮷",
    "line\r\nbreaks\n\n\ttabs and \x00 NUL and \u2028",
    "\ufffd is a character too",
    "\u2581 is the mark that SentencePiece writes for a space",
]
SPECIAL = AddedToken("<|end|>", special=True)
SPACED = AddedToken("<my tool>", special=False)


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.add_tokens([SPACED])
    return tokenizer


def sentencepiece(*, strip: bool) -> tokenizers.Tokenizer:
    bytes_ = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    letters = sorted(set("▁" + "".join(CORPUS[:1] + CORPUS[3:]).replace(" ", "▁")))
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **bytes_}
    for piece in [*letters, "▁t", "▁th", "▁the", "is"]:
        vocab.setdefault(piece, len(vocab))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("i", "s")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


BYTE_LEVEL = byte_level()
STRIPPING = sentencepiece(strip=True)
PLAIN = sentencepiece(strip=False)
WORD_PIECE = word_piece()
ALL = [BYTE_LEVEL, STRIPPING, PLAIN, WORD_PIECE]


def run(
    tokenizer: tokenizers.Tokenizer, ids: list[int], cuts: Sequence[int] = (), **options: object
) -> tuple[list[str], Detokenizer]:
    """The deltas of one sequence fed in groups that end at the given places."""
    options.setdefault("at_start", True)
    detokenizer = Detokenizer(TokenBytes(tokenizer), DetokenizerOptions(**options))
    deltas = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    for begin, end in itertools.pairwise(edges):
        delta, stopped = detokenizer.feed(ids[begin:end])
        deltas.append(delta)
        if stopped:
            return deltas, detokenizer
    return [*deltas, detokenizer.flush()], detokenizer


def one_by_one(ids: list[int]) -> list[int]:
    return list(range(1, len(ids)))


@pytest.mark.parametrize("tokenizer", ALL[:3], ids=["byte-level", "strip", "plain"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_token_by_token(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    deltas, _ = run(tokenizer, ids, one_by_one(ids))
    assert "".join(deltas) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


def test_split_emoji_comes_out_whole() -> None:
    ids = BYTE_LEVEL.encode("a😀b").ids
    deltas, _ = run(BYTE_LEVEL, ids, one_by_one(ids))
    assert len(ids) == 6
    assert deltas == ["a", "", "", "", "😀", "b", ""]


def test_a_cut_code_point_is_flushed_as_one_replacement() -> None:
    ids = BYTE_LEVEL.encode("a😀").ids[:-1]
    deltas, _ = run(BYTE_LEVEL, ids, one_by_one(ids))
    assert deltas == ["a", "", "", "", "\ufffd"]
    assert BYTE_LEVEL.decode(ids) == "a\ufffd"


@given(
    ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 3), max_size=40),
    cuts=st.lists(st.integers(1, 40), max_size=6),
    skip=st.booleans(),
)
def test_byte_level_equals_one_shot_for_any_ids(
    ids: list[int], cuts: list[int], skip: bool
) -> None:
    deltas, _ = run(BYTE_LEVEL, ids, cuts, skip_special_tokens=skip)
    assert "".join(deltas) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(1, 60), max_size=6))
@pytest.mark.parametrize("tokenizer", [STRIPPING, PLAIN], ids=["strip", "plain"])
def test_sentencepiece_equals_one_shot_for_any_text(
    tokenizer: tokenizers.Tokenizer, text: str, cuts: list[int]
) -> None:
    ids = tokenizer.encode(text).ids
    deltas, _ = run(tokenizer, ids, cuts)
    assert "".join(deltas) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, PLAIN.get_vocab_size() - 1), max_size=30))
@pytest.mark.parametrize("tokenizer", [STRIPPING, PLAIN], ids=["strip", "plain"])
def test_sentencepiece_text_does_not_depend_on_grouping(
    tokenizer: tokenizers.Tokenizer, ids: list[int]
) -> None:
    single = "".join(run(tokenizer, ids, one_by_one(ids))[0])
    assert single == "".join(run(tokenizer, ids)[0])
    whole = tokenizer.decode(ids)
    if "\ufffd" not in whole:
        assert single == whole


@given(ids=st.lists(st.integers(1, WORD_PIECE.get_vocab_size() - 1), max_size=20))
def test_other_tokenizers_equal_one_shot(ids: list[int]) -> None:
    deltas, _ = run(WORD_PIECE, ids, one_by_one(ids))
    assert "".join(deltas) == WORD_PIECE.decode(ids)


def test_output_keeps_its_leading_space_after_a_prompt() -> None:
    ids = STRIPPING.encode(" the").ids
    assert "".join(run(STRIPPING, ids)[0]) == "the"
    assert "".join(run(STRIPPING, ids, at_start=False)[0]) == " the"


def test_special_tokens_are_left_out_only_on_demand() -> None:
    ids = BYTE_LEVEL.encode("a<|end|>b<my tool>").ids
    assert "".join(run(BYTE_LEVEL, ids)[0]) == "ab<my tool>"
    assert "".join(run(BYTE_LEVEL, ids, skip_special_tokens=False)[0]) == "a<|end|>b<my tool>"


def test_bytes_of_one_token() -> None:
    table = TokenBytes(BYTE_LEVEL)
    ids = BYTE_LEVEL.encode("😀").ids
    assert b"".join(table.of(id_) for id_ in ids) == "😀".encode()
    assert table.of(BYTE_LEVEL.token_to_id("<|end|>")) == b"<|end|>"
    assert table.of(10**9) == b""
    assert TokenBytes(PLAIN).of(PLAIN.token_to_id("▁the")) == b" the"
    assert TokenBytes(PLAIN).of(PLAIN.token_to_id("<0xF0>")) == b"\xf0"
    assert TokenBytes(WORD_PIECE).of(WORD_PIECE.token_to_id("is")) == b"is"


class TestStopStrings:
    def test_cut_across_tokens_and_nothing_leaks(self) -> None:
        ids = BYTE_LEVEL.encode("one two STOP three").ids
        deltas, detokenizer = run(BYTE_LEVEL, ids, one_by_one(ids), stop=("STOP",))
        assert "".join(deltas) == "one two "
        assert detokenizer.stop_string == "STOP"
        assert detokenizer.num_tokens == len(BYTE_LEVEL.encode("one two STOP").ids)

    def test_kept_on_demand(self) -> None:
        ids = BYTE_LEVEL.encode("one two STOP three").ids
        deltas, _ = run(BYTE_LEVEL, ids, stop=("STOP",), include_stop_str_in_output=True)
        assert "".join(deltas) == "one two STOP"

    def test_a_beginning_that_comes_to_nothing_is_given_back(self) -> None:
        ids = BYTE_LEVEL.encode("ab STO").ids
        deltas, detokenizer = run(BYTE_LEVEL, ids, one_by_one(ids), stop=("STOP",))
        assert "".join(deltas) == "ab STO"
        assert "".join(deltas[:-1]) == "ab "
        assert detokenizer.stop_string is None

    def test_overlapping_beginnings(self) -> None:
        ids = BYTE_LEVEL.encode("aabaabaaab").ids
        deltas, _ = run(BYTE_LEVEL, ids, one_by_one(ids), stop=("aabaaa",))
        assert "".join(deltas) == "aab"

    def test_longest_of_those_that_end_together(self) -> None:
        ids = BYTE_LEVEL.encode("xx\n\nUser: y").ids
        _, detokenizer = run(BYTE_LEVEL, ids, stop=("User:", "\n\nUser:"))
        assert detokenizer.stop_string == "\n\nUser:"

    def test_not_searched_before_min_tokens(self) -> None:
        ids = BYTE_LEVEL.encode("x.y.z").ids
        deltas, _ = run(BYTE_LEVEL, ids, one_by_one(ids), stop=(".",), min_tokens=3)
        assert "".join(deltas) == "x.y"

    def test_a_split_emoji_can_be_a_stop_string(self) -> None:
        ids = BYTE_LEVEL.encode("go 🛑 on").ids
        deltas, _ = run(BYTE_LEVEL, ids, one_by_one(ids), stop=("🛑",))
        assert "".join(deltas) == "go "

    def test_nothing_follows_the_end(self) -> None:
        detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), DetokenizerOptions(stop=("b",)))
        assert detokenizer.feed(BYTE_LEVEL.encode("abc").ids) == ("a", True)
        assert detokenizer.feed(BYTE_LEVEL.encode("more").ids) == ("", True)
        assert detokenizer.flush() == ""

    @settings(max_examples=300)
    @given(
        text=st.text(alphabet="ab\n😀", max_size=40),
        stop=st.lists(st.text(alphabet="ab\n😀", min_size=1, max_size=4), min_size=1, max_size=4),
        cuts=st.lists(st.integers(1, 40), max_size=6),
    )
    def test_equals_a_search_of_the_whole_text(
        self, text: str, stop: list[str], cuts: list[int]
    ) -> None:
        ids = BYTE_LEVEL.encode(text).ids
        deltas, detokenizer = run(BYTE_LEVEL, ids, cuts, stop=tuple(stop))
        ends = {s: text.find(s) + len(s) for s in stop if s in text}
        if not ends:
            assert "".join(deltas) == text
            assert detokenizer.stop_string is None
            return
        first = min(ends.values())
        winner = max((s for s, end in ends.items() if end == first), key=len)
        assert detokenizer.stop_string == winner
        assert "".join(deltas) == text[: first - len(winner)]


class TestStopToken:
    def test_its_text_is_left_out(self) -> None:
        ids = BYTE_LEVEL.encode("a;").ids
        detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), DetokenizerOptions())
        assert detokenizer.feed(ids, stop_token_id=ids[-1]) == ("a", False)
        assert detokenizer.num_tokens == len(ids)

    def test_its_text_is_kept_on_demand(self) -> None:
        ids = BYTE_LEVEL.encode("a;").ids
        options = DetokenizerOptions(include_stop_str_in_output=True, stop=("z",))
        detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), options)
        assert detokenizer.feed(ids, stop_token_id=ids[-1]) == ("a;", False)

    def test_left_out_with_stop_strings_too(self) -> None:
        ids = BYTE_LEVEL.encode("a;").ids
        detokenizer = Detokenizer(TokenBytes(BYTE_LEVEL), DetokenizerOptions(stop=("z",)))
        assert detokenizer.feed(ids, stop_token_id=ids[-1]) == ("a", False)
        assert detokenizer.num_tokens == len(ids)
