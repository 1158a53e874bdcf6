"""Rebuilt tokenizers of these tests go to directories of theirs."""

from tests.models.conftest import cache as cache
