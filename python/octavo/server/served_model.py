"""What the routes need of the model that is served, apart from the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.model.detokenizer import TokenBytes
    from octavo.server.schemas.sampling import SamplingDefaults


class Tokenizer(Protocol):
    """Text to token ids and back."""

    token_bytes: TokenBytes
    vocab_size: int
    special_tokens: dict[str, str]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where the vocabulary has no such token."""


class ChatTemplate(Protocol):
    """Conversations to text."""

    source: str

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that the model is to continue.

        Raises:
            InvalidRequestError: The template refuses the conversation, or takes too long.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The text side of a loaded model.

    Attributes:
        tokenizer: Its tokenizer.
        chat_template: None where the model has none: it completes but does not chat.
        eos_token_ids: Ids that end a sequence.
        defaults: What its generation_config.json says about sampling.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: Sequence[int]
    defaults: SamplingDefaults
