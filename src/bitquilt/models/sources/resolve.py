"""From what a user types to local files.

huggingface_hub is imported where it is asked, so that a path that is no model is refused at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bitquilt import demo
from bitquilt.errors import UserError
from bitquilt.gguf import SUFFIX
from bitquilt.models.checkpoint import ADAPTER_CONFIG
from bitquilt.models.sources.adapter import adapter_error
from bitquilt.runtime.files import require_readable
from bitquilt.runtime.near import did_you_mean, suggestion

DEMO = "demo"
GGUF_MAGIC = b"GGUF"

_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)"
)
"""The beginning of the address of a model's page, as people copy it."""

_TEMPLATES = "*.jinja"
HUB_FILES = (
    *("*.json", "*.safetensors", _TEMPLATES, "*.model", "merges.txt", "vocab.txt", "*.tiktoken"),
    *("README.md", "SYSTEM_PROMPT.txt"),
    *("LICEN[CS]E*", "COPYING*", "*TERMS*", "NOTICE*", "USE_POLICY*"),
)
"""Files of a hub repository that a checkpoint needs, or that say on what terms it is passed on."""
_UNNEEDED = (
    *(f"*/{kind}" for kind in HUB_FILES if kind != _TEMPLATES),  # some are in a folder
    "consolidated*.safetensors",
)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def resolve(reference: str, *, weights: bool = True) -> Path:
    """Local files of a model: a directory with a config.json, a config.json, or a GGUF file.

    Hub ids are downloaded to Hugging Face's cache; ``HF_HOME``, ``HF_TOKEN`` and
    ``HF_HUB_OFFLINE`` mean what they always mean.

    Args:
        reference: what the user typed.
        weights: whether a hub id's are needed.

    Raises:
        UserError: there is no such model, it is not readable, or the hub did not answer.
    """
    return local_path(reference) or _of_hub(reference, _download(reference, weights), weights)


def local_path(reference: str) -> Path | None:
    """What a reference names on this machine, or None where only the hub may have it.

    Nothing but names and a few bytes is looked at, so this takes no time.

    Args:
        reference: what the user typed.

    Raises:
        UserError: it is no model, or a path that does not exist or may not be read.
    """
    if reference == DEMO:
        return demo.path()
    if not reference.strip():
        raise UserError(
            "the model's name is empty; give a hub id, a directory, a GGUF file or demo"
        )
    path = Path(reference).expanduser()
    if (page := _HUB_PAGE.match(reference)) and not path.exists():
        raise UserError(f"{reference} is an address of the hub; give the model's id: {page['id']}")
    if reference.startswith(("http://", "https://")):
        raise UserError(
            f"{reference} is an address of the web; download the file, and give its path"
        )
    require_readable(path)
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return _file(path)
    if reference.casefold() == DEMO:
        raise UserError(f"there is no model {reference}; did you mean {DEMO}?")
    if _looks_local(reference, path):
        raise UserError(f"{reference} does not exist{suggestion(path)}")
    return None


def on_hub(reference: str) -> bool:
    """Whether a reference that resolves names a model of the hub."""
    return reference != DEMO and not Path(reference).expanduser().exists()


def may_be_hub_id(reference: str) -> bool:
    """Say whether a reference has the form ``owner/name`` and is no path; the hub is not asked."""
    path = Path(reference).expanduser()
    return reference.count("/") == 1 and on_hub(reference) and not _looks_local(reference, path)


def hub_id(reference: str, path: Path) -> str | None:
    """The repository that a model came from: asked for by its id, or in Hugging Face's cache.

    Args:
        reference: what the user typed.
        path: what it resolved to.
    """
    if on_hub(reference):
        return reference
    for place in (os.path.abspath(path), os.path.realpath(path)):  # files are links to others
        if found := re.search(r"/models--([^/]+)/snapshots/", Path(place).as_posix() + "/"):
            return found[1].replace("--", "/", 1)
    return None


def model_name(path: Path) -> str:
    """A GGUF file's name without its ending and without the type that it is quantized to."""
    return re.sub(r"[.-](I?Q\d\w*|UD-\w+|BF16|F16|F32)$", "", path.stem, flags=re.IGNORECASE)


