"""From events to a response: in one piece, or in many while they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.serve.scheduler import FAILED
from bitquilt.talk.events import End, Event

Events = AsyncGenerator[tuple[int, Event], None]
"""Events of one or several answers, each with the number of its answer."""
_T = TypeVar("_T")


class ReplyForm(Protocol):
    """The form that answers have in one API."""

    media_type: str
    """Of a stream."""

    def first(self) -> Iterator[str]:
        """What a stream begins with."""
        ...

    def told(self, index: int, event: Event) -> Iterator[str]:
        """What a stream says of an event of one of the answers."""
        ...

    def last(self, ends: Mapping[int, End]) -> Iterator[str]:
        """What a stream ends with."""
        ...

    def failed(self, error: RefusedError) -> str:
        """What a stream says that cannot go on."""
        ...

    def whole(self, ends: Mapping[int, End]) -> dict[str, Any]:
        """All answers in one piece."""
        ...


async def respond(
    request: Request, events: Events, reply: ReplyForm, stream: bool, headers: Mapping[str, str]
) -> Response:
    """Answer in one piece or in many; a refusal comes before the first of them.

    Raises:
        RefusedError: the request cannot be answered, or its client went away.
    """
    if not stream:
        ends = await _unless_gone(request, _ends(events))
        return JSONResponse(reply.whole(ends), headers=headers)
    first = await _unless_gone(request, anext(events))
    return StreamingResponse(
        _sent(first, events, reply),
        media_type=reply.media_type,
        headers={"Cache-Control": "no-cache", **headers},
    )


async def _sent(first: tuple[int, Event], events: Events, reply: ReplyForm) -> AsyncGenerator[str]:
    """The answers in pieces; they are stopped when the client goes."""
    ends: dict[int, End] = {}
    async with aclosing(events) as coming:
        try:
            for line in reply.first():
                yield line
            index, event = first
            while True:
                for line in reply.told(index, event):
                    yield line
                if isinstance(event, End):
                    ends[index] = event
                try:
                    index, event = await anext(coming)
                except StopAsyncIteration:
                    break
            for line in reply.last(ends):
                yield line
        except RefusedError as error:
            yield reply.failed(error)
        except Exception:  # the stream has begun, so the client can only be told in it
            logging.getLogger(__name__).exception("an answer could not be sent")
            yield reply.failed(FAILED)


async def _ends(events: Events) -> dict[int, End]:
    async with aclosing(events) as coming:
        return {index: event async for index, event in coming if isinstance(event, End)}


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
