"""Who may ask: host names, origins of web pages, the API key, and how long a request may be.

A web page in somebody's browser must not be able to use the model. Three things see to that. A
foreign host name is refused, since it may lead here by DNS rebinding; names that belong to this
machine, and addresses, cannot be rebound. A page's origin must be allowed. What a page can send
without asking first, a form, is refused as a body.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from bitquilt.serve.errors import RefusedError, invalid

LOCAL_NAMES = ("localhost", "host.docker.internal", "host.containers.internal")
"""Names that lead to this machine, from itself and from a container on it. Nobody can register
them, and browsers look up no other address for the first."""
LOCAL_ORIGINS = (
    r"https?://(localhost|[\w.-]+\.localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
    r"|(app|tauri|vscode-webview)://.*"
)
"""Origins of programs on this machine: web applications that it serves, and desktop windows."""
ANY = "*"
TOLD_HEADERS = ("Bitquilt-Ignored", "Retry-After")


class Access:
    """The rules of one server."""

    def __init__(self, key: str | None, hosts: Sequence[str], origins: Sequence[str]) -> None:
        """Take what the owner of the server allows besides programs on this machine.

        Args:
            key: requests to the API must have it; None for none.
            hosts: more host names; ``*`` for all.
            origins: more origins of web pages, like ``https://chat.example``; ``*`` for all.
        """
        self._key = key
        self._hosts = {name.lower() for name in hosts}
        self._origins = {origin.rstrip("/").lower() for origin in origins}  # as browsers write it

    def middleware(self) -> Middleware:
        """What tells browsers which pages may ask."""
        return Middleware(
            CORSMiddleware,
            allow_origins=list(self._origins),
            allow_origin_regex=LOCAL_ORIGINS,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=TOLD_HEADERS,
        )

    def check(self, request: Request) -> None:
        """Let a request to the API pass.

        Raises:
            RefusedError: it is for another host, from another site, or without the key.
        """
        self.check_host(request)
        self._check_origin(request)
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else kind
        if self._key is not None and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise RefusedError(
                401,
                "authentication_error",
                "the API key is wrong or missing; send Authorization: Bearer KEY",
            )

    def check_host(self, request: Request) -> None:
        """Let a request pass that is for this server.

        Raises:
            RefusedError: the host name is not known to be this server's.
        """
        name = (request.url.hostname or "").lower()
        if not (_is_local(name) or {name, ANY} & self._hosts):
            raise invalid(
                f"this server does not answer to the host name {name!r}; if that is its own, start "
                f"it with `bitquilt serve MODEL --allow-host {name}`",
                403,
            )

    def _check_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is None or urlsplit(origin).netloc == request.headers.get("host"):
            return
        if not ({origin, ANY} & self._origins or re.fullmatch(LOCAL_ORIGINS, origin)):
            raise invalid(
                f"web pages of {origin!r} may not ask this server; to let them, start it with "
                f"`bitquilt serve MODEL --allow-origin {origin}`",
                403,
            )


def _is_local(name: str) -> bool:
    """Tell whether a host name cannot be made to lead here by a stranger."""
    if name in LOCAL_NAMES or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def read_body(request: Request, most: int) -> bytes:
    """A request's body, if no web page can have sent it unasked and it is not too long.

    Programs may leave the type out, or call it a form as curl does; a browser names the page.

    Raises:
        RefusedError: it is no JSON, compressed, or longer than ``most`` bytes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json" and "origin" in request.headers:
        raise invalid("the body has to be JSON; send it with Content-Type: application/json", 415)
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise invalid(f"the body has Content-Encoding {coding!r}; send it uncompressed", 415)
    body = bytearray()
    _require_short(int(request.headers.get("content-length", 0)), most)  # before it comes
    async for piece in request.stream():
        body += piece
        _require_short(len(body), most)
    return bytes(body)


def _require_short(length: int, most: int) -> None:
    if length > most:
        raise invalid(
            f"the request is longer than {most:,} bytes, more than this model can read; send a "
            "shorter one",
            413,
        )
