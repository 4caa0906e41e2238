"""The one error that a user's input can cause while data are read."""

from __future__ import annotations


class DataError(ValueError):
    """The input cannot be used: its message is one line that names the file, column or row."""
