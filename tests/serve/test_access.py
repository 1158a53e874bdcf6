"""Who may ask: programs on this machine, containers, allowed pages; and nobody by DNS rebinding."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.serve.conftest import KEY, Running, post, running
from tests.talk.book import Book, reciting

BODY = b'{"messages": [{"role": "user", "content": "hi"}]}'
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}|"


def book() -> Book:
    return Book(reciting("Hello."), TEMPLATE)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(book) as found:
        yield found


@pytest.fixture(scope="module")
def generous() -> Iterator[Running]:
    with running(book, allow_host=["box.lan"], allow_origin=["https://Chat.example/"]) as found:
        yield found


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("app.localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.5:8080", 200),  # an address cannot be rebound
        ("host.docker.internal:8080", 200),
        ("host.containers.internal", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("box.lan", 403),
    ],
)
def test_host_names(server: Running, host: str, status: int) -> None:
    found, said = post(server, BODY, Host=host)
    assert found == status
    assert status == 200 or "--allow-host" in said["error"]["message"]


def test_host_names_that_were_allowed(generous: Running) -> None:
    assert post(generous, BODY, Host="box.lan:8080")[0] == 200
    assert post(generous, BODY, Host="Box.Lan")[0] == 200
    assert post(generous, BODY, Host="other.lan")[0] == 403
    with running(book, allow_host=["*"]) as server:
        assert post(server, BODY, Host="any.example")[0] == 200


def preflight(server: Running, origin: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    connection.request("OPTIONS", "/v1/chat/completions", headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:5173", True),
        ("https://app.localhost", True),
        ("tauri://localhost", True),
        ("vscode-webview://1a2b", True),
        ("https://chat.example", False),
        ("http://localhost.evil.example", False),
        ("http://evil.example:3000", False),
        ("null", False),
    ],
)
def test_pages(server: Running, origin: str, allowed: bool) -> None:
    asked = preflight(server, origin)
    assert (asked.status == 200) == allowed
    assert (asked.getheader("access-control-allow-origin") == origin) == allowed
    assert not allowed or asked.getheader("access-control-allow-private-network") == "true"
    found, said = post(server, BODY, Origin=origin)
    assert found == (200 if allowed else 403)
    assert allowed or "--allow-origin" in said["error"]["message"]


def test_pages_that_were_allowed(generous: Running) -> None:
    assert preflight(generous, "https://chat.example").status == 200
    assert post(generous, BODY, Origin="https://chat.example")[0] == 200
    assert post(generous, BODY, Origin="https://chat.example.evil")[0] == 403
    with running(book, allow_origin=["*"]) as server:
        assert preflight(server, "https://any.example").status == 200
        assert post(server, BODY, Origin="https://any.example")[0] == 200


def test_the_own_page_needs_no_permission(generous: Running) -> None:
    assert post(generous, BODY, Origin="http://box.lan:8080", Host="box.lan:8080")[0] == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_form_is_read_from_a_program_and_not_from_a_page(server: Running, kind: str) -> None:
    """``curl -d`` calls all that it sends a form; a page can send forms without asking first."""
    body = {"Content-Type": kind}
    assert post(server, BODY, **body)[0] == 200
    found, said = post(server, BODY, Origin="http://localhost:3000", **body)
    assert found == 415
    assert "application/json" in said["error"]["message"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        (KEY, 200),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("", 401),
    ],
)
def test_keys(server: Running, given: str, status: int) -> None:
    assert post(server, BODY, Authorization=given)[0] == status
