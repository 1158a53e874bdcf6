"""Drawing the next token, the same for every engine.

Logits go through these steps, in this order: repetition penalty, frequency and presence penalties,
what the request avoids, its grammar, temperature, top-k, top-p, min-p. From the temperature on,
this is the order of transformers and vLLM, for which the authors of models state their settings;
llama.cpp applies the temperature last. Letters: V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bitquilt.engines.backend import Backend, Logits
from bitquilt.engines.constraint import Constraint
from bitquilt.engines.engine import GenerationRequest, Sampling, TokenScore

AVOIDING = 4.0
"""Nats that each token of an avoided continuation loses, for as long as the model follows it."""
MARGINS = (2.0, 4.0, 6.0, 8.0, 16.0, 32.0, np.inf)
"""How far below the likeliest token candidates are looked for, in nats: sorting a vocabulary of
128k for every token would take longer than a small model does."""

GREEDY_BELOW = 1e-6
"""Temperatures below this one are 0: a division by them leaves float32's range, or is one by 0."""
LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0, which JSON cannot write, as in OpenAI's API."""

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]


class Sampler:
    """Draws the tokens of one continuation; the same request and logits give the same tokens."""

    def __init__(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Begin the continuation that a request asks for, with the state of its grammar."""
        self._settings = request.sampling
        self._constraint = constraint
        self._free = request.max_tokens - request.finish
        """How many tokens may come before the grammar's end is looked for."""
        self._random = np.random.default_rng(request.sampling.seed)
        self._avoid = list(request.avoid)
        self._penalties = _Penalties(request) if _penalizes(request.sampling) else None
        self._biased = np.array([token for token, _ in request.logit_bias], dtype=np.intp)
        self._bias = np.array([bias for _, bias in request.logit_bias], dtype=np.float32)

    def draw(self, logits: Logits) -> int:
        """Draw the next token for float32 [V] logits.

        Raises:
            ConstraintError: the grammar cannot be followed.
        """
        if self._penalties:
            logits = self._penalties.apply(logits)
        if len(self._biased):
            logits = logits.copy()
            np.add.at(logits, self._biased, self._bias)
        if self._avoid:
            logits = logits.copy()
            logits[self._avoid[0]] -= AVOIDING
        token = self._pick_allowed(logits)
        if self._penalties:
            self._penalties.count(token)
        if self._avoid:
            self._avoid = self._avoid[1:] if token == self._avoid[0] else []
        return token

    def _pick_allowed(self, logits: Logits) -> int:
        """Draw among the tokens that the grammar allows; where they are few, that is quick."""
        if self._constraint is None:
            return self._pick(logits)
        allowed, logits = self._constraint.narrow(logits, ending=self._free <= 0)
        self._free -= 1
        token = self._pick(logits)
        if allowed is not None:
            token = int(allowed[token])
        self._constraint.take(token)
        return token

    def _pick(self, logits: Logits) -> int:
        if self._settings.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        ids, weights = candidates(logits, self._settings)
        reached = np.cumsum(weights)
        return int(ids[np.searchsorted(reached, self._random.random() * reached[-1], "right")])


def token_score(backend: Backend, logits: Logits, token: int, top: int) -> TokenScore:
    """How likely a token was.

    Args:
        backend: knows the tokens' texts.
        logits: float32 [V], as the model computed them.
        token: that was drawn, or stands in the prompt.
        top: so many of the likeliest tokens are told with it.

    Raises:
        UserError: the logits are NaN or infinite.
    """
    highest = float(logits.max())
    if not np.isfinite(highest):
        raise backend.info.broken
    total = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    ids = np.argpartition(-logits, min(top, len(logits) - 1))[:top] if top else ()
    likeliest = sorted((-float(logits[one]), int(one)) for one in ids)

    def text(one: int) -> str:
        name = backend.control_text(one)
        return backend.decode([one]) if name is None else name

    return TokenScore(
        token,
        text(token),
        max(float(logits[token]) - total, LEAST_LOGPROB),
        [(one, text(one), max(-value - total, LEAST_LOGPROB)) for value, one in likeliest],
    )


def candidates(logits: Logits, settings: Sampling) -> tuple[Ids, Doubles]:
    """Return the tokens that temperature, top-k, top-p and min-p leave to choose from.

    Args:
        logits: float32 [V], penalties applied.
        settings: with a temperature of ``GREEDY_BELOW`` or more.

    Returns:
        Ids [C], and weights [C] proportional to their probabilities. Among equals, top-k and top-p
        prefer the smaller id.
    """
    scaled = (logits - logits.max()) / np.float32(settings.temperature)
    ids = None
    if 0 < settings.top_k < len(scaled):
        ids = _likeliest(scaled, lambda some: len(some) >= settings.top_k)[: settings.top_k]
    if settings.top_p < 1:
        wanted = settings.top_p * _mass(scaled if ids is None else scaled[ids])
        if ids is None:
            ids = _likeliest(scaled, lambda some: _mass(some) >= wanted)
        reached = np.cumsum(np.exp(scaled[ids], dtype=np.float64))
        ids = ids[: np.searchsorted(reached, wanted) + 1]
    if ids is None:
        ids = np.arange(len(scaled))
    weights = np.exp(scaled[ids], dtype=np.float64)
    enough = weights >= settings.min_p
    return ids[enough], weights[enough]


def _likeliest(scaled: Logits, enough: Callable[[Logits], bool]) -> Ids:
    """Return the likeliest tokens in order, at least as many as are enough."""
    for margin in MARGINS:
        ids = np.flatnonzero(scaled >= -margin)
        if enough(scaled[ids]):
            break
    return ids[np.argsort(-scaled[ids], kind="stable")]


def _mass(scaled: Logits) -> float:
    return float(np.exp(scaled).sum(dtype=np.float64))


def _penalizes(settings: Sampling) -> bool:
    return (
        settings.repetition_penalty != 1
        or settings.frequency_penalty != 0
        or settings.presence_penalty != 0
    )


class _Penalties:
    """Penalties for tokens that were there.

    Repetition counts the prompt too, as in CTRL (arXiv 1909.05858); frequency and presence count
    what the model said, as in OpenAI's API.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._settings = request.sampling
        self._seen = np.unique(np.asarray(request.tokens, dtype=np.intp))
        own = request.tokens[len(request.tokens) - request.said :]
        self._said, self._times = np.unique(np.asarray(own, dtype=np.intp), return_counts=True)

    def apply(self, logits: Logits) -> Logits:
        """Return a copy of the logits, lower for tokens that were there."""
        settings, logits = self._settings, logits.copy()
        tokens = self._seen[self._seen < len(logits)]  # numbers beyond them are of images
        seen = logits[tokens]
        factor = np.float32(settings.repetition_penalty)
        logits[tokens] = np.where(seen > 0, seen / factor, seen * factor)
        logits[self._said] -= settings.presence_penalty + settings.frequency_penalty * self._times
        return logits

    def count(self, token: int) -> None:
        """Take note of one more token that the model said."""
        place = int(np.searchsorted(self._said, token))
        if place < len(self._said) and self._said[place] == token:
            self._times[place] += 1
            return
        self._said = np.insert(self._said, place, token)
        self._times = np.insert(self._times, place, 1)
        self._seen = np.union1d(self._seen, [token])
