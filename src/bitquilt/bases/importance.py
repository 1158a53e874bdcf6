"""What the matrices of a base read, found out by running the Hugging Face model.

The model computes in float32; its weights may stay in their files meanwhile. An entry has the
plain sums of squares that llama-imatrix has, for every expert on its own, in the order of the
base's columns.

Letters: E experts of a stack (1 for a plain matrix), C columns, N windows of L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.utils import logging

from bitquilt.bases.base_file import BaseMatrices
from bitquilt.bases.deferred_stacks import deferring, moved_model
from bitquilt.bases.lent_weights import SMALL_WEIGHTS, lent_weights
from bitquilt.bases.partners import Partner, PartnerPiece, Unit, find_partners
from bitquilt.bases.plain_checkpoint import PlainTensors
from bitquilt.bases.products import InputSums, WatchedProducts
from bitquilt.bases.room import BY_LLAMA_CPP, refuse_unread_weights
from bitquilt.errors import UserError
from bitquilt.gguf.imatrix import ImportanceEntry, ImportanceMatrix
from bitquilt.models.sources.adapter import has_adapter
from bitquilt.models.sources.hugging_face import no_head_error
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class BaseModel:
    """A base, and the Hugging Face model that it was converted from."""

    path: Path
    """The GGUF file."""
    model: nn.Module
    partners: Mapping[str, Partner | None]
    """Every matrix of the base that could be quantized → where it comes from."""

    @property
    def alone(self) -> list[str]:
        """The matrices that no parameter has the numbers of."""
        return [name for name, partner in self.partners.items() if partner is None]

    @property
    def embeddings(self) -> int:
        """How many tokens the model has embeddings of."""
        table: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return len(table)


_LOADING = {"dtype": torch.float32, "output_loading_info": True}


def load_transformers_model(directory: Path, least: int = SMALL_WEIGHTS) -> nn.Module:
    """Load any language model that transformers knows; one that sees keeps its vision tower.

    It computes in float32, and its weights are lent (:mod:`bitquilt.bases.lent_weights`).

    Args:
        directory: of the model.
        least: weights of a parameter that is lent.

    Raises:
        UserError: transformers does not know or cannot load it, or its weights are quantized.
    """
    refuse_unread_weights(directory)
    tensors = PlainTensors(directory)
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        kind = _as_published(_class_of(config))
        if tensors.is_read(()) and not has_adapter(directory):  # peft would put it on
            model, loading = kind.from_pretrained(directory, local_files_only=True, **_LOADING)
        else:
            model, loading = kind.from_pretrained(None, **_given(tensors), **_LOADING)
    except Exception as error:  # whatever the model's own code raises
        raise _not_loaded(directory, error) from error
    missing = sorted(loading["missing_keys"])
    if missing == ["lm_head.weight"]:
        raise no_head_error()
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} of the tensors of transformers' "
            f"{type(model).__name__}, among them {missing[0]}; download the checkpoint again"
        )
    _restore_padding(model, tensors)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # one product for each expert
    loaded: nn.Module = model.eval().requires_grad_(False)
    lent_weights(loaded, least)
    return loaded


def require_class(directory: Path) -> None:
    """Refuse a model that :func:`load_transformers_model` has no class for, by its config.

    Raises:
        UserError: transformers does not know it, or not as a model that writes text.
    """
    try:
        _class_of(AutoConfig.from_pretrained(directory, local_files_only=True))
    except Exception as error:  # whatever the config's class raises
        raise _not_loaded(directory, error) from error


def _not_loaded(directory: Path, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(f"transformers cannot load {directory}: {reason}; {BY_LLAMA_CPP}")


def _class_of(config: Any) -> Any:
    """The class of models with a config that write text, whatever else they read or write."""
    autos = [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
    if type(config.get_text_config()) in AutoModelForCausalLM._model_mapping:
        autos.append(AutoModelForSeq2SeqLM)  # has models that hear, around a language model
    for auto in autos:
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ValueError(f"it has no class of {type(config).__name__} that writes text")


def _as_published(kind: Any) -> Any:
    """A class of models that compute in float32, and whose weights are loaded as they are.

    Where the loader does not convert them otherwise, they stay in the files, which are mapped;
    stacks of experts are put together later (:mod:`bitquilt.bases.deferred_stacks`).
    """

    def load(model: Any, state: Any, files: Any, config: Any, *others: Any) -> Any:
        own = replace(config, weight_mapping=deferring(config.weight_mapping or ()))
        return kind._load_pretrained_model(model, state, files, own, *others)

    as_they_are = {
        "_get_dtype_plan": lambda *_: {"*": None},
        "_load_pretrained_model": staticmethod(load),
    }
    # transformers treats classes of other modules as code that a model brings
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **as_they_are})


@torch.no_grad()
def _restore_padding(model: nn.Module, tensors: PlainTensors) -> None:
    """Give the embedding of the padding token back, which classes as Youtu's make 0 on loading."""
    table = model.get_input_embeddings()  # type: ignore[operator]
    row = getattr(table, "padding_idx", None)
    name = next((name for name, one in model.named_parameters() if one is table.weight), "")
    if row is not None and name in tensors and not table.weight[row].any():
        table.weight[row] = tensors[name][row]


