"""What libraries print beside us does not reach the terminal: here it is turned off, for all.

A warning of a library is about its own callers, and bitquilt says what people have to know in its
own sentences. Where ``-W``, PYTHONWARNINGS or the variables below are set, they hold.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

VARIABLES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "GRPC_VERBOSITY": "NONE",
    "GLOG_minloglevel": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns that this will be the default
    "PYTHONWARNINGS": "ignore",  # for processes that we start, multiprocessing's tracker too
}
"""Read by libraries when they are imported, and by the processes that are started."""


def quiet() -> None:
    """Turn warnings and logs of libraries off in this process and in those that it starts.

    What bitquilt itself logs is printed on stderr.
    """
    asked = bool(sys.warnoptions)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if not asked:
        warnings.simplefilter("ignore")
    root, own = logging.getLogger(), logging.getLogger("bitquilt")
    if not root.handlers:
        root.addHandler(logging.NullHandler())  # else Python prints what has no handler
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("bitquilt: %(message)s"))
        own.addHandler(handler)
        own.propagate = False
