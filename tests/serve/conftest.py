"""Servers on ports of their own: of the demo model in llama.cpp, and of books."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from bitquilt.engines import Engine, open_engine
from bitquilt.serve.app import Server
from bitquilt.serve.config import ServeConfig
from bitquilt.serve.http_server import HttpServer
from bitquilt.serve.served import ServedModel, served_model
from tests.cli.conftest import demo_gguf

__all__ = ["demo_gguf"]

KEY = "secret"


class Running:
    """A server, and ways to speak with it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.scheduler = server, server.scheduler
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def settles(self) -> bool:
        """Whether nothing is under way any more, soon."""
        return self.within(60, lambda: self.scheduler.running == self.scheduler.waiting == 0)

    def within(self, seconds: float, holds: Callable[[], bool]) -> bool:
        """Whether something comes true in that time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if holds():
                return True
            time.sleep(0.01)
        return False


def post(
    server: Running, body: bytes, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", path, body, {**given, **headers})
    response = connection.getresponse()
    status, said = response.status, json.loads(response.read())
    connection.close()
    return status, said


@contextmanager
def running(
    engine: Callable[[], Engine], model: str | ServedModel = "model", **options: Any
) -> Iterator[Running]:
    """Serve in a thread."""
    told = model if isinstance(model, ServedModel) else ServedModel(name=model)
    server = Server(engine, told, ServeConfig(api_key=KEY, **options))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = HttpServer(server, stop_seconds=1)
        thread = threading.Thread(target=serving.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not serving.started:
                time.sleep(0.01)
            yield Running(server, listening.getsockname()[1])
        finally:
            server.scheduler.close()
            serving.should_exit = True
            thread.join(30)
        assert not thread.is_alive(), f"the server does not stop: it is at\n{stack_of(thread)}"


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is, and all tasks that wait."""
    frames = sys._current_frames()
    stack = "".join(traceback.format_stack(frames.get(thread.ident or 0)))
    return stack + "\n".join(str(task) for task in asyncio.tasks._all_tasks)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def demo(demo_gguf: Path) -> Iterator[Running]:
    """The demo model, four answers at a time."""
    opening = partial(open_engine, demo_gguf)
    model = served_model("demo", str(demo_gguf))
    with running(opening, model, parallel=4, queue=4, max_tokens=600) as server:
        yield server
