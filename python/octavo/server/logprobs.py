"""Log-probabilities in the shapes that clients expect.

Every number is the engine's float as it came: a greedy token has the same one as the chosen token
and among the most likely ones.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from octavo.server.schemas.chat import TokenLogprob, TopLogprob
from octavo.server.schemas.completions import CompletionLogprobs
from octavo.server.schemas.shared import PromptLogprob, PromptLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.client import Logprob
    from octavo.model.detokenizer import TokenBytes

_LEAST = -9999.0  # JSON has no infinity


class CompletionColumns:
    """Makes the columns of one choice, piece by piece; offsets go on from piece to piece."""

    def __init__(self, token_bytes: TokenBytes, *, skip_special_tokens: bool) -> None:
        self._token_bytes = token_bytes
        self._silent = token_bytes.special_ids if skip_special_tokens else frozenset()
        self._offset = 0
        self._rest = b""

    def take(
        self, token_ids: Sequence[int], logprobs: Sequence[Sequence[Logprob] | None]
    ) -> CompletionLogprobs:
        """Columns of the next tokens; None in logprobs where there is no number."""
        columns = CompletionLogprobs()
        for token_id, candidates in zip(token_ids, logprobs, strict=True):
            columns.text_offset.append(self._offset)
            columns.tokens.append(_text(self._token_bytes, token_id))
            self._advance(token_id)
            if candidates is None:
                columns.token_logprobs.append(None)
                columns.top_logprobs.append(None)
            else:
                columns.token_logprobs.append(_finite(candidates[0][1]))
                columns.top_logprobs.append(self._by_text(candidates))
        return columns

    def _by_text(self, candidates: Sequence[Logprob]) -> dict[str, float]:
        """The most likely tokens, and the chosen one last where it is not among them.

        Different tokens can have one text, as parts of a split character do; the likelier stays.
        """
        table: dict[str, float] = {}
        for token_id, logprob, _ in [*candidates[1:], candidates[0]]:
            table.setdefault(_text(self._token_bytes, token_id), _finite(logprob))
        return table

    def _advance(self, token_id: int) -> None:
        if token_id in self._silent:
            return
        data = self._rest + self._token_bytes.of(token_id)
        text, used = codecs.utf_8_decode(data, "replace", False)  # noqa: FBT003
        self._rest = data[used:]
        self._offset += len(text)


def extend(columns: CompletionLogprobs, more: CompletionLogprobs) -> None:
    """Append the columns of later tokens."""
    columns.text_offset += more.text_offset
    columns.tokens += more.tokens
    columns.token_logprobs += more.token_logprobs
    columns.top_logprobs += more.top_logprobs


def chat_logprobs(
    token_bytes: TokenBytes, logprobs: Sequence[Sequence[Logprob]]
) -> list[TokenLogprob]:
    """One entry for each token of a chat answer."""
    return [_chat_entry(token_bytes, candidates) for candidates in logprobs]


def prompt_logprobs(
    token_bytes: TokenBytes, logprobs: Sequence[Sequence[Logprob]]
) -> PromptLogprobs:
    """One table for each token of a prompt; the first token has none."""
    return [None, *(_prompt_entry(token_bytes, candidates) for candidates in logprobs)]


def _chat_entry(token_bytes: TokenBytes, candidates: Sequence[Logprob]) -> TokenLogprob:
    token_id, logprob, _ = candidates[0]
    data = token_bytes.of(token_id)
    top = [
        TopLogprob(
            token=_text(token_bytes, other),
            logprob=_finite(value),
            bytes=list(token_bytes.of(other)),
        )
        for other, value, _ in candidates[1:]
    ]
    return TokenLogprob(
        token=data.decode(errors="replace"),
        logprob=_finite(logprob),
        bytes=list(data),
        top_logprobs=top,
    )


def _prompt_entry(
    token_bytes: TokenBytes, candidates: Sequence[Logprob]
) -> dict[int, PromptLogprob]:
    return {
        token_id: PromptLogprob(
            logprob=_finite(logprob), rank=rank, decoded_token=_text(token_bytes, token_id)
        )
        for token_id, logprob, rank in candidates
    }


def _text(token_bytes: TokenBytes, token_id: int) -> str:
    return token_bytes.of(token_id).decode(errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
