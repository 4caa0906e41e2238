"""Functions compiled by numba, without the GIL.

The machine code is kept beside the module or in the user's cache directory; where neither can be
written to, every process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code, made at its first call."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no directory for the machine code
        return numba.njit(nogil=True)(function)
