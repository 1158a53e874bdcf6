"""Two passes over the text, for statistics that nothing keeps (docs/decisions/two-passes.md).

As the first pass comes back through a layer, what types cost its matrices is estimated from the
moments that are in memory; as the second does, its matrices are rounded onto the types that were
chosen. Embeddings and the head come at the end of a pass, when all is known of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitquilt.bases.fisher import FisherProducts
from bitquilt.bases.live_statistics import LiveStatistics
from bitquilt.bases.partners import Partner
from bitquilt.bases.reading import BaseReading
from bitquilt.bases.statistics import FISHER, ReadSums, facts_of
from bitquilt.converted.formats.base_format import BaseFormat
from bitquilt.converted.moments import BaseMoments
from bitquilt.converted.prediction import Nats, predicted_nats
from bitquilt.converted.rounding import base_rounding_work, missing_matrices, round_base
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.workdir import WorkDir

KEPT_ON_DISK = 16 << 30
"""Packed moments of at most so many bytes are kept where a CPU computes: it reads slowly."""
READING_SHARE = 0.3
"""What reading the text takes of a pass, for a bar."""


@dataclass(frozen=True)
class MatchedBase:
    """A base, and where its matrices come from."""

    base: BaseFormat
    partners: Mapping[str, Partner | None]


UseLayer = Callable[[MatchedBase, BaseMoments, Sequence[str]], None]
"""Does something with matrices whose moments are in memory."""


class LayerPasses:
    """A model's text read twice, for all of its bases."""

    def __init__(
        self,
        reading: BaseReading,
        bases: Sequence[MatchedBase],
        work: WorkDir,
        method: str,
        progress: Progress,
    ) -> None:
        """Part the matrices among the layers.

        Args:
            reading: goes layer by layer.
            bases: what is made of the model.
            work: keeps estimates and rounded matrices.
            method: one of :data:`bitquilt.rounding.METHODS`.
            progress: told of stages.
        """
        assert reading.one_pass is not None
        self._reading, self._bases, self._work = reading, bases, work
        self._method, self._progress = method, progress
        self._behind = reading.one_pass.layers
        layers = _layers_of(reading)
        self._parts = [
            {name: _layers(partner, layers) for name, partner in one.partners.items()}
            for one in bases
        ]

    @property
    def serve(self) -> bool:
        """Whether every matrix is of one layer."""
        return all(len(own) <= 1 for parts in self._parts for own in parts.values())

    def estimate(self, types: Sequence[Mapping[str, Sequence[str]]]) -> None:
        """Read the text once: sums stay in the work directory, and what types cost.

        Args:
            types: of each base, the candidates of its matrices; none where no costs are needed.
        """
        known = [self._work.load_json(self._costs(one)) or {} for one in self._bases]
        if self._work.has(FISHER) and all(map(_covers, known, types)):
            return
        sums = ReadSums()
        found = {
            id(one): {name: dict.fromkeys(names, 0.0) for name, names in own.items()}
            for one, own in zip(self._bases, types, strict=True)
        }
        asked = {id(one): own for one, own in zip(self._bases, types, strict=True)}

        def use(one: MatchedBase, moments: BaseMoments, names: Sequence[str]) -> None:
            own = {name: asked[id(one)][name] for name in names if name in asked[id(one)]}
            found[id(one)] |= predicted_nats(one.base, moments, own, self._method, self._progress)

        total = sum(map(len, types)) or 1
        with self._progress.stage("Reading text and trying types", 1.5 * total, "moments"):
            self._run(use, 0.5 * total, lambda _: any(types), sums)
        for one in self._bases:
            self._work.save_json(self._costs(one), found[id(one)])
        sums.save(self._work, self._reading.model, 0, self._reading)

    def nats(self, place: int) -> Nats:
        """Return what was estimated of a base."""
        found: Nats = self._work.load_json(self._costs(self._bases[place]))
        return found

    def round(self, plans: Sequence[Sequence[Allocation]]) -> None:
        """Read the text once more, and leave all matrices of some files in the work directory.

        Args:
            plans: of each base, the types of each of its files; only matrices of which something
                is known.
        """
        asked = {id(one): own for one, own in zip(self._bases, plans, strict=True)}
        missing = [
            (one, missing_matrices(one.base, types, self._method, self._work))
            for one in self._bases
            for types in asked[id(one)]
        ]
        wanted = {
            part
            for one, own in missing
            for name in own
            for part in self._parts[self._bases.index(one)].get(name, set())
        }
        if not wanted:
            return
        work = sum(base_rounding_work(one.base, own) for one, own in missing)

        def use(one: MatchedBase, moments: BaseMoments, names: Sequence[str]) -> None:
            for types in asked[id(one)]:
                own = {name: types[name] for name in names if name in types}
                own = missing_matrices(one.base, own, self._method, self._work)
                round_base(one.base, moments, own, self._method, self._work, self._progress)

        reading = READING_SHARE * work
        with self._progress.stage("Reading text again, and rounding", work + reading, "rounding"):
            self._run(use, reading, wanted.__contains__)

    def _run(
        self,
        use: UseLayer,
        share: float,
        wanted: Callable[[int], bool],
        sums: ReadSums | None = None,
    ) -> None:
        """Read the text; let each layer be used, and what is in none of them at the end."""
        reading, facts = self._reading, facts_of(self._reading.model)
        tokens, head, width = reading.tokens.numel(), facts["head"], int(facts["width"])
        behind: list[FisherProducts] = []

        def take(part: int, products: FisherProducts) -> None:
            if sums is not None:
                sums.add(products)
            if part == self._behind:
                behind.append(products)
            elif wanted(part):
                self._use(use, part, LiveStatistics(products, tokens, head, width))

        unit = share / reading.work
        reading.run(take, lambda done: self._progress.advance(unit * done), wanted)
        last = LiveStatistics(behind[0], tokens, head, width, reading.lookups)
        if wanted(self._behind):
            self._use(use, self._behind, last)

    def _use(self, use: UseLayer, part: int, statistics: LiveStatistics) -> None:
        for one, parts in zip(self._bases, self._parts, strict=True):
            names = [name for name, own in parts.items() if own == {part}]
            if names:
                use(one, BaseMoments(statistics, one.partners), names)

    def _costs(self, one: MatchedBase) -> str:
        return f"costs/{one.base.target}-{one.base.fingerprint}-{self._method}"


def keeps_nothing(reading: BaseReading, work: WorkDir) -> bool:
    """Tell whether moments are used while they are in memory, and not kept on the disk."""
    if reading.one_pass is None:
        return False
    most = min(KEPT_ON_DISK, shutil.disk_usage(work.path).free // 2)
    return compute_device().type == "cuda" or reading.packed_bytes > most


def _layers_of(reading: BaseReading) -> dict[str, int]:
    """Return the layer that each parameter is of; those of none have the number behind the last."""
    assert reading.one_pass is not None
    layers = reading.one_pass.layerwise.layers
    numbers = {id(one): index for index, own in enumerate(layers) for one in own.parameters()}
    return {name: numbers.get(id(one), len(layers)) for name, one in reading.parameters.items()}


def _layers(partner: Partner | None, layers: Mapping[str, int]) -> set[int]:
    return {layers[name] for name in partner.parameters} if partner else set()


def _covers(known: Nats, types: Mapping[str, Sequence[str]]) -> bool:
    return all(qtype in known.get(name, {}) for name, own in types.items() for qtype in own)
