"""Times as people write them."""

import pytest

from bitquilt.errors import UserError
from bitquilt.runtime.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("1h30m", 5400), ("1H 2m 3s", 3723)],
)
def test_times(text, seconds):
    assert parse_duration(text, "--time") == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "20 minutes", "-5m", "0s", "5m1h", "1e3s"])
def test_what_is_no_time_is_refused_by_name(text):
    with pytest.raises(UserError, match=r"time is .*, which is not a time; write it like 90s"):
        parse_duration(text, "--time")