def short_name(reference: str, path: Path) -> str:
    """A model's name for people and file names: the last part of its hub id or path."""
    if reference == DEMO:
        return DEMO
    if path.suffix == SUFFIX:
        return model_name(path)
    return (hub_id(reference, path) or path.resolve().name).rpartition("/")[2]


def _of_hub(repo: str, path: Path, weights: bool) -> Path:
    """Refuse what a repository of the hub lacks; its files in the cache tell nobody anything."""
    if not any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        raise UserError(
            f"{repo} has no config.json on the hub, so it is no Hugging Face model; if it has GGUF "
            f"files, download one with `hf download {repo} FILE.gguf`, and give its path"
        )
    found = _directory(path)
    if weights and not any(path.glob("*.safetensors")):
        raise UserError(
            f"{repo} has no weights on the hub as Hugging Face's safetensors; if it has pickled "
            f"ones and you trust them, save them with {saving(repo, 'DIR')}, add the tokenizer's "
            "files, and give DIR"
        )
    return found


def saving(model: str | Path, to: str | Path) -> str:
    """The command that writes pickled weights as safetensors."""
    code = f"M.from_pretrained({str(model)!r}).save_pretrained({str(to)!r})"
    return f'`python -c "from transformers import AutoModelForCausalLM as M; {code}"`'


def _directory(path: Path) -> Path:
    if (path / "config.json").exists():
        return path
    if (path / ADAPTER_CONFIG).exists():
        raise adapter_error(path)
    ggufs = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
    if ggufs:
        some = ", ".join(str(path / name) for name in ggufs[:3])
        raise UserError(
            f"{path} has GGUF files but no config.json; give one of them: {some}"
            + (" …" if len(ggufs) > 3 else "")
        )
    raise UserError(
        f"{path} has no config.json, so it is not a Hugging Face model directory; give the "
        "directory that holds config.json, a GGUF file, or a hub id such as Qwen/Qwen3-0.6B"
    )


def _file(path: Path) -> Path:
    if path.name == "config.json":
        return path
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is one file of a model; give its directory: {path.parent}")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if not magic:
        raise UserError(f"{path} is empty; download it again")
    if magic == GGUF_MAGIC and path.suffix == SUFFIX:
        return path
    if magic == GGUF_MAGIC:
        raise UserError(f"{path} is a GGUF file without the extension .gguf; rename it")
    raise UserError(
        f"{path} is not a GGUF file: it does not begin with the bytes GGUF; download it again, or "
        "give a Hugging Face directory"
    )


def _looks_local(reference: str, path: Path) -> bool:
    """Hub ids are ``name`` or ``owner/name``; anything else can only be a path."""
    return (
        path.is_absolute()
        or reference.startswith((".", "~"))
        or reference.count("/") > 1
        or path.suffix in (SUFFIX, ".json", ".safetensors")
        or ("/" in reference and path.parent.is_dir())
    )


def snapshot_download(repo: str, **patterns: Any) -> str:
    """Download a repository of the hub; see huggingface_hub's function of that name."""
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repo, **patterns))


def _download(repo: str, weights: bool) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    unneeded = [*_UNNEEDED, *(() if weights else _WEIGHTS)]
    try:
        found = snapshot_download(repo, allow_patterns=list(HUB_FILES), ignore_patterns=unneeded)
    except GatedRepoError as error:
        raise UserError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in "
            "with `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no model {repo} on the hub and no such directory here"
            + (_near(repo) or "; check the name, and if it is private log in with `hf auth login`")
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise UserError(_not_reached(repo)) from error
    except HFValidationError as error:
        raise UserError(
            f"{repo} is neither a path that exists nor a hub id such as Qwen/Qwen3-0.6B"
            f"{_near(repo)}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"downloading {repo} failed: {reason}; run the command again to continue"
        ) from error
    return Path(found)


def _not_reached(repo: str) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return f"{repo} is not in the local cache and HF_HUB_OFFLINE is set" + (
            _near(repo) or "; unset it, or give the directory of a copy"
        )
    return f"{repo} is not in the local cache and the hub cannot be reached" + (
        _near(repo) or "; check the network, or give the directory of a copy"
    )


def _near(reference: str) -> str:
    """What may have been meant by a name without an owner: the demo, or what is here."""
    here = (entry.name for entry in Path().iterdir() if entry.name != reference)
    return "" if "/" in reference else did_you_mean(reference, (DEMO, *here))
