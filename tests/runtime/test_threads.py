"""The thread beside: order, and errors that are not lost."""

import threading

import pytest

from bitquilt.runtime.threads import BackgroundTask


def test_calls_are_done_in_order_in_another_thread():
    seen = []
    with BackgroundTask() as aside:
        for item in range(3):
            aside.do(lambda item: seen.append((item, threading.get_ident())), item)
    assert [item for item, _ in seen] == [0, 1, 2]
    assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})


def fail(text):
    raise OSError(text)


def test_what_the_last_call_raised_is_raised_at_the_end():
    with pytest.raises(OSError, match="disk full"), BackgroundTask() as aside:
        aside.do(fail, "disk full")


def fail_and_go_on(after):
    with BackgroundTask() as aside:
        aside.do(fail, "disk full")
        aside.do(after.append, 1)


def test_what_a_call_raised_is_raised_at_the_next():
    after = []
    with pytest.raises(OSError, match="disk full"):
        fail_and_go_on(after)
    assert not after


def fail_twice():
    with BackgroundTask() as aside:
        aside.do(fail, "disk full")
        raise KeyError


def test_an_error_of_the_context_itself_goes_first():
    with pytest.raises(KeyError):
        fail_twice()
