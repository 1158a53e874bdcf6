"""No warning and no log of a library reaches the terminal; what bitquilt says does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bitquilt.runtime.quiet import VARIABLES

SOURCES = Path(__file__).parents[2] / "src"

PROVOKED = {
    "python": "import warnings; warnings.warn('look here')",
    "a log without a handler": "import logging; logging.getLogger('lib').warning('look here')",
    "torch": (
        "import numpy, torch; a = numpy.zeros(2); a.setflags(write=False); torch.from_numpy(a)"
    ),
    "transformers": (
        "from transformers.utils import logging; logging.get_logger('transformers.x').warning('a')"
    ),
    "huggingface_hub": (
        "from huggingface_hub.utils import logging as logs; "
        "logs.get_logger('huggingface_hub').warning('look here')"
    ),
    "another process": (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-c', 'import warnings; warnings.warn(\"look\")'])"
    ),
    "multiprocessing's resource tracker": (
        "from multiprocessing.shared_memory import SharedMemory; import os; "
        "m = SharedMemory(create=True, size=8); os._exit(0)"
    ),
}


def said(code: str, *flags: str, **variables: str) -> str:
    """What Python prints on standard error when it runs some code."""
    inherited = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    environment = inherited | {"PYTHONPATH": str(SOURCES)} | variables
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.stderr


QUIET = "from bitquilt.runtime.quiet import quiet; quiet(); "


@pytest.mark.parametrize("library", PROVOKED)
def test_what_libraries_print_is_not_seen(library):
    assert said(QUIET + PROVOKED[library]) == ""


@pytest.mark.parametrize("library", PROVOKED)
def test_these_would_be_seen(library):
    assert said(PROVOKED[library]) != ""


def test_who_asks_for_warnings_gets_them():
    assert "look here" in said(QUIET + PROVOKED["python"], "-W", "default")
    assert "look here" in said(QUIET + PROVOKED["python"], PYTHONWARNINGS="default")


def test_our_own_words_are_seen():
    own = "import logging; logging.getLogger('bitquilt.serve.app').error('the engine crashed')"
    assert said(QUIET + own) == "bitquilt: the engine crashed\n"


def test_the_command_line_is_quiet():
    code = """
    import warnings
    from bitquilt.models import inspection
    from bitquilt.cli.main import main
    from bitquilt.errors import UserError

    def noisy(model):
        warnings.warn("look here")
        raise UserError("our own sentence")

    inspection.inspect = noisy
    main(["inspect", "demo"])
    """
    assert said(code) == "bitquilt: our own sentence\n"
