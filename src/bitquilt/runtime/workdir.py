"""The work directory: one artefact a stage, so that a run continues where it was stopped.

``settings.json`` says what all artefacts were made from. A run whose settings differ is refused,
naming what differs; budgets and target formats are no settings, since the artefacts serve all.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import safetensors
from safetensors import SafetensorError

from bitquilt.errors import UserError
from bitquilt.runtime.files import atomic_write, read_json, refuse_file, remove, require_room
from bitquilt.runtime.near import require_there

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"
KEPT_SECONDS = 5.0
"""How much of a run's time may be lost where it is killed."""

AGAIN = "run `bitquilt quantize` with this work directory again"
"""What to do about a damaged file of a work directory."""

Item = TypeVar("Item")


class WorkDir:
    """Named artefacts under one directory, each written whole."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or create the directory for these settings.

        Raises:
            UserError: it holds work of other settings, or another run is using it.
        """
        self.path = path
        _refuse_foreign(path)
        require_room(path, 0)
        self._lock = _lock(path)
        try:
            if (there := self._facts_of("settings")) is not None:
                _refuse_other_settings(path, there, settings)
            _remove_half_written(path)
            self.save_json("settings", settings)
            earlier = (self._facts_of("time") or {}).get("seconds")
            self._earlier = float(earlier) if isinstance(earlier, int | float) else 0.0
            self._opened = self._kept = time.monotonic()
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def borrowed(cls, path: Path) -> WorkDir:
        """Open the directory that another process of the same run has opened, and keeps."""
        work = cls.__new__(cls)
        work.path, work._kept = path, math.inf  # the time that a run takes is the other's to keep
        return work

    def has(self, name: str) -> bool:
        """Whether the artefact exists."""
        return (self.path / f"{name}.safetensors").exists()

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Write tensors and their facts under ``name``."""
        from safetensors.torch import save_file  # with torch, which `clean` does without

        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        with atomic_write(self.path / f"{name}.safetensors") as temporary, _os_errors(temporary):
            save_file(whole, temporary, metadata=facts)
        if time.monotonic() - self._kept > KEPT_SECONDS:
            self._keep_time()

    def load(self, name: str) -> dict[str, Tensor]:
        """Read all tensors of an artefact.

        Raises:
            UserError: it is damaged.
        """
        from safetensors.torch import load_file

        file = self.path / f"{name}.safetensors"
        with _damage(file):
            tensors: dict[str, Tensor] = load_file(file)
        return tensors

    def load_under(self, name: str, prefix: str) -> dict[str, Tensor]:
        """Read those tensors of an artefact whose names begin with ``prefix``, without it."""
        with self.open(name) as handle:
            chosen = under(prefix, {key: key for key in handle.keys()})  # noqa: SIM118
            return {short: handle.get_tensor(key) for short, key in chosen.items()}

    def facts(self, name: str) -> dict[str, str]:
        """Read the facts of an artefact; there are none where there is no artefact."""
        if not self.has(name):
            return {}
        with self.open(name) as handle:
            return dict(handle.metadata())

    def open(self, name: str) -> Any:
        """Open an artefact lazily (a safetensors handle, torch tensors).

        Raises:
            UserError: it is damaged.
        """
        file = self.path / f"{name}.safetensors"
        with _damage(file):
            return safetensors.safe_open(file, framework="pt")

    def save_json(self, name: str, content: Any) -> None:
        """Write ``name``.json."""
        with atomic_write(self.path / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True))

    def load_json(self, name: str) -> Any:
        """Read ``name``.json; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        file = self.path / f"{name}.json"
        with _damage(file):
            return json.loads(file.read_text()) if file.exists() else None

    def _facts_of(self, name: str) -> dict[str, Any] | None:
        """Read ``name``.json, which holds an object; None where there is none."""
        file = self.path / f"{name}.json"
        with _damage(file):
            found = self.load_json(name)
            if found is not None and not isinstance(found, dict):
                raise ValueError("it does not hold a JSON object")
            return found

    @property
    def seconds(self) -> float:
        """Seconds that the directory was open in all runs together, interrupted ones and this."""
        return self._earlier + time.monotonic() - self._opened

    def _keep_time(self) -> None:
        self.save_json("time", {"seconds": round(self.seconds, 1)})
        self._kept = time.monotonic()

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the time that was spent, and let another run use the directory."""
        with suppress(UserError):  # a full disk is told by what failed on it
            self._keep_time()
        self._lock.close()


def under(prefix: str, items: Mapping[str, Item]) -> dict[str, Item]:
    """Those items whose names begin with ``prefix``, by what follows it in their names."""
    return {
        name.removeprefix(prefix): item for name, item in items.items() if name.startswith(prefix)
    }


def refuse_unusable(path: Path) -> None:
    """Refuse now a work directory that a run would refuse after it has measured the machine.

    Raises:
        UserError: it is not ours, or another run is using it.
    """
    _refuse_foreign(path)
    with locked(path):
        pass


def require_quantized(path: Path) -> None:
    """Refuse a directory that no run of ``quantize`` worked in.

    Raises:
        UserError: it is none; ``eval`` keeps another kind.
    """
    require_there(path)
    settings = path / "settings.json"
    if not settings.is_file() or "model" not in read_json(settings, AGAIN):
        raise UserError(
            f"{path} is not a work directory of `bitquilt quantize`; give the one that it left: "
            "<output>/<model>.work, or what --work-dir named"
        )


def _refuse_foreign(path: Path) -> None:
    """Refuse a file, and a directory with something in it that no run of ours put there."""
    refuse_file(path, "--work-dir")
    begun = {LOCK, ".settings.json.part"}  # what a run killed in its first moment leaves
    ours = not path.exists() or (path / "settings.json").exists()
    if not ours and {entry.name for entry in path.iterdir()} - begun:
        raise UserError(
            f"work directory {path} has files that bitquilt did not write; choose another with "
            "--work-dir"
        )


def _remove_half_written(path: Path) -> None:
    """Remove what a killed run was writing: ours, and the temporary files of safetensors."""
    ours = path.rglob(".*.part")
    of_safetensors = (file for file in path.rglob(".tmp??????") if file.is_file())
    for half_written in [*ours, *of_safetensors]:
        remove(half_written)


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Say of an artefact that cannot be read what to do about it."""
    try:
        yield
    except (ValueError, SafetensorError) as error:  # what JSON, UTF-8 and safetensors say
        raise UserError(
            f"{file} is damaged ({error}); remove the work directory, and the same command begins "
            "anew"
        ) from error


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Turn the errors of safetensors, which hold the system's in their text, into OSError."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _refuse_other_settings(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if differing:
        what = "; ".join(
            f"{key}: {_setting(there.get(key))} there, {_setting(here.get(key))} now"
            for key in differing
        )
        raise UserError(
            f"work directory {path} holds results of other settings ({what}); choose another with "
            "--work-dir, or remove it"
        )


def _setting(value: Any) -> str:
    """Write a setting for people: of a hash, as much as tells two apart."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    said = str(value)
    return said[:8] if re.fullmatch(r"[0-9a-f]{64}", said) else said


def in_use(path: Path) -> bool:
    """Say whether a run is working in a directory."""
    try:
        with locked(path):
            return False
    except UserError:
        return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep runs out of a work directory meanwhile; one that no run ever locked needs no lock.

    Raises:
        UserError: a run is using it.
    """
    if not (path / LOCK).is_file() or (path / LOCK).is_symlink():
        yield
        return
    with _lock(path):
        yield


def _lock(path: Path) -> IO[str]:
    handle = (path / LOCK).open("a")  # unlike "w", leaves its time as it is
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is Windows' answer
        handle.close()
        raise UserError(
            f"work directory {path} is in use by another run; wait for it, or choose another "
            "with --work-dir"
        ) from None
    return handle
