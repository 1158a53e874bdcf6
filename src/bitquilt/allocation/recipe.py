"""Recipes: which type each matrix gets, as a JSON file that people and searches write alike.

A recipe has a default type, rules, and pins::

    {
      "default": "Q4_K",
      "rules": [{"match": "attn_v|ffn_down", "type": "Q6_K"}],
      "pin": {"token_embd": "Q8_0"}
    }

A matrix goes by two names, its GGUF tensor name (``blk.0.attn_q``) and its Hugging Face module path
(``model.layers.0.self_attn.q_proj``), each with or without ``.weight``. A rule's regex is searched
in all of them and the first rule that matches wins. A pin names one matrix exactly, beats every
rule, and holds during a search too; rules and default are the mix when there is no search. A type
is a name, or one name per target, ``{"gguf": "Q6_K", "mlx": "6bit-g64"}``, so that one file serves
both. ``"sequential": true`` says that blocks are rounded again for those before them, and false
that they are not; the recipe beside a model says what was done there. A file may say which format
it has, ``"format": 2``; format 1 is that of bitquilt 0.1, whose rules said "grid" where they say
"type" now.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.models.architectures import architecture_of
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.near import did_you_mean, suggestion
from bitquilt.targets import TARGETS

FORMAT = 2
"""The format that recipe files have."""

QtypeChoice = str | Mapping[str, str]
"""The name of a type, or target → name."""


@dataclass(frozen=True)
class Rule:
    """A regex, and the type of every matrix that has a name in which the regex is found."""

    match: str
    qtype: QtypeChoice


@dataclass(frozen=True)
class Recipe:
    """An allocation as people write it down, before it meets a model."""

    default: QtypeChoice | None = None
    rules: tuple[Rule, ...] = ()
    pin: Mapping[str, QtypeChoice] = field(default_factory=dict)
    sequential: bool | None = None
    """Whether blocks are rounded again for those before them; None where it does not say."""
    where: str = "the recipe"
    """What errors call the recipe, usually its file's path; it is not part of the recipe."""

    def to_json(self) -> str:
        """Return the recipe on one line, in a canonical form that :func:`parse_recipe` reads."""
        parts: dict[str, Any] = {}
        if self.default is not None:
            parts["default"] = _plain(self.default)
        if self.rules:
            parts["rules"] = [{"match": r.match, "type": _plain(r.qtype)} for r in self.rules]
        if self.pin:
            parts["pin"] = {name: _plain(self.pin[name]) for name in sorted(self.pin)}
        if self.sequential is not None:
            parts["sequential"] = self.sequential
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))

    def refuse_correction(self) -> None:
        """Refuse a recipe that asks for what is done to models of known families only.

        Raises:
            UserError: the recipe wants blocks to be rounded again.
        """
        if self.sequential:
            raise UserError(
                f'{self.where} says "sequential": true, but this model is rounded once, without a '
                "correction for the blocks before; leave it out of the recipe"
            )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        UserError: the file cannot be read, or is not a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"the recipe {path} does not exist{suggestion(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"cannot read the recipe {path}: {reason}; give the path of a recipe's JSON file"
        ) from error
    return parse_recipe(text, str(path))


def parse_recipe(source: str | Mapping[str, Any], where: str) -> Recipe:
    """Make a recipe from its JSON, as text or already decoded.

    Args:
        source: the JSON.
        where: where it came from, for errors.

    Raises:
        UserError: it is not JSON, has another format, an unknown key, an unknown type or an invalid
            regex.
    """
    data = _decode(source, where) if isinstance(source, str) else source
    _check_keys(data, {"format", "default", "rules", "pin", "sequential"}, where)
    _check_format(data.get("format", FORMAT), where)
    rules = data.get("rules", [])
    pin = data.get("pin", {})
    sequential = data.get("sequential")
    if not isinstance(rules, list):
        raise UserError(f'{where}: "rules" must be a list of {{"match": …, "type": …}}')
    if not isinstance(pin, Mapping):
        raise UserError(f'{where}: "pin" must be an object of matrix name: type')
    if "sequential" in data and not isinstance(sequential, bool):
        raise UserError(f'{where}: "sequential" must be true or false; correct it or leave it out')
    return Recipe(
        default=_parse_qtype(data["default"], f'{where}: "default"') if "default" in data else None,
        rules=tuple(_parse_rule(rule, f"{where}: rule {i}") for i, rule in enumerate(rules, 1)),
        pin={name: _parse_qtype(qtype, f'{where}: pin "{name}"') for name, qtype in pin.items()},
        sequential=sequential,
        where=where,
    )


