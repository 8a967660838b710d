"""The fields that completions and chat share, and how they become SamplingParams."""

from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
MAX_STOP_TOKEN_IDS = 1024
MAX_CHOICES = 128
MAX_INT32 = 2**31 - 1

Count = Annotated[int, Meta(ge=0, le=MAX_INT32)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
StopString = Annotated[str, Meta(min_length=1)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream carries beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(msgspec.Struct, kw_only=True):
    """The schema of an answer."""

    name: str | None = None
    description: str | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """What the answer has to match: one of these."""

    json: Annotated[msgspec.Raw, Meta(description="A JSON schema.")] = msgspec.field(
        default_factory=msgspec.Raw
    )
    regex: Annotated[str, Meta(min_length=1)] | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: Annotated[str, Meta(min_length=1, description="In Lark or GBNF.")] | None = None
    json_object: bool | None = None

    @property
    def kinds(self) -> list[str]:
        """The names of those that are set."""
        is_set = {
            "json": bytes(self.json) not in (b"", b"null"),
            "regex": self.regex is not None,
            "choice": self.choice is not None,
            "grammar": self.grammar is not None,
            "json_object": bool(self.json_object),
        }
        return [name for name, yes in is_set.items() if yes]


class SamplingFields(msgspec.Struct, kw_only=True):
    """Fields of both completions and chat. Null means the default; unknown fields are ignored."""

    model: Annotated[str, Meta(description="May be left out: there is one model.")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32, description="-1 or 0: all tokens.")] | None = (
        None
    )
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None

    logit_bias: (
        Annotated[
            dict[Annotated[int, Meta(ge=0, le=MAX_INT32)], float],
            Meta(max_length=MAX_LOGIT_BIAS, description="Token id to bias, cut to -100 .. 100."),
        ]
        | None
    ) = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=MAX_BAD_WORDS)] | None = None

    max_tokens: Count | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop: (
        str
        | Annotated[
            list[StopString],
            Meta(max_length=MAX_STOP_STRINGS, description="Each at most 256 bytes of UTF-8."),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: (
        Annotated[bool, Meta(description="Without effect: tokenizers here write all spaces.")]
        | None
    ) = None

    echo: bool | None = None
    prompt_logprobs: NumLogprobs | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: (
        Annotated[int, Meta(ge=-1, description="Keep the last k; -1: what fits.")] | None
    ) = None
    priority: (
        Annotated[int, Meta(ge=-(2**31), le=MAX_INT32, description="Lower runs first.")] | None
    ) = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    use_beam_search: bool | None = None

    def check(self) -> None:
        """Checks that no single field can make.

        Raises:
            InvalidRequestError: Naming the field.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options: needs stream to be true.", param="stream_options"
            )
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError(
                "prompt_logprobs: not available in a stream.", param="prompt_logprobs"
            )
        if self.use_beam_search:
            raise InvalidRequestError(
                "use_beam_search: beam search is not supported.", param="use_beam_search"
            )
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequestError(
                "truncate_prompt_tokens: must be -1, or at least 1.",
                param="truncate_prompt_tokens",
            )
        for string in self.stop_strings:
            if len(string.encode()) > MAX_STOP_BYTES:
                raise InvalidRequestError(
                    f"stop: each string must be at most {MAX_STOP_BYTES} bytes.", param="stop"
                )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings; a lone empty string means none."""
        if isinstance(self.stop, str):
            return (self.stop,) if self.stop else ()
        return tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """A stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def includes_usage_always(self) -> bool:
        """Every chunk of a stream carries usage."""
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    def check_token_ids(self, vocab_size: int) -> None:
        """Refuse ids that the model does not have.

        Raises:
            InvalidRequestError: Naming the field.
        """
        check_token_ids(self.logit_bias or (), vocab_size, "logit_bias")
        check_token_ids(self.allowed_token_ids or (), vocab_size, "allowed_token_ids")
        check_token_ids(self.stop_token_ids or (), vocab_size, "stop_token_ids")


class SamplingDefaults(Protocol):
    """What a model's generation_config.json says; None where it says nothing."""

    @property
    def temperature(self) -> float | None: ...  # noqa: D102
    @property
    def top_k(self) -> int | None: ...  # noqa: D102
    @property
    def top_p(self) -> float | None: ...  # noqa: D102
    @property
    def min_p(self) -> float | None: ...  # noqa: D102
    @property
    def repetition_penalty(self) -> float | None: ...  # noqa: D102


class OutputLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request's sampling depends on its prompt, tokenizer and route."""

    max_tokens: int
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    shows_special_tokens: bool = False
    grammar: str | None = None


def to_sampling_params(
    fields: SamplingFields, defaults: SamplingDefaults, limits: OutputLimits
) -> SamplingParams:
    """The engine's parameters of a request.

    Raises:
        InvalidRequestError: min_tokens is over max_tokens, or a field does not go with a grammar.
    """
    if limits.grammar is not None:
        _check_beside_grammar(fields)
    min_tokens = fields.min_tokens or 0
    if min_tokens > limits.max_tokens:
        raise InvalidRequestError(
            f"min_tokens: {min_tokens} is more than max_tokens ({limits.max_tokens}).",
            param="min_tokens",
        )
    return SamplingParams(
        n=fields.n or 1,
        temperature=_first(fields.temperature, defaults.temperature, 1.0),
        top_k=max(0, int(_first(fields.top_k, defaults.top_k, 0))),
        top_p=_first(fields.top_p, defaults.top_p, 1.0),
        min_p=_first(fields.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(fields.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias={id_: _clamp(bias) for id_, bias in (fields.logit_bias or {}).items()},
        allowed_token_ids=tuple(dict.fromkeys(fields.allowed_token_ids or ())),
        bad_words=limits.bad_words,
        seed=None if fields.seed in (None, -1) else int(fields.seed) & (2**64 - 1),
        max_tokens=limits.max_tokens,
        min_tokens=min_tokens,
        ignore_eos=bool(fields.ignore_eos),
        stop_token_ids=tuple(dict.fromkeys(fields.stop_token_ids or ())),
        stop=fields.stop_strings,
        include_stop_str_in_output=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False
        and not limits.shows_special_tokens,
        logprobs=limits.logprobs,
        prompt_logprobs=limits.prompt_logprobs,
        grammar=limits.grammar,
    )


def _check_beside_grammar(fields: SamplingFields) -> None:
    """The grammar says where the output may end; and fewer tokens than it allows can be none."""
    for param in ("min_tokens", "ignore_eos", "allowed_token_ids", "bad_words"):
        if getattr(fields, param):
            raise InvalidRequestError(
                f"{param}: cannot be combined with structured output or a forced tool call.",
                param=param,
            )


def check_token_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model does not have.

    Raises:
        InvalidRequestError: Naming the field.
    """
    lowest, highest = min(token_ids, default=0), max(token_ids, default=0)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequestError(
            f"{param}: {wrong} is not a token id of this model (0 to {vocab_size - 1}).",
            param=param,
        )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _clamp(bias: float) -> float:
    return min(100.0, max(-100.0, bias))
