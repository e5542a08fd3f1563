"""Serve the HTTP interface of OpenAI's clients: `/v1/models`, `/v1/chat/completions` and `/v1/completions`.

Needs starlette, and an ASGI server such as uvicorn.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from samout_train.evaluation.serving.engine import Ending, Engine, Generation
from samout_train.evaluation.serving.requests import Asked, Reader, RequestError
from samout_train.evaluation.serving.streamed import StreamedText

PAGE = Path(__file__).with_name("page.html")
SECONDS_OF_A_LOOK = 0.5  # between checks whether the client has left, while no token arrives
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
log = logging.getLogger(__name__)
Event = tuple[int | None, Ending | None]


def application(engine: Engine, reader: Reader, *, hosts: Sequence[str]) -> Starlette:
    """Return the ASGI application.

    Args:
        engine: Generates the answers.
        reader: Checks requests.
        hosts: Allowed host names, `*` for any. Others are refused, which stops sites that point their own name here
            (DNS rebinding).
    """
    api = _Api(engine, reader)
    return Starlette(
        routes=[
            Route("/", api.page),
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.completion, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: _refused, RequestError: _refused, Exception: _failed},
    )


class _Api:
    def __init__(self, engine: Engine, reader: Reader) -> None:
        self.engine, self.reader = engine, reader
        self.created = int(time.time())

    async def page(self, request: Request) -> Response:
        """Answer with the chat page."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    async def health(self, request: Request) -> Response:
        """Answer with the number of requests in progress."""
        return JSONResponse(self.engine.places())

    async def models(self, request: Request) -> Response:
        """Answer with the list of models, which has one entry."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Answer with the model of this name."""
        if (name := request.path_params["name"]) != self.reader.name:
            raise RequestError(f"model {name!r:.100} is not here: there is {self.reader.name!r}", "model", status=404)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.reader.name, "object": "model", "created": self.created, "owned_by": "samout_train"}

    async def chat(self, request: Request) -> Response:
        """Answer with the next message of a conversation."""
        asked = self.reader.chat(await self._body(request))
        return await self._answer(request, asked)

    async def completion(self, request: Request) -> Response:
        """Answer with the text after a prompt."""
        asked = self.reader.completion(await self._body(request))
        return await self._answer(request, asked)

    async def _body(self, request: Request) -> Any:
        most = self.reader.limits.max_body_bytes
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > most:
                raise RequestError(f"the body has more than {most:,} bytes: shorten it", status=413)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON ({error!s:.200})") from error

    async def _answer(self, request: Request, asked: Asked) -> Response:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(index: int | None, ending: Ending | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and no client waits any more
                loop.call_soon_threadsafe(events.put_nowait, (index, ending))

        generation = Generation(asked.ids, asked.sampling, ends_at_special=asked.is_chat, deliver=deliver)
        if not self.engine.submit(generation):
            raise RequestError("too many requests wait: try again later", status=429)
        answer = _Answer(self.reader, asked, generation)
        pieces = _pieces(request, events, generation, answer)
        if asked.streams:
            headers = {"Cache-Control": "no-store"}
            return StreamingResponse(answer.chunks(pieces), media_type="text/event-stream", headers=headers)
        text = "".join([piece async for piece in pieces])
        if answer.ending == "error":
            raise RequestError("the model failed: see the log of the server", status=500)
        return JSONResponse(answer.whole(text))


async def _pieces(
    request: Request, events: "asyncio.Queue[Event]", generation: Generation, answer: "_Answer"
) -> AsyncIterator[str]:
    """Yield the text of an answer as it is drawn; cancel it if the client leaves or a stop text appears."""
    text = StreamedText(answer.reader.vocabulary, answer.asked.stops)
    try:
        while answer.ending is None:
            try:
                index, ending = await asyncio.wait_for(events.get(), SECONDS_OF_A_LOOK)
            except TimeoutError:
                if await request.is_disconnected():
                    return
                continue
            if index is None:
                answer.ending = ending
                break
            answer.num_tokens += 1
            if piece := text.add(index):
                yield piece
            if text.has_ended:
                answer.ending = "stop"
            elif events.empty() and await request.is_disconnected():
                return
        if piece := text.end():
            yield piece
    finally:
        generation.cancel()


class _Answer:
    """Build an answer in the format of OpenAI's interface."""

    def __init__(self, reader: Reader, asked: Asked, generation: Generation) -> None:
        self.reader, self.asked, self.generation = reader, asked, generation
        self.ending: Ending | None = None
        self.num_tokens = 0
        kind, name = ("chatcmpl", "chat.completion") if asked.is_chat else ("cmpl", "text_completion")
        self.name = name
        self.head = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": reader.name}

    def whole(self, text: str) -> dict[str, Any]:
        """Return the body of an answer that is sent as a whole."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.ending, "logprobs": None}
        if self.asked.is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {**self.head, "object": self.name, "choices": [choice], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Return the counts of tokens."""
        read = len(self.asked.ids)
        return {
            "prompt_tokens": read,
            "completion_tokens": self.num_tokens,
            "total_tokens": read + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.generation.reused},
        }

    async def chunks(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yield the events of an answer that is streamed as it is drawn."""
        if self.asked.is_chat:
            yield self._chunk({"role": "assistant", "content": ""})
        async for piece in pieces:
            yield self._chunk({"content": piece})
        if self.ending is None:
            return
        if self.ending == "error":
            error = RequestError("the model failed: see the log of the server", status=500)
            yield _event(error.as_json())
            return
        yield self._chunk({}, self.ending)
        if self.asked.with_usage:
            yield _event({**self._frame(), "choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"

    def _frame(self) -> dict[str, Any]:
        name = f"{self.name}.chunk" if self.asked.is_chat else self.name
        return {**self.head, "object": name}

    def _chunk(self, delta: Mapping[str, str], ending: str | None = None) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": ending, "logprobs": None}
        if self.asked.is_chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return _event({**self._frame(), "choices": [choice]})


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    headers: Mapping[str, str] | None = None
    if isinstance(error, HTTPException):
        headers = error.headers
        error = RequestError(f"{request.method} {request.url.path!r:.200}: {error.detail}", status=error.status_code)
    assert isinstance(error, RequestError)
    return JSONResponse(error.as_json(), status_code=error.status, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("serve       %s %s failed: %r", request.method, request.url.path, error)
    return JSONResponse(RequestError("the server failed: see its log", status=500).as_json(), status_code=500)
