"""The server: what each path does, who may call it, and errors as JSON."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitquilt.engines import Engine
from bitquilt.serve.config import ServeConfig
from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.serve.markdown import markdown_html
from bitquilt.serve.metrics import Metrics
from bitquilt.serve.requests import (
    ChatRequest,
    CompletionRequest,
    MarkdownRequest,
    TextRequest,
    check_model,
    parse_request,
)
from bitquilt.serve.responses import ChatReply, TextReply
from bitquilt.serve.scheduler import Prepare, Scheduler
from bitquilt.serve.tools import writes_calls
from bitquilt.talk.events import End, Event
from bitquilt.talk.prompt import compose, plain
from bitquilt.talk.sample import Sample

LOCAL = ("127.0.0.1", "localhost")
"""Names of this server that a browser may use; any other that leads here is DNS rebinding."""
BYTES_PER_TOKEN, LEAST_BYTES = 64, 1 << 16
"""A body may have so many bytes per token of the context: text has about 4, and there is JSON
around it."""
PAGE = Path(__file__).with_name("page.html")


def page_policy(page: str) -> str:
    """Give the Content-Security-Policy under which a page runs its own script, and no other."""
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


Endpoint = Callable[[Request], Awaitable[Response]]
_T = TypeVar("_T")


class Server:
    """One model, as an ASGI application."""

    def __init__(self, open_engine: Callable[[], Engine], name: str, config: ServeConfig) -> None:
        """Load the model.

        Args:
            open_engine: loads the model; called again after a crash of its engine.
            name: what the model is called in requests and answers.
            config: whom to answer, and how much at a time; where to listen is up to the caller.

        Raises:
            UserError: the model cannot be loaded.
        """
        self._html = PAGE.read_text(encoding="utf-8")
        self._html_headers = {"Content-Security-Policy": page_policy(self._html)}
        self._name, self._key, self._most = name, config.api_key, config.max_tokens
        self._metrics = Metrics()
        self.scheduler = Scheduler(open_engine, config.parallel, config.queue, self._metrics.ended)
        self._metrics.watch(self.scheduler)
        self._most_bytes = max(LEAST_BYTES, BYTES_PER_TOKEN * self.scheduler.info.context)
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/markdown", self._protected(self._markdown), methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._protected(self._figures)),
                Route("/v1/models", self._protected(self._models)),
                Route("/v1/chat/completions", self._protected(self._chat), methods=["POST"]),
                Route("/v1/completions", self._protected(self._complete), methods=["POST"]),
            ],
            exception_handlers={
                RefusedError: _refused,
                HTTPException: _http_error,
                Exception: _failed,
            },
        )
        self.asgi = _Counted(app, self._metrics)

    async def _page(self, request: Request) -> Response:
        self._check_host(request)
        return HTMLResponse(
            self._html, headers={"Content-Security-Policy": page_policy(self._html)}
        )

    async def _markdown(self, request: Request) -> Response:
        asked = parse_request(MarkdownRequest, await self._body(request))
        return JSONResponse({"html": await asyncio.to_thread(markdown_html, asked.text)})

    async def _health(self, _: Request) -> Response:
        healthy = self.scheduler.healthy
        said = {"status": "ok" if healthy else "unavailable", "model": self._name}
        return JSONResponse(said, 200 if healthy else 503)

    async def _figures(self, _: Request) -> Response:
        text, kind = self._metrics.text()
        return Response(text, headers={"Content-Type": kind})

    async def _models(self, _: Request) -> Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "bitquilt"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        asked = parse_request(ChatRequest, await self._body(request))
        check_model(asked.model, self._name)
        info = self.scheduler.info
        messages = asked.conversation(info.chat_template)
        tools = asked.offered(info.chat_template)
        settings = asked.settings(info, self._most)

        def prepare(engine: Engine) -> Sample:
            return Sample(engine, compose(engine, messages, tools), settings)

        reply = ChatReply(self._name, bool(tools) and writes_calls(info.chat_template))
        return await self._answer(request, asked, prepare, reply)

    async def _complete(self, request: Request) -> Response:
        asked = parse_request(TextRequest, await self._body(request))
        check_model(asked.model, self._name)
        settings = asked.settings(self.scheduler.info, self._most)

        def prepare(engine: Engine) -> Sample:
            return Sample(engine, plain(engine, asked.prompt), settings)

        return await self._answer(request, asked, prepare, TextReply(self._name))

    async def _answer(
        self,
        request: Request,
        asked: CompletionRequest,
        prepare: Prepare,
        reply: ChatReply | TextReply,
    ) -> Response:
        """Answer in one piece or in many; a refusal comes before the first of them."""
        events = self._timed(self.scheduler.answer(prepare))
        if not asked.stream:
            end = await _unless_gone(request, _last(events))
            return JSONResponse(reply.whole(end))
        first = await _unless_gone(request, anext(events))
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(
            _sent(first, events, reply, with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    async def _timed(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The same events; measures the time to the first."""
        started = time.perf_counter()
        async with aclosing(events) as coming:
            first = True
            async for event in coming:
                if first:
                    self._metrics.began(time.perf_counter() - started)
                    first = False
                yield event

    async def _body(self, request: Request) -> bytes:
        """A request's body, if its type is JSON and it is not too long."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":
            raise invalid(
                "the body has to be JSON; send it with Content-Type: application/json", 415
            )
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._most_bytes:
                raise invalid(
                    f"the request is longer than {self._most_bytes:,} bytes, more than this model "
                    f"can read with its context of {self.scheduler.info.context:,} tokens; send a "
                    "shorter one",
                    413,
                )
        return bytes(body)

    def _protected(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for requests that bring the key and do not come from a foreign site."""

        async def checked(request: Request) -> Response:
            self._check_host(request)
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self._key is not None and not hmac.compare_digest(
                given.encode(), self._key.encode()
            ):
                raise RefusedError(
                    401,
                    "authentication_error",
                    "the API key is wrong or missing; send Authorization: Bearer KEY",
                )
            return await endpoint(request)

        return checked

    def _check_host(self, request: Request) -> None:
        if request.url.hostname not in LOCAL:
            raise invalid(f"this server answers only to the host names {' and '.join(LOCAL)}", 403)