def _given(tensors: PlainTensors) -> dict[str, Any]:
    """The weights of a checkpoint, and its config without a word of quantization."""
    config = AutoConfig.from_pretrained(tensors.directory, local_files_only=True)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return {"config": config, "state_dict": dict(tensors)}


def open_base(path: Path, directory: Path, progress: Progress) -> BaseModel:
    """Load a model, and find where its base's matrices come from.

    Args:
        path: the base.
        directory: of the Hugging Face model.
        progress: told of a stage.

    Raises:
        UserError: one of them cannot be read, or the base was made of another model.
    """
    matrices = BaseMatrices(path)
    with progress.stage("Matching the base with the model", 1, "matching"):
        model = load_transformers_model(directory)
        partners = match_base(matrices, path, model, directory)
        progress.advance()
    return BaseModel(path, model, partners)


def match_base(
    matrices: Mapping[str, Tensor], path: Path, model: nn.Module, directory: Path
) -> dict[str, Partner | None]:
    """Find where a base's matrices come from.

    Args:
        matrices: of the base.
        path: of the base.
        model: that it was converted from.
        directory: of the model.

    Raises:
        UserError: it was made of another model.
    """
    partners = find_partners(matrices, dict(model.named_parameters()))
    if not any(partners.values()):
        raise UserError(
            f"none of the {len(partners)} matrices of {path} equals a parameter of {directory}; "
            "give the file that was converted from this model"
        )
    return partners


@torch.no_grad()
def base_importance(
    base: BaseModel, tokens: Tensor, datasets: Sequence[str], progress: Progress
) -> ImportanceMatrix:
    """Run tokens int64 [N, L] through a model, and sum the squares of what each matrix reads.

    Matrices that are only looked up in, and those without a partner, have no entry. Experts that no
    token reached have zeros.

    Args:
        base: with its model.
        tokens: the text.
        datasets: the names of the texts.
        progress: advances by one for each window.
    """
    model = moved_model(base.model, compute_device())
    lent = lent_weights(model)
    parameters = dict(model.named_parameters())
    try:
        with WatchedProducts(parameters, lent.known):
            model(tokens[:1].to(compute_device()), use_cache=False)
    except RuntimeError:
        if not lent.keep():
            raise
    with WatchedProducts(parameters, lent.known) as products:
        for window in tokens:
            model(window[None].to(compute_device()), use_cache=False)
            progress.advance()
    return importance_of_partners(base.partners, products.sums, tokens, datasets)


def importance_of_partners(
    partners: Mapping[str, Partner | None],
    sums: Mapping[Unit, InputSums],
    tokens: Tensor,
    datasets: Sequence[str],
) -> ImportanceMatrix:
    """Give the importance matrix of a base by what its partners read.

    Args:
        partners: of its matrices.
        sums: of the partners.
        tokens: the text that was read, int64 [N, L].
        datasets: its names.
    """
    entries = {
        name: entry
        for name, partner in partners.items()
        if partner is not None and (entry := _entry(partner, sums)) is not None
    }
    return ImportanceMatrix(
        entries=entries,
        datasets=tuple(datasets),
        chunks=len(tokens),
        chunk_size=tokens.shape[1],
    )


def _entry(partner: Partner, sums: Mapping[Unit, InputSums]) -> ImportanceEntry | None:
    """The entry of a matrix; None where nothing was multiplied with any of it."""
    seen = [[piece for piece in expert if piece.unit in sums] for expert in partner.experts]
    width = next((len(sums[p.unit].squares) for expert in seen for p in expert), None)
    if width is None:
        return None
    squares = np.zeros((len(seen), width), np.float32)
    counts = np.zeros(len(seen), np.float32)
    for number, pieces in enumerate(seen):
        if pieces:
            rows = sum(len(piece.rows) for piece in pieces)
            means = [_mean_squares(piece, sums) * (len(piece.rows) / rows) for piece in pieces]
            counts[number] = sums[pieces[0].unit].count
            squares[number] = (torch.stack(means).sum(0) * counts[number]).cpu().numpy()
    return ImportanceEntry(squares, counts)


def _mean_squares(piece: PartnerPiece, sums: Mapping[Unit, InputSums]) -> Tensor:
    """The mean square of each input of a piece, in the base's order of columns, float64 [C]."""
    found = sums[piece.unit]
    means = found.squares / max(found.count, 1)
    return means if piece.columns is None else means[piece.columns]
