"""The server: what each path does, and errors as JSON."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.serve.access import Access, read_body
from bitquilt.serve.answering import Events, ReplyForm, respond
from bitquilt.serve.config import ServeConfig
from bitquilt.serve.draft_log import DraftLog
from bitquilt.serve.errors import RefusedError, for_clients, invalid
from bitquilt.serve.markdown import markdown_html
from bitquilt.serve.metrics import Metrics
from bitquilt.serve.ollama import (
    API_VERSION,
    OllamaReply,
    OllamaRequest,
    listed,
    loaded,
    shown,
)
from bitquilt.serve.openai_responses import Conversations, ResponsesReply, ResponsesRequest
from bitquilt.serve.requests import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    MarkdownRequest,
    ModelRequest,
    TextRequest,
    TokenizeRequest,
    check_model,
    ignored_header,
    is_other,
    parse_request,
)
from bitquilt.serve.responses import ChatReply, Echo, Json, TextReply
from bitquilt.serve.scheduler import FAILED, Prepare, Scheduler
from bitquilt.serve.served import ServedModel
from bitquilt.serve.tools import NO_TOOLS, Offer
from bitquilt.talk.events import End
from bitquilt.talk.prompt import compose, plain, require_tokens
from bitquilt.talk.sample import Sample

BYTES_PER_TOKEN, LEAST_BYTES = 64, 1 << 16
"""A body may have so many bytes per token of the context: text has about 4, and there is JSON
around it."""
IMAGE_BYTES = 1 << 25
"""A body may have so many more where the model sees: every request has all images of its
conversation."""
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


class Server:
    """One model, as an ASGI application."""

    def __init__(
        self, open_engine: Callable[[], Engine], model: ServedModel, config: ServeConfig
    ) -> None:
        """Load the model.

        Args:
            open_engine: loads the model; called again after a crash of its engine.
            model: what clients are told of it.
            config: whom to answer, and how much at a time; where to listen is up to the caller.

        Raises:
            UserError: the model cannot be loaded.
        """
        self._html = PAGE.read_text(encoding="utf-8")
        self._served, self._name = model, model.name
        self._most, self._strict = config.max_tokens, config.strict
        self._started = int(time.time())
        self._access = Access(config.api_key, config.allow_host, config.allow_origin)
        self._metrics = Metrics()
        self._drafts = None if config.draft is None else DraftLog(config.draft)
        self.scheduler = Scheduler(open_engine, config.parallel, config.queue, self._ended)
        self._metrics.watch(self.scheduler)
        self._conversations = Conversations()
        info = self.scheduler.info
        self._most_bytes = max(LEAST_BYTES, BYTES_PER_TOKEN * info.context)
        self._most_bytes += IMAGE_BYTES if info.sees else 0
        app = Starlette(
            routes=self._routes(),
            middleware=[self._access.middleware()],
            exception_handlers={
                RefusedError: _refused,
                UserError: _user_error,
                HTTPException: _http_error,
                Exception: _failed,
            },
        )
        self.asgi = _Counted(app, self._metrics)

    def _ended(self, end: End) -> None:
        """Take note of an answer that has ended."""
        self._metrics.ended(end)
        if self._drafts is not None:
            self._drafts.ended(end)

    def _routes(self) -> list[Route]:
        """All paths; those of OpenAI's API are also there without ``/v1``, as in llama.cpp."""
        openai: list[tuple[str, str, Endpoint]] = [
            ("POST", "/chat/completions", self._chat),
            ("POST", "/completions", self._complete),
            ("POST", "/responses", self._respond),
            ("GET", "/models", self._models),
            ("GET", "/models/{model:path}", self._model),
        ]
        others: list[tuple[str, str, Endpoint]] = [
            ("POST", "/markdown", self._markdown),
            ("GET", "/metrics", self._figures),
            ("GET", "/tokenizer_info", self._tokenizer_info),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
            ("POST", "/api/chat", self._ollama_chat),
            ("POST", "/api/generate", self._ollama_generate),
            ("POST", "/api/show", self._ollama_show),
            ("GET", "/api/tags", self._ollama_tags),
            ("GET", "/api/ps", self._ollama_ps),
            ("GET", "/api/version", self._ollama_version),
        ]
        open_to_all = [(path, self._health) for path in ("/health", "/v1/health")]
        known = [*others, *((m, pre + path, e) for pre in ("/v1", "") for m, path, e in openai)]
        return [
            Route("/", self._page),
            *(Route(path, endpoint) for path, endpoint in open_to_all),
            *(Route(path, self._protected(e), methods=[method]) for method, path, e in known),
        ]

    async def _page(self, request: Request) -> Response:
        self._access.check_host(request)
        return HTMLResponse(
            self._html, headers={"Content-Security-Policy": page_policy(self._html)}
        )

    async def _markdown(self, request: Request) -> Response:
        asked = await self._read(MarkdownRequest, request)
        return JSONResponse({"html": await asyncio.to_thread(markdown_html, asked.text)})

    async def _health(self, _: Request) -> Response:
        healthy = self.scheduler.healthy
        state = "ok" if healthy else "unavailable"
        said = {"status": state, "model": self._name, "images": self.scheduler.info.sees}
        return JSONResponse(said, 200 if healthy else 503)

    async def _figures(self, _: Request) -> Response:
        text, kind = self._metrics.text()
        return Response(text, headers={"Content-Type": kind})

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        check_model(request.path_params["model"], self._name)
        return JSONResponse(self._described())

    def _described(self) -> dict[str, object]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._started,
            "owned_by": "bitquilt",
            "max_model_len": self.scheduler.info.context,  # as vLLM calls it
        }

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(ChatRequest, request)
        with_usage = asked.stream_options.include_usage
        return await self._converse(
            request, asked, lambda tools: ChatReply(self._name, tools, with_usage, asked.n)
        )

    async def _respond(self, request: Request) -> Response:
        asked = await self._read(ResponsesRequest, request)
        before = self._conversations.before(asked.previous_response_id)
        chat = parse_request(ChatRequest, asked.for_chat(before), self._strict)
        said = [*before, *asked.messages()]

        def keep(name: str, answer: list[Json]) -> None:
            if asked.store:
                self._conversations.keep(name, [*said, *answer])

        return await self._converse(
            request, chat, lambda tools: ResponsesReply(self._name, asked, tools, keep)
        )

    async def _ollama_chat(self, request: Request) -> Response:
        asked = await self._read(OllamaRequest, request)
        if not asked.messages:
            return self._ollama_loaded(asked)
        chat = parse_request(ChatRequest, asked.for_chat(), self._strict)
        return await self._converse(
            request, chat, lambda tools: OllamaReply(self._name, True, tools)
        )

    async def _ollama_generate(self, request: Request) -> Response:
        asked = await self._read(OllamaRequest, request)
        if not (asked.prompt or asked.images):
            return self._ollama_loaded(asked)
        if self.scheduler.info.chat_template is None:  # the prompt is all of it, as in Ollama
            asked = asked.model_copy(update={"raw": True})
        if asked.plain:
            text = parse_request(TextRequest, asked.for_generate(), self._strict)
            reply = OllamaReply(self._name, False, NO_TOOLS)
            return await self._continue(request, text, reply)
        chat = parse_request(ChatRequest, asked.for_generate(), self._strict)
        return await self._converse(
            request, chat, lambda tools: OllamaReply(self._name, False, tools)
        )

    def _ollama_loaded(self, asked: OllamaRequest) -> Response:
        """Answer a request that asks nothing: the model is loaded."""
        return JSONResponse(OllamaReply(self._name, bool(asked.messages), NO_TOOLS).loaded())

    async def _ollama_tags(self, _: Request) -> Response:
        return JSONResponse({"models": [listed(self._served)]})

    async def _ollama_ps(self, _: Request) -> Response:
        return JSONResponse({"models": [loaded(self._served, self.scheduler.info)]})

    async def _ollama_version(self, _: Request) -> Response:
        return JSONResponse({"version": API_VERSION})

    async def _ollama_show(self, request: Request) -> Response:
        asked = await self._read(ModelRequest, request)
        self._check_model(asked.model or asked.name)
        return JSONResponse(shown(self._served, self.scheduler.info))

    async def _tokenizer_info(self, _: Request) -> Response:
        """What a client needs beside ``/tokenize`` to do without the tokenizer, as in vLLM."""
        info = self.scheduler.info
        return JSONResponse({**info.special_tokens, "chat_template": info.chat_template})

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._read(TokenizeRequest, request)
        info = self.scheduler.info
        images = asked.images(info)

        def work(engine: Engine) -> list[int]:
            if asked.messages:
                said = asked.conversation(info.chat_template)
                return compose(engine, said, turn=asked.turn(), images=images).tokens
            text, add_special = asked.text()
            return engine.tokenize(text, add_special=add_special)

        tokens = await self.scheduler.ask(work)
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": info.context})

    async def _detokenize(self, request: Request) -> Response:
        asked = await self._read(DetokenizeRequest, request)
        require_tokens(self.scheduler.info, asked.tokens)
        text = await self.scheduler.ask(lambda engine: engine.decode(asked.tokens, special=True))
        return JSONResponse({"content": text, "prompt": text})

    async def _converse(
        self, request: Request, asked: ChatRequest, reply: Callable[[Offer], ReplyForm]
    ) -> Response:
        """Answer a request of chat, in the form of any API."""
        self._check_model(asked.model)
        info = self.scheduler.info
        messages, images = asked.conversation(info.chat_template), asked.images(info)
        tools = asked.offered(info)
        settings, turn = asked.settings(info, self._most), asked.turn()

        def prepare(engine: Engine) -> Sequence[Sample]:
            prompt = compose(engine, messages, tools.tools, turn, images)
            return [Sample(engine, prompt, tools.settings(engine, one)) for one in settings]

        return await self._answer(request, asked, prepare, reply(tools))

    async def _complete(self, request: Request) -> Response:
        asked = await self._read(TextRequest, request)
        reply = TextReply(self._name, asked.stream_options.include_usage)
        return await self._continue(request, asked, reply)

    async def _continue(
        self, request: Request, asked: TextRequest, reply: TextReply | OllamaReply
    ) -> Response:
        """Answer a request for plain text, in the form of any API."""
        self._check_model(asked.model)
        settings = asked.settings(self.scheduler.info, self._most)

        def prepare(engine: Engine) -> Sequence[Sample]:
            stated: Sequence[str | list[int]] = asked.prompt
            prompts = [plain(engine, one, asked.add_special_tokens) for one in stated]
            if asked.echo and isinstance(reply, TextReply):
                pairs = zip(stated, prompts, strict=True)
                said = [_echo(engine, one, prompt.tokens) for one, prompt in pairs]
                reply.echo = dict(enumerate(one for one in said for _ in settings))
            return [Sample(engine, prompt, one) for prompt in prompts for one in settings]

        return await self._answer(request, asked, prepare, reply)

    async def _answer(
        self, request: Request, asked: CompletionRequest, prepare: Prepare, reply: ReplyForm
    ) -> Response:
        events = self._timed(self.scheduler.answer(prepare))
        ignored = [*(["model"] if is_other(asked.model, self._name) else []), *asked.unknown]
        return await respond(request, events, reply, asked.stream, ignored_header(ignored))

    def _check_model(self, asked: str | None) -> None:
        """Answer for any name, as llama.cpp's server does; clients have names of their own.

        Raises:
            RefusedError: the name is another, and the server is strict.
        """
        if self._strict:
            check_model(asked, self._name)

    async def _timed(self, events: Events) -> Events:
        """The same events; measures the time to the first."""
        started = time.perf_counter()
        async with aclosing(events) as coming:
            first = True
            async for event in coming:
                if first:
                    self._metrics.began(time.perf_counter() - started)
                    first = False
                yield event

    async def _read(self, kind: type[Body], request: Request) -> Body:
        return parse_request(kind, await read_body(request, self._most_bytes), self._strict)

    def _protected(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for requests that may come."""

        async def checked(request: Request) -> Response:
            self._access.check(request)
            return await endpoint(request)

        return checked


def _echo(engine: Engine, prompt: str | Sequence[int], read: Sequence[int]) -> Echo:
    """What an answer repeats of a prompt, of which the model reads these tokens."""
    text = prompt if isinstance(prompt, str) else engine.decode(prompt, special=True)
    started = isinstance(prompt, str) and engine.tokenize(prompt)[:1] != list(read[:1])
    return Echo(text, None if started else engine.decode(read[:1], special=True))


_SLASHES, _VERSIONS = re.compile("/{2,}"), re.compile("^(/v1)+(?=/)")


def tidy_path(path: str) -> str:
    """A path without what clients add to it: further slashes, and a version that is there."""
    return _VERSIONS.sub("/v1", _SLASHES.sub("/", path)).rstrip("/") or "/"


class _Counted:
    """An application whose responses are counted, streamed ones too; it tidies paths."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": tidy_path(scope["path"])}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = "endpoint" in scope
                path = scope["path"] if known else "other"
                self._metrics.requested(path, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    ollama = request.url.path.startswith("/api/")  # whose clients read an error as a text
    said = {"error": error.sentence} if ollama else error.to_dict()
    return JSONResponse(said, error.status, headers)


async def _user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return await _refused(request, invalid(for_clients(error)))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = (
        f"{request.method} {request.url.path}: {error.detail}; this server has GET /v1/models, and "
        "POST /v1/chat/completions, /v1/completions and /v1/responses"
    )
    return await _refused(request, invalid(why, error.status_code))


async def _failed(request: Request, _: Exception) -> Response:
    return await _refused(request, FAILED)