def resolve_recipe(recipe: Recipe, checkpoint: Checkpoint, target: str) -> dict[str, str]:
    """Return the allocation that a recipe gives a model.

    Args:
        recipe: the recipe.
        checkpoint: the model; only its names and shapes are looked at.
        target: ``gguf`` or ``mlx``.

    Returns:
        Module path → type name, for every matrix, in the checkpoint's order.

    Raises:
        UserError: a rule matches nothing, a pin names no matrix, a matrix is left without a type,
            or gets one that its row length or the target cannot take.
    """
    fixed = pins(recipe, checkpoint, target)
    names = _names(checkpoint)
    allocation: dict[str, str] = {}
    for module, (_, columns) in checkpoint.matrices.items():
        if module in fixed:
            allocation[module] = fixed[module]
            continue
        matching = (rule.qtype for rule in recipe.rules if _matches(rule, names[module]))
        choice = next(matching, recipe.default)
        if choice is None:
            raise UserError(
                f'{recipe.where} does not give {module} a type; add a "default", or ask for a size '
                "with --bits or --size"
            )
        allocation[module] = _qtype_for(choice, module, columns, target, recipe.where)
    return allocation


def pins(recipe: Recipe, checkpoint: Checkpoint, target: str) -> dict[str, str]:
    """Return the matrices that a search must not change, with their types.

    Checks the whole recipe against the model's names, so that a rule or a pin with a typing error
    is found before a search starts.

    Returns:
        Module path → type name, for the pinned matrices.

    Raises:
        UserError: a rule matches nothing, a pin names no matrix or one already pinned, or its type
            is one that the row length or the target cannot take.
    """
    names = _names(checkpoint)
    _check_rules(recipe, names, checkpoint.name)
    modules = {name: module for module, alternatives in names.items() for name in alternatives}
    fixed: dict[str, str] = {}
    for name, choice in recipe.pin.items():
        if name not in modules:
            raise UserError(_unknown_matrix(name, list(modules), recipe.where))
        module = modules[name]
        if module in fixed:
            raise UserError(f"{recipe.where} pins {module} twice, by two of its names; keep one")
        columns = checkpoint.matrices[module][1]
        fixed[module] = _qtype_for(choice, module, columns, target, recipe.where)
    return fixed


def from_allocation(
    allocation: Allocation, checkpoint: Checkpoint, sequential: bool | None = None
) -> Recipe:
    """Return an allocation as a recipe: its most common type as default, all other matrices pinned.

    Args:
        allocation: the type of every matrix.
        checkpoint: the model, whose order breaks ties.
        sequential: what the recipe says of it.
    """
    named = {names[0]: allocation[module] for module, names in _names(checkpoint).items()}
    default = Counter(named.values()).most_common(1)[0][0]
    pin = {name: qtype for name, qtype in named.items() if qtype != default}
    return Recipe(default=default, pin=pin, sequential=sequential)


def require_fit(qtype: str, module: str, columns: int, target: str, where: str) -> str:
    """Return the type's name if the target stores it and the row length takes it.

    Args:
        qtype: a registered type's name.
        module: module path of the matrix.
        columns: its row length.
        target: ``gguf`` or ``mlx``.
        where: who asks for it, for errors.

    Raises:
        UserError: naming the matrix, the reason and the types that would do.
    """
    found = qtypes.get(qtype)
    fitting = ", ".join(choice.name for choice in qtypes.for_width(columns, target))
    if target not in found.targets:
        other = ", ".join(sorted(found.targets))
        raise UserError(
            f"{where} asks for {qtype} on {module}, but {target} files cannot hold it (it is a "
            f"type of {other}); choose one of {fitting}, or name one type for each format: "
            f"{_per_target('…')}"
        )
    if not found.fits(columns):
        raise UserError(
            f"{where} asks for {qtype} on {module}, whose rows of {columns} are not a "
            f"multiple of its block of {found.block}; choose one of {fitting}"
        )
    return qtype


def _per_target(value: str) -> str:
    """Write a JSON object with a value for every output format, for error messages."""
    return "{" + ", ".join(f'"{target}": {value}' for target in TARGETS) + "}"


