"""``bitquilt serve``: an OpenAI-compatible server on this machine, with a page to talk to."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import MODEL, config_options
from bitquilt.cli.talking import require_draft
from bitquilt.errors import UserError
from bitquilt.runtime.compute import asking
from bitquilt.serve.config import ServeConfig

if TYPE_CHECKING:
    from bitquilt.serve.app import Server


@click.command()
@MODEL
@config_options(ServeConfig)
def serve(model: str, config: ServeConfig) -> None:
    """Serve MODEL through OpenAI's API, with a chat page.

    Only this machine can reach the server, unless --host says otherwise. MODEL is what `run` takes.
    Besides the fields of OpenAI's API, requests may have `think_budget` and `detect_loops`. Ctrl-C
    stops the server.
    """
    require_draft(model, config.draft)
    from bitquilt.engines import open_engine
    from bitquilt.serve.app import Server
    from bitquilt.serve.served import served_model

    path, sockets = Path(model), _listen(config.host, config.port)
    if config.api_key is None and not ip_address(sockets[0].getsockname()[0]).is_loopback:
        click.echo("other machines can use the model; set --api-key to ask for a key", err=True)
    name = path.stem if path.is_file() else path.name
    with asking(threads=config.threads):
        told = served_model(name, model)
        server = Server(partial(open_engine, model, config.draft), told, config)
        _serve(server, sockets, model)


def _serve(server: Server, sockets: list[socket.socket], model: str) -> None:
    """Listen until the server is told to stop."""
    try:
        for listening in sockets:
            listening.listen()
        host, port = sockets[0].getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        click.echo(f"{model} is at {address}, and for programs at {address}/v1", err=True)
        if server.scheduler.info.chat_template is None:
            click.echo(
                f"{model} has no chat template, so the page cannot hold a conversation; programs "
                "can continue text with POST /v1/completions",
                err=True,
            )
        _run(server, sockets)
    finally:
        server.scheduler.close()


def _listen(host: str, port: int) -> list[socket.socket]:
    """Take the port, before the model is loaded.

    Some programs look for ``localhost`` at its IPv6 address only, so that is taken along with the
    other if it can be had.

    Raises:
        UserError: another program has it, the system forbids it, or the machine has no such
            address.
    """
    try:
        sockets = [_bound(host, port)]
    except OSError as error:
        raise UserError(
            f"the server cannot listen on port {port} of {host}: {error.strerror}; choose another "
            "with --port or --host"
        ) from error
    if host == ServeConfig.host:
        with suppress(OSError):
            sockets.append(_bound("::1", sockets[0].getsockname()[1]))
    return sockets


def _bound(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _run(server: Server, sockets: list[socket.socket]) -> None:
    """Serve until SIGINT or SIGTERM."""
    from bitquilt.serve.http_server import HttpServer

    # uvicorn raises the signal again when it is done; both kinds must arrive as KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        HttpServer(server).run(sockets=sockets)
