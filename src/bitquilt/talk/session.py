"""Samples and engines together: one answer, and a conversation of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from bitquilt.engines import Engine
from bitquilt.models.chat_template import Message
from bitquilt.talk.events import End, Event
from bitquilt.talk.prompt import Prompt, compose
from bitquilt.talk.sample import AnswerSettings, Sample


def answer(
    engine: Engine, prompt: Prompt, settings: AnswerSettings
) -> Generator[Event, None, None]:
    """Answer a prompt; the last event is the :class:`End`. Close the iterator to stop before.

    Raises:
        UserError: the prompt fills the model's context, or the engine fails.
    """
    for _, event in continued(engine, [Sample(engine, prompt, settings)]):
        yield event


def continued(engine: Engine, samples: Sequence[Sample]) -> Iterator[tuple[int, Event]]:
    """Continue samples to their ends, all of them in one batch.

    Each batch is a leg of every unfinished sample: one whose reasoning was closed, or that had a
    rollback, waits until the others come to such a point or to their ends.

    Returns:
        Pairs of a sample's index and an event.
    """
    for index, sample in enumerate(samples):
        for event in sample.begin():
            yield index, event
    while unfinished := [index for index, sample in enumerate(samples) if not sample.ended]:
        for index, event in _leg(engine, [samples[index] for index in unfinished]):
            yield unfinished[index], event


def _leg(engine: Engine, samples: Sequence[Sample]) -> Iterator[tuple[int, Event]]:
    with engine.stream([sample.request() for sample in samples]) as stream:
        prefilled = samples[0].prefilled
        for row, piece in stream:
            samples[0].prefilled = prefilled + stream.prefilled
            sample = samples[row]
            if not sample.waiting:
                continue  # the engine was a little ahead
            for event in sample.push(piece):
                yield row, event
            if not sample.waiting:
                stream.drop(row)
    for row, sample in enumerate(samples):
        if sample.waiting:
            for event in sample.ran_out():
                yield row, event


class Session:
    """A conversation."""

    def __init__(self, engine: Engine, settings: AnswerSettings, system: str | None = None) -> None:
        """Begin a conversation.

        Args:
            engine: keeps what it has read, so that each turn costs its new tokens only.
            settings: of every answer; may be replaced between two.
            system: None leaves the system prompt to the chat template, "" means none.
        """
        self.engine, self.settings, self.system = engine, settings, system
        self.messages: list[Message] = []
        self.images: list[bytes] = []
        """The files that marks in the messages and in the next question stand for, by
        :func:`~bitquilt.talk.prompt.image_mark`."""
        self.last: End | None = None
        """How the last answer ended."""

    def ask(self, text: str) -> Generator[Event, None, None]:
        """Ask a question; it and the answer join the conversation when the answer has ended.

        Raises:
            UserError: as :func:`answer`; the conversation is as it was.
        """
        prompt = self.prompt(text)
        for event in answer(self.engine, prompt, self.settings):
            if isinstance(event, End):
                self.last = event
                self.messages += [{"role": "user", "content": text}, reply(prompt, event)]
            yield event

    def prompt(self, text: str) -> Prompt:
        """The prompt for the next question: the conversation so far, and its text."""
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        said: Message = {"role": "user", "content": text}
        return compose(self.engine, [*start, *self.messages, said], images=self.images)

    def retract(self) -> str | None:
        """Take the last question and its answer back; returns the question, if there is one."""
        if not self.messages:
            return None
        self.messages, (asked, _) = self.messages[:-2], self.messages[-2:]
        return str(asked["content"])


def reply(prompt: Prompt, end: End) -> Message:
    """An answer as a message of the conversation that follows.

    Reasoning that the model does not mark is part of what it said; marked reasoning goes apart,
    and the chat template knows what to do with it.
    """
    if not prompt.style.tags:
        return {"role": "assistant", "content": end.reasoning + end.answer}
    return {"role": "assistant", "content": end.answer, "reasoning_content": end.reasoning}
