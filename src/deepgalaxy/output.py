"""What commands give back: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .errors import ConfigError

__all__ = ["show", "write_json"]


def write_json(where: str | None, value) -> None:
    """Write a value as JSON to a file, to standard output ("-"), or not at all (None).

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    if where is None:
        return
    from .files import write_whole
    from .report import json_ready

    text = json.dumps(json_ready(value), indent=1) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    try:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        write_whole(where, text)
    except OSError as error:
        raise ConfigError(f"--json {where}: cannot be written ({error.strerror})") from None


def show(renderable) -> None:
    """Print one of rich's renderables, 110 columns wide where there is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(renderable)