def _names(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return module path → every name that a recipe may call the matrix by, the GGUF one first."""
    gguf_name = architecture_of(checkpoint.config).gguf_name
    both = {module: (gguf_name(module), module) for module in checkpoint.matrices}
    return {m: (*names, *(f"{name}.weight" for name in names)) for m, names in both.items()}


def _matches(rule: Rule, names: tuple[str, ...]) -> bool:
    return any(re.search(rule.match, name) for name in names)


def _check_rules(recipe: Recipe, names: Mapping[str, tuple[str, ...]], model: str) -> None:
    """Refuse a rule that no matrix of the model answers to."""
    for rule in recipe.rules:
        if not any(_matches(rule, alternatives) for alternatives in names.values()):
            parts = dict.fromkeys(gguf.split(".")[-1] for gguf, *_ in names.values())
            raise UserError(
                f'{recipe.where}: the rule "{rule.match}" matches no matrix of {model}; its '
                f"matrices are {', '.join(parts)}" + did_you_mean(rule.match, parts)
            )


def _unknown_matrix(name: str, known: list[str], where: str) -> str:
    near = did_you_mean(name, known) or f"; its matrices have names like {known[0]}"
    return f'{where} pins "{name}", which is not a matrix of this model{near}'


def _qtype_for(choice: QtypeChoice, module: str, columns: int, target: str, where: str) -> str:
    """Choose the type that a choice means for this target, checked against the matrix."""
    if isinstance(choice, str):
        return require_fit(choice, module, columns, target, where)
    if target not in choice:
        raise UserError(
            f"{where} names a type for {module} in {', '.join(choice)} files only; add one for "
            f'"{target}"'
        )
    return require_fit(choice[target], module, columns, target, where)


def _decode(text: str, where: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            'correct it, or begin with a file that holds {"default": "Q4_K"}'
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, or objects in objects
        raise UserError(f"{where} is not a recipe ({error}); correct it") from error
    if not isinstance(data, dict):
        raise UserError(f'{where} must be a JSON object, e.g. {{"default": "Q4_K"}}')
    return data


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Build a JSON object; refuse a repeated key, of which json would let the last one win."""
    keys = Counter(key for key, _ in pairs)
    repeated = [key for key, count in keys.items() if count > 1]
    if repeated:
        raise UserError(f'{where} has the key "{repeated[0]}" twice in one object; keep one')
    return dict(pairs)


def _check_keys(data: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise UserError(
            f'{where} has an unknown key "{unknown[0]}"; the keys are {", ".join(sorted(allowed))}'
            + did_you_mean(unknown[0], allowed)
        )


def _check_format(number: Any, where: str) -> None:
    if number == FORMAT and type(number) is int:
        return
    if type(number) is not int:
        raise UserError(
            f'{where}: "format" must be the number {FORMAT}; correct it or leave it out'
        )
    if number > FORMAT:
        raise UserError(
            f"{where} has recipe format {number}, but this version of bitquilt reads format "
            f"{FORMAT}; install a newer one with `pip install --upgrade bitquilt`"
        )
    raise UserError(
        f"{where} has recipe format {number}, but this version of bitquilt reads format {FORMAT}; "
        f'rename "grid" to "type" in all rules, and write "format": {FORMAT}'
    )


def _parse_rule(data: Any, where: str) -> Rule:
    if not isinstance(data, Mapping):
        raise UserError(f'{where} must be an object, {{"match": regex, "type": name}}')
    if "grid" in data:
        raise UserError(
            f'{where} says "grid", as bitquilt 0.1 did; rename "grid" to "type" in all rules'
        )
    _check_keys(data, {"match", "type"}, where)
    if not isinstance(data.get("match"), str) or "type" not in data:
        raise UserError(f'{where} needs both a "match" (a regex) and a "type"')
    try:
        re.compile(data["match"])
    except re.error as error:
        raise UserError(
            f'{where}: "{data["match"]}" is not a regular expression: {error}'
        ) from error
    return Rule(data["match"], _parse_qtype(data["type"], where))


def _parse_qtype(data: Any, where: str) -> QtypeChoice:
    """Parse a type's name or one per target; every name is a known one."""
    if isinstance(data, str):
        _check_qtype(data, where)
        return data
    if not isinstance(data, Mapping) or not data:
        raise UserError(f"{where} must be a type, or {_per_target('type')}")
    _check_keys(data, set(TARGETS), where)
    for target, name in data.items():
        if not isinstance(name, str):
            raise UserError(f'{where}: "{target}" must be the name of a type')
        _check_qtype(name, where)
    return dict(data)


def _check_qtype(name: str, where: str) -> None:
    try:
        qtypes.get(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _plain(choice: QtypeChoice) -> str | dict[str, str]:
    if isinstance(choice, str):
        return choice
    return {target: choice[target] for target in TARGETS if target in choice}