class _Counted:
    """An application whose responses are counted, streamed ones too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = "endpoint" in scope
                path = scope["path"] if known else "other"
                self._metrics.requested(path, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


async def _sent(
    first: Event,
    events: AsyncGenerator[Event, None],
    reply: ChatReply | TextReply,
    with_usage: bool,
) -> AsyncGenerator[str, None]:
    """The answer as server-sent events; it is stopped when the client goes."""
    async with aclosing(events) as coming:
        if begin := reply.first():
            yield _line(begin)
        event = first
        try:
            while True:
                for chunk in reply.chunks(event):
                    yield _line(chunk)
                if isinstance(event, End):
                    break
                event = await anext(coming)
        except RefusedError as error:
            yield _line(error.to_dict())
            return
        if with_usage:
            yield _line(reply.usage(event))
        yield "data: [DONE]\n\n"


async def _last(events: AsyncGenerator[Event, None]) -> End:
    async with aclosing(events) as coming:
        async for event in coming:
            if isinstance(event, End):
                return event
    raise AssertionError("an answer ends with its end")


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Wait for work, and stop it when the client goes."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise invalid("the client went away", 499)
        return doing.result()
    finally:
        watching.cancel()
        doing.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.to_dict(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = f"{request.method} {request.url.path}: {error.detail}; the API is under /v1"
    return await _refused(request, invalid(why, error.status_code))


async def _failed(request: Request, _: Exception) -> Response:
    return await _refused(request, RefusedError(500, "server_error", "the server failed"))
