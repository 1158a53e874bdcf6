"""Stop strings end the answer, wherever they are cut, and are not looked for in the reasoning."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from bitquilt.talk.events import Answer
from bitquilt.talk.reasoning import THINK
from bitquilt.talk.transcript import Transcript

STOP = ("END", "\n\n", "EN")


def told(pieces: Iterable[str], stop: tuple[str, ...] = STOP) -> tuple[str, Transcript]:
    """The answer as events tell it, and all that stands."""
    transcript = Transcript(THINK, False, stop)
    events = [event for piece in pieces for event in transcript.push(piece)]
    events += transcript.finish()
    return "".join(e.text for e in events if isinstance(e, Answer)), transcript


def test_the_first_stop_string_ends_the_answer() -> None:
    answer, transcript = told("<think>END\n\n</think>one E two\n three END four")
    assert (answer, transcript.stopped) == ("one E two\n three ", True)
    assert transcript.reasoning == "END\n\n"


def test_what_only_begins_like_one_is_told_in_the_end() -> None:
    assert told(["one E"])[0] == "one E"


@given(
    st.lists(st.sampled_from(["E", "N", "D", "\n", "x", "<think>", "</think>"])).map("".join),
    st.data(),
)
def test_it_does_not_matter_where_it_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    answer, transcript = told(pieces)
    assert (answer, transcript.stopped) == (transcript.answer, told([text])[1].stopped)
    assert answer == told([text])[0]
    whole = told([text], ())[0]
    places = [place for stop in STOP if (place := whole.find(stop)) >= 0]
    assert answer == whole[: min(places, default=len(whole))]
