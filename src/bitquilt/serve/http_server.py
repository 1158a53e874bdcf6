"""The HTTP server around the ASGI application, which stops within seconds whatever clients do."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn

from bitquilt.serve.app import Server

DRAIN_SECONDS = 3.0
"""When the server is told to stop, answers under way have this long to end."""
STOP_SECONDS = 5
"""When the server is told to stop, clients have this long to send what they began and to read."""


class HttpServer(uvicorn.Server):
    """uvicorn's server, which by itself waits forever for a client that sends half of a request."""

    def __init__(self, server: Server, stop_seconds: int = STOP_SECONDS) -> None:
        """Take an application; ``run()`` serves it.

        Args:
            server: of one model.
            stop_seconds: connections that are not done so long after the end was asked for are cut.
        """
        super().__init__(
            uvicorn.Config(
                server.asgi,
                log_level="error",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=stop_seconds,
            )
        )
        self._scheduler = server.scheduler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let answers under way end, for a while, and refuse others."""
        self._scheduler.drain(DRAIN_SECONDS)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; uvicorn logs a traceback for each connection that it cuts, which is no error."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
