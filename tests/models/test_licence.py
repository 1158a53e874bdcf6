"""The licence is what the hub reads in the card."""

from __future__ import annotations

import pytest

from bitquilt.errors import UserError
from bitquilt.models.licence import card_metadata, licence


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Tiny\n", "apache-2.0"),
        ('---\nlicense: "mit"\nlanguage: [en]\n---\n', "mit"),
        ("# A card without front matter\n", None),
        ("---\nlanguage: [en]\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        (None, None),
    ],
)
def test_licence(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == expected


def test_front_matter_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(UserError, match=r"README\.md cannot be read .*mend it"):
        card_metadata(tmp_path)
