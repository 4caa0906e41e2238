"""Exceptions for a user's mistakes.

Where `nn.EmbeddingBag` raises a `RuntimeError` or `AssertionError`, Python has a type that says
more. These classes are both, so code that handles either keeps working.
"""

from __future__ import annotations


class IdOutOfRangeError(IndexError, RuntimeError):
    """An id that is not in `[0, num_embeddings)`; the message names table, position and value."""


class DtypeError(TypeError, RuntimeError):
    """A tensor of the wrong dtype or on the wrong device; the message names table and argument."""


class OffsetsError(ValueError, RuntimeError):
    """Offsets that do not describe bags; the message names table, position and value."""


class ArgumentError(ValueError, AssertionError, RuntimeError):
    """A constructor argument out of its range."""
