"""The text of an answer as it comes: reasoning apart, ended at stop strings, told as events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bitquilt.talk.events import Answer, Reasoning
from bitquilt.talk.reasoning import AnswerPart, ReasoningStyle, Splitter, overlap


class Transcript:
    """What a model has said so far."""

    def __init__(self, style: ReasoningStyle, thinking: bool, stop: Sequence[str]) -> None:
        """Begin, inside the reasoning or outside it, with the texts that end the answer."""
        self.reasoning = ""
        self.answer = ""
        self.stopped = False
        """Whether a stop string has come; what follows it is not taken."""
        self._splitter = Splitter(style, thinking)
        self._stop = [text for text in stop if text]
        self._told = 0

    @property
    def thinking(self) -> bool:
        """Whether it is reasoning now."""
        return self._splitter.thinking

    def push(self, text: str) -> list[Reasoning | Answer]:
        """Take more text; returns events for what is certain by now."""
        return [*self._take(self._splitter.push(text)), *self._tell(self._pending())]

    def finish(self) -> list[Reasoning | Answer]:
        """End the text; returns events for what had been held back."""
        return [*self._take(self._splitter.rest()), *self._tell(0)]

    def _take(self, parts: Iterable[tuple[AnswerPart, str]]) -> Iterator[Reasoning]:
        for part, text in parts:
            if part == "reasoning":
                self.reasoning += text
                yield Reasoning(text)
            elif not self.stopped:
                self.answer += text
                self._look_for_stops(len(text))

    def _look_for_stops(self, new: int) -> None:
        for stop in self._stop:
            start = max(0, len(self.answer) - new - len(stop) + 1)
            place = self.answer.find(stop, start)
            if place >= 0:
                self.answer, self.stopped = self.answer[:place], True

    def _pending(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        if self.stopped:
            return 0
        return max((overlap(self.answer, stop) for stop in self._stop), default=0)

    def _tell(self, pending: int) -> Iterator[Answer]:
        end = len(self.answer) - pending
        if end > self._told:
            yield Answer(self.answer[self._told : end])
            self._told = end
