"""Which tokens a vocabulary keeps, so that every one of them can still be made by its merges.

BPE never takes a merge back. So the merges inside a token are those that its own characters go
through, whatever stands beside it, and a vocabulary that holds every token on that way can still
make it. Fewer merges compete then, and the ones that a text needs are among them: text whose tokens
are all kept is split as before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence

Merge = tuple[str, str]
"""Two tokens that are joined."""


class MergeTable:
    """The merges of a BPE, the earlier ones first."""

    def __init__(self, merges: Sequence[Merge]) -> None:
        self._ranks: dict[Merge, int] = {}
        for rank, merge in enumerate(merges):
            self._ranks.setdefault(merge, rank)

    def way(self, token: str) -> frozenset[str] | None:
        """Give the tokens on the way from a token's characters to itself, both included.

        The pair that comes first among the merges is joined first, the leftmost of equal ones, as
        tokenizers and llama.cpp do.

        Returns:
            None where the merges do not end in the token.
        """
        symbols = list(token)
        made = set(symbols)
        last = len(self._ranks)
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            ranks = [self._ranks.get(pair, last) for pair in pairs]
            if (best := min(ranks)) == last:
                return None
            at = ranks.index(best)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            made.add(symbols[at])
        return frozenset(made)


def closed_vocabulary(
    required: Collection[str],
    ranked: Iterable[str],
    way: Callable[[str], Collection[str] | None],
    size: int | None,
) -> set[str]:
    """Take tokens in their order, each with all on its way, as far as there is room.

    Args:
        required: tokens that are kept in any case: bytes, control tokens, added ones.
        ranked: the others, those that matter most first.
        way: token → the tokens that it is made by, itself included; None if it cannot be made.
        size: the most tokens that are kept; None if there is no limit.

    Returns:
        the tokens that are kept; more than ``size`` only where ``required`` has more.
    """
    kept = set(required)
    for token in ranked:
        if size is not None and len(kept) >= size:
            break
        if token in kept or (needed := way(token)) is None:
            continue
        missing = set(needed) - kept
        if size is None or len(kept) + len(missing) <= size:
            kept |= missing
    return kept


def kept_merges(merges: Iterable[Merge], kept: Collection[str]) -> list[Merge]:
    """Give the merges of which both parts and the result are kept, in their order."""
    return [
        (left, right)
        for left, right in merges
        if left in kept and right in kept and left + right in kept
    ]
