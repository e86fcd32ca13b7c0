"""Of the C library's memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

__all__ = ["WORKER_ENVIRONMENT", "keep_freed_memory"]

#: What makes glibc keep freed memory in a process that starts with it; arrays above 32 MiB go back all the same.
WORKER_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Have this process keep what it frees for the next array, where its C library is glibc.

    By itself it gives large arrays back at once, and the system maps and clears the next one page by page: a
    seventh of the time of a training step.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # no glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)
