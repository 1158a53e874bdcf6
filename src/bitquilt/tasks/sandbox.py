"""The inside of a locked-down process: runs a program that a model wrote, if it may.

Run as a script, isolated, by :mod:`.programs`: the program comes on standard input, and the word
given as argument goes to standard output if it comes to its end. It has so many seconds and so much
memory, and Python refuses it what a solution has no use for: files but Python's own, the network,
other processes, foreign code. That keeps accidents in; it is no wall against an attacker, who
belongs in a container.
"""

from __future__ import annotations

import os
import sys

SECONDS = 5
"""A program may take so many seconds of processor time."""
MEMORY = 1 << 30
REFUSED = ("ctypes.", "fcntl.", "os.", "pty.", "resource.", "shutil.", "socket.", "subprocess.")
"""Beginnings of the names of audit events (PEP 578)."""
NEEDED = ("os.listdir", "os.scandir")
"""Imports need these, though they begin like refused ones."""


def limit() -> None:
    """Bound what this process can take.

    Raises:
        SystemExit: Windows sets no such bounds, so nothing is run there.
    """
    if sys.platform == "win32":
        raise SystemExit("Windows does not bound what a process can take")
    import resource

    for what, most in {
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(what, (most, most))


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: raises for what is not allowed, and cannot be taken off again."""
    if event.startswith(REFUSED) and event not in NEEDED:
        raise PermissionError(f"{event} is not allowed here")
    if event == "open" and not _readable(*arguments):
        raise PermissionError(f"opening {arguments[0]} is not allowed here")


def _readable(path: object, mode: object, flags: object) -> bool:
    """Whether it is for reading what Python itself is made of."""
    writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    homes = (sys.base_prefix, sys.prefix)
    return not writing and isinstance(path, str) and os.path.abspath(path).startswith(homes)


def main() -> None:
    """Run what comes on standard input."""
    word, program = sys.argv.pop(), sys.stdin.read()
    code = compile(program, "<program>", "exec")
    limit()
    sys.addaudithook(refuse)
    exec(code, {"__name__": "__main__"})  # what all of this is for
    print(word)


if __name__ == "__main__":
    main()
