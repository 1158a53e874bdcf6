"""``bitquilt serve``: an OpenAI-compatible server on this machine, with a page to talk to."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import MODEL
from bitquilt.errors import UserError

if TYPE_CHECKING:
    from bitquilt.serve.app import Server

HOST = "127.0.0.1"
LAST_SECONDS = 3.0
"""That answers under way have when the server is told to stop."""


@click.command()
@MODEL
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--api-key",
    envvar="BITQUILT_API_KEY",
    show_envvar=True,
    help="That requests must bring.  [default: none needed]",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Answers that are made at a time, in one batch.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Requests that may wait for their turn; more are told to come again.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Of one answer, reasoning included: at most, and where a request does not say.",
)
def serve(
    model: str, port: int, api_key: str | None, parallel: int, queue: int, max_tokens: int
) -> None:
    """Serve MODEL as OpenAI's API, and a chat page.

    Only this machine is served. MODEL is what `run` takes. Requests may say `think_budget` and
    `guard` beside what OpenAI's API has; Ctrl-C stops.
    """
    from bitquilt.engines import open_engine
    from bitquilt.serve.app import Server

    listening = _listen(port)
    server = Server(
        partial(open_engine, model),
        Path(model).name.removesuffix(".gguf"),
        api_key=api_key,
        parallel=parallel,
        queue=queue,
        max_tokens=max_tokens,
    )
    try:
        listening.listen()
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        click.echo(f"{model} is at {address}, and for programs at {address}/v1", err=True)
        _run(server, listening)
    finally:
        server.scheduler.close()


def _listen(port: int) -> socket.socket:
    """The port, ours before a model is loaded.

    Raises:
        UserError: somebody else has it.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        raise UserError(
            f"port {port} cannot be had: {error.strerror}; choose another with --port"
        ) from error
    return listening


def _run(server: Server, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    import uvicorn

    class Stoppable(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            server.scheduler.drain(LAST_SECONDS)
            super().handle_exit(sig, frame)

    config = uvicorn.Config(server.asgi, log_level="warning", access_log=False, lifespan="off")
    # uvicorn raises the signal again when it is done: both kinds shall come as this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        Stoppable(config).run(sockets=[listening])
