"""The server stops within seconds, whatever its clients do."""

from __future__ import annotations

import socket
import time

import pytest

from tests.serve.conftest import running
from tests.talk.book import Book, reciting

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, HEAD + b"Authorization: Bearer secret\r\n\r\n{", b"GET /health HTTP/1.1\r\n"],
    ids=["nothing", "half a head", "half a body", "a line"],
)
def test_a_client_that_sends_no_more_does_not_keep_the_server(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with running(lambda: Book(reciting("Hello."), "|")) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(sent)
        time.sleep(0.1)
        before = time.monotonic()
    with client:
        assert time.monotonic() - before < 5
        assert not caplog.text
