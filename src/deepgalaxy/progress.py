"""Progress: a bar on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager

__all__ = ["one_line", "progress", "say"]


def one_line(text: object) -> str:
    """`text` with line breaks, control characters and lone surrogates written out, fit for a message."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(text: str) -> None:
    """One line for a person, on standard error."""
    print(one_line(text), file=sys.stderr, flush=True)  # names may hold anything


@contextmanager
def progress(title: str, total: int, found: int = 0):
    """Yields advance(n=1), to be called as work gets done; `found` was there before, and took no time."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=found)
            yield lambda n=1: bar.advance(task, n)
        return
    start, done, said = time.monotonic(), found, time.monotonic()

    def advance(n: int = 1) -> None:
        nonlocal done, found, said
        done += n
        now = time.monotonic()
        if now - start < 1:  # what comes at once was there before, too
            found = done
        if now - said > 15 and found < done < total:
            left = (now - start) / (done - found) * (total - done)
            say(f"{title}: {done}/{total}, {left:.0f} s left")
            said = now

    yield advance
    say(f"{title}: {done}/{total} in {time.monotonic() - start:.0f} s")
