"""``bitquilt serve``: how it starts, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitquilt.cli.serve import _listen, _serve
from bitquilt.serve.app import Server
from bitquilt.serve.config import ServeConfig
from bitquilt.serve.served import ServedModel
from tests.quick import invoke
from tests.talk.book import Book, reciting

WILD: Any = {
    "messages": [{"role": "user", "content": "What is 347 + 585?"}],
    "temperature": 5.0,
    "top_p": 1.0,
}


def test_a_port_that_is_taken_is_one_sentence(capfd, demo_gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert invoke("serve", demo_gguf, "--port", str(port)) == 2
    said = capfd.readouterr()
    assert f"cannot listen on port {port}" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "variable", "sentence"),
    [
        (("--api-key", ""), None, "the API key is empty"),
        (("--api-key", " "), None, "the API key is empty"),
        ((), "", "the API key is empty"),
        ((), "secret\n", "the API key begins or ends with white space"),
        (("--api-key", ""), "secret", "the API key is empty"),
    ],
)
def test_a_key_that_is_none_does_not_open_the_server(
    capfd, monkeypatch, demo_gguf: Path, options, variable: str | None, sentence: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("BITQUILT_API_KEY", variable)
    assert invoke("serve", demo_gguf, "--port", "0", *options) == 2
    said = capfd.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_an_address_of_another_machine_is_one_sentence(capfd, demo_gguf: Path) -> None:
    assert invoke("serve", demo_gguf, "--host", "192.0.2.1") == 2
    said = capfd.readouterr()
    assert "cannot listen on port 8080 of 192.0.2.1" in said.err
    assert "--host" in said.err


def test_the_port_is_taken_at_both_addresses_of_this_machine() -> None:
    """Some programs find ``localhost`` at ``::1`` only."""
    sockets = _listen("127.0.0.1", 0)
    try:
        port = sockets[0].getsockname()[1]
        assert [one.getsockname()[:2] for one in sockets][:1] == [("127.0.0.1", port)]
        assert [one.getsockname()[:2] for one in sockets][1:] in ([], [("::1", port)])
    finally:
        for one in sockets:
            one.close()


def test_a_model_that_cannot_chat_says_so_at_once(capfd, monkeypatch) -> None:
    monkeypatch.setattr("bitquilt.cli.serve._run", lambda server, sockets: None)
    for template, lines in (("{{ messages[0].content }}|", 1), (None, 2)):
        model = ServedModel(name="m")
        server = Server(lambda t=template: Book(reciting("x"), t), model, ServeConfig())
        _serve(server, _listen("127.0.0.1", 0), "m.gguf")
        said = capfd.readouterr().err
        assert said.count("\n") == lines
        assert ("m.gguf has no chat template" in said) == (template is None)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_soon(demo_gguf: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "bitquilt.cli.main", "serve", str(demo_gguf), "--port", "0"]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | path)
    try:
        assert process.stderr
        port = re.search(r":(\d+),", process.stderr.readline())
        assert port
        connection = http.client.HTTPConnection("127.0.0.1", int(port[1]))
        body = json.dumps({**WILD, "stream": True, "max_tokens": 2000}).encode()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        response.readline()
        (engine,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(sent)
        started = time.monotonic()
        last = response.read().decode().strip().rpartition("data: ")[2]
        assert last == "[DONE]" or "shutting down" in last
        assert process.wait(20) == 0
        assert time.monotonic() - started < 12
        assert process.stderr.read() == ""
        assert not Path(f"/proc/{engine}").exists()
    finally:
        process.kill()
