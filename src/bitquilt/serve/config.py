"""What a server can be asked for; cheap to import, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bitquilt.errors import UserError
from bitquilt.runtime.compute import threads_option
from bitquilt.runtime.options import Options, option
from bitquilt.talk.config import ANSWER_TOKENS, draft_option

KEY_VARIABLE = "BITQUILT_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Options):
    """Where a server listens, whom it answers, and how much at a time."""

    port: int = option(
        "The server listens on this port; 0 lets the system choose one.",
        default=8080,
        metavar="N",
        least=0,
        most=65535,
    )
    host: str = option(
        "The server listens on this address; 0.0.0.0 lets other machines reach it.",
        default="127.0.0.1",
        metavar="ADDRESS",
    )
    allow_host: Sequence[str] = option(
        "Requests may call the server by this host name, too; the option can be repeated, and * "
        "allows all.  [default: this machine's names, and addresses]",
        default=(),
        metavar="NAME",
        many=True,
        repeated=True,
    )
    allow_origin: Sequence[str] = option(
        "Web pages of this origin, such as https://chat.example, may use the server; the option "
        "can be repeated, and * allows all.  [default: pages of this machine]",
        default=(),
        metavar="ORIGIN",
        many=True,
        repeated=True,
    )
    api_key: str | None = option(
        "Requests to the API must have this key.  [default: they need none]",
        default=None,
        metavar="KEY",
        empty=True,  # refused below, in a sentence that names the variable too
        envvar=KEY_VARIABLE,
    )
    parallel: int = option(
        "The server writes up to this many answers at once, in one batch.",
        default=8,
        metavar="N",
        least=1,
    )
    queue: int = option(
        "This many more requests may wait; others are told to try again later.",
        default=32,
        metavar="N",
        least=0,
    )
    max_tokens: int = option(
        "An answer has at most this many tokens, reasoning included, even if a request sets no "
        "limit.",
        default=ANSWER_TOKENS,
        metavar="N",
        least=1,
    )
    strict: bool = option(
        "A request with a field that the server does not know, or with the name of another model, "
        "is refused. Without --strict, these are ignored.",
        default=False,
    )
    draft: str | None = draft_option()
    threads: int | None = threads_option()

    def __post_init__(self) -> None:
        """See :meth:`Options.__post_init__`; an unset secret must not open the server."""
        super().__post_init__()
        if self.api_key is not None:
            _require_key(self.api_key)
        for name in self.allow_host:
            _require_name(name)
        for origin in self.allow_origin:
            _require_origin(origin)


def _require_key(key: str) -> None:
    """Refuse what an HTTP header cannot carry."""
    if not key or key != key.strip():
        raise UserError(
            f"the API key {'begins or ends with white space' if key.strip() else 'is empty'}; "
            f"set --api-key or {KEY_VARIABLE} to a secret, or leave both out to need no key"
        )


def _require_name(name: str) -> None:
    """Refuse what no request calls a host: it would let nobody in, and say nothing."""
    if "/" in name or (name.count(":") == 1 and name.rpartition(":")[2].isdigit()):
        host = urlsplit(name if "//" in name else f"//{name}").hostname or "box.lan"
        raise UserError(
            f"--allow-host={name} is not a host name alone; leave out the rest: --allow-host={host}"
        )


def _require_origin(origin: str) -> None:
    """Refuse what no browser calls an origin: it would let nobody in, and say nothing."""
    parts = urlsplit(origin)
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if origin not in ("*", "null") and (not parts.scheme or not parts.netloc or rest):
        host = parts.netloc or parts.path.partition("/")[0] or "chat.example"
        meant = f"{parts.scheme if parts.netloc else 'https'}://{host}"
        raise UserError(
            f"--allow-origin={origin} is not the origin of a web page, which is a scheme and a "
            f"host; write it like --allow-origin={meant}"
        )
