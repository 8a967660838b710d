"""POST /v1/responses; GET, DELETE and cancel of those that are kept."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError, QueueFullError, RequestError
from octavo.server.background import BackgroundRun
from octavo.server.chat_run import ChatRun
from octavo.server.disconnect import watch
from octavo.server.error_responses import renamed_param
from octavo.server.event_log import EventLog, LogReader
from octavo.server.openapi import Operation
from octavo.server.response_answer import ResponseAnswer
from octavo.server.response_input import PARAMS, chat_request, input_messages, shown_input
from octavo.server.response_store import ResponseStore, StoredResponse
from octavo.server.schemas.chat import ChatMessage, FunctionCall, ToolCall
from octavo.server.schemas.responses import OutputItem, Response, ResponseRequest
from octavo.server.sse import EventStream, send_events
from octavo.server.streaming import stream_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import falcon

    from octavo.server.context import ServerContext

_DECODER = msgspec.json.Decoder(ResponseRequest)
_DEFAULT_ITEMS = 20
_MAX_ITEMS = 100
_MAX_NUMBER = 999_999_999  # of an event
_CAN_GO_ON = frozenset({"completed", "incomplete"})


class UnknownResponseError(RequestError):
    """A response that is not kept here: 404."""

    status = 404
    type = "not_found_error"
    code = "response_not_found"


class ResponsesResource:
    """Answers inputs."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Answer an input", request=ResponseRequest, answer=Response, streams=True
        )
    }

    def __init__(self, context: ServerContext, store: ResponseStore) -> None:
        self._context = context
        self._store = store

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer an input, at once or in the background."""
        request = self._context.read(req, _DECODER)
        self._check(request)
        earlier = self._earlier(request)
        with renamed_param(PARAMS):
            chat = chat_request(request, earlier)
            run = ChatRun(self._context, chat, req.context.started)
        conversation = [*earlier, *input_messages(request.input)]
        items = shown_input(request.input)

        def keep(response: Response) -> None:
            self._store.put(response.id, _stored(response, conversation, items))

        keeps = self._store.is_enabled and request.store is not False
        if request.background:
            answer = ResponseAnswer(request, run, store=True)
            log = EventLog(self._store.event_room) if request.stream else None

            def end(response: Response) -> None:
                self._store.end(response.id, _stored(response, conversation, items, log))

            self._begin(req, resp, BackgroundRun(answer, items, end, log))
            return
        answer = ResponseAnswer(request, run, store=keeps, keep=keep if keeps else None)
        if request.stream:
            stream_generation(req, resp, run.generation, answer)
            return
        with run.generation as generation, generation.attended(req.env):
            response = answer.whole()
            if keeps:
                keep(response)
            resp.data = msgspec.json.encode(response)

    def _begin(self, req: falcon.Request, resp: falcon.Response, run: BackgroundRun) -> None:
        """Have a response made, and answer it as it is before that, or its events."""
        try:
            self._store.begin(run)
        except QueueFullError:
            run.cancel()
            raise
        if not self._context.config.disable_log_requests:
            run.request_id = req.context.request_id
        if run.log is None:
            resp.data = run.body()
        else:
            _stream_log(req, resp, run.log, -1)
        run.start()

    def _check(self, request: ResponseRequest) -> None:
        if not request.background:
            return
        if request.store is False:
            raise InvalidRequestError("store: a background response is kept.", param="store")
        if not self._store.is_enabled:
            raise InvalidRequestError(
                "background: needs a server with one HTTP worker (--api-server-count 1).",
                param="background",
            )
        self._store.check_room()

    def _earlier(self, request: ResponseRequest) -> Sequence[ChatMessage]:
        id_ = request.previous_response_id
        if id_ is None:
            return ()
        stored = self._store.get(id_)
        if stored is None and self._store.running(id_) is None:
            raise UnknownResponseError(
                "previous_response_id: this response is not kept here.",
                param="previous_response_id",
            )
        if stored is None or stored.status not in _CAN_GO_ON:
            raise InvalidRequestError(
                "previous_response_id: this response is not complete.",
                param="previous_response_id",
            )
        return stored.messages


class ResponseResource:
    """One response that is kept."""

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(
            summary="A response that is kept, or as far as it has come; or its events",
            answer=Response,
            query={
                "stream": {"type": "boolean", "default": False},
                "starting_after": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": _MAX_NUMBER,
                },
            },
            streams=True,
        ),
        "delete": Operation(summary="Forget a response, and stop it if it runs"),
    }

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """As it was answered, or its events from where the client has left off."""
        known = self._store.running(response_id) or self._store.get(response_id)
        if known is None:
            raise _unknown()
        after = None if req.method == "HEAD" else _starting_after(req)
        if after is None:
            resp.data = known.body()
        elif known.log is None:
            raise InvalidRequestError(
                "stream: only a background response that was begun with stream has events.",
                param="stream",
            )
        else:
            _stream_log(req, resp, known.log, after)

    on_head = on_get

    def on_delete(self, _req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """Forget it."""
        if not self._store.remove(response_id):
            raise _unknown()
        deleted = {"id": response_id, "object": "response", "deleted": True}
        resp.data = msgspec.json.encode(deleted)


class CancelResponseResource:
    """Cancels responses that run in the background."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Cancel a response that runs in the background", answer=Response, refuses=True
        )
    }

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_post(self, _req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """Stop it and answer what it has come to; one that has ended stays as it is."""
        if run := self._store.running(response_id):
            resp.data = run.cancel()
            return
        stored = self._store.get(response_id)
        if stored is None:
            raise _unknown()
        if not stored.is_background:
            raise InvalidRequestError("Only a background response can be cancelled.")
        resp.data = stored.body()


class InputItemsResource:
    """What a response answers."""

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(
            summary="The input of a response",
            query={
                "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_ITEMS},
                "order": {"enum": ["asc", "desc"], "default": "desc"},
                "after": {"type": "string"},
            },
        )
    }

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, req: falcon.Request, resp: falcon.Response, response_id: str) -> None:
        """A page of the items, the newest first."""
        known = self._store.running(response_id) or self._store.get(response_id)
        if known is None:
            raise _unknown()
        items = list(known.input_items)
        if _order(req) == "desc":
            items.reverse()
        begin = _begin(items, req.get_param("after"))
        page = items[begin : begin + _limit(req)]
        resp.data = msgspec.json.encode(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": begin + len(page) < len(items),
            }
        )

    on_head = on_get


