"""Serving a model to programs and people: the OpenAI API over :mod:`bitquilt.talk`, and a page."""