def _stream_log(req: falcon.Request, resp: falcon.Response, log: EventLog, after: int) -> None:
    """Answer a log's events; the client may go away, the response is made all the same."""
    reader = LogReader(log, after)
    with contextlib.ExitStack() as stack:
        stack.callback(reader.close)
        stack.enter_context(watch(req.env, reader.close))
        close = stack.pop_all().close
    send_events(resp, EventStream(iter(reader), close, reader.fault))


def _starting_after(req: falcon.Request) -> int | None:
    """The number of the last event that the client has, -1 for none; None: it wants no events."""
    stream: str = req.get_param("stream", default="false")
    after: str | None = req.get_param("starting_after")
    if stream not in ("true", "false"):
        raise InvalidRequestError("stream: expected true or false.", param="stream")
    if after is not None and (not after.isascii() or not after.isdigit() or len(after) > 9):
        raise InvalidRequestError(
            f"starting_after: expected 0 to {_MAX_NUMBER}.", param="starting_after"
        )
    if stream == "false":
        return None
    return -1 if after is None else int(after)


def _unknown() -> UnknownResponseError:
    return UnknownResponseError("This response is not kept here.")


def _order(req: falcon.Request) -> str:
    order: str = req.get_param("order", default="desc")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order: expected asc or desc.", param="order")
    return order


def _limit(req: falcon.Request) -> int:
    text: str = req.get_param("limit", default=str(_DEFAULT_ITEMS))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_ITEMS))):
        text = "0"
    if not 1 <= int(text) <= _MAX_ITEMS:
        raise InvalidRequestError(f"limit: expected 1 to {_MAX_ITEMS}.", param="limit")
    return int(text)


def _begin(items: Sequence[dict[str, Any]], after: str | None) -> int:
    if after is None:
        return 0
    ids = [item["id"] for item in items]
    if after not in ids:
        raise InvalidRequestError("after: there is no such item.", param="after")
    return ids.index(after) + 1


def _stored(
    response: Response,
    conversation: Sequence[ChatMessage],
    items: Sequence[dict[str, Any]],
    log: EventLog | None = None,
) -> StoredResponse:
    body = msgspec.json.encode(response)
    messages = [*conversation, *_answer_messages(response.output)]
    size = len(body) + len(msgspec.json.encode(messages)) + len(msgspec.json.encode(items))
    return StoredResponse(
        body,
        messages,
        size + (log.num_bytes if log else 0),
        items,
        status=response.status,
        is_background=response.background,
        log=log,
    )


def _answer_messages(output: Sequence[OutputItem]) -> list[ChatMessage]:
    """The answer as an assistant's message of the conversation."""
    message = ChatMessage(role="assistant")
    calls = []
    for item in output:
        parts = item.content if isinstance(item.content, list) else []
        text = "".join(part.text for part in parts)
        if item.type == "message":
            message.content = text
        elif item.type == "reasoning":
            message.reasoning_content = text
        else:
            function = FunctionCall(name=str(item.name), arguments=str(item.arguments))
            calls.append(ToolCall(id=str(item.call_id), function=function))
    message.tool_calls = calls or None
    return [message] if output else []
