"""Configuration: one frozen model per stage, read from and written to YAML.

Each stage declares its own subclass of `Config` in its own file, with a unit and a meaning for
every field. The same tree is stored in everything that the stage writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError

__all__ = ["Config"]


class Config(BaseModel):
    """A frozen tree of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, tree: Any, source: str = "configuration") -> Self:
        """Check a tree of plain values.

        Raises
        ------
        ConfigError
            Naming the source, the key, the value and what is allowed.
        """
        if not isinstance(tree, dict):
            raise ConfigError(f"{source}: expected a mapping of settings, got {type(tree).__name__}")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_explain(cls, error)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file (see `parse`)."""
        return cls.parse(read_yaml(path), str(path))

    @classmethod
    def from_json(cls, text: str, source: str = "configuration") -> Self:
        """Read what `to_json` wrote."""
        try:
            return cls.parse(json.loads(text), source)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}: its configuration is not valid JSON ({error})") from None

    def to_json(self) -> str:
        """The whole tree as JSON, as stored beside every result."""
        return self.model_dump_json()


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file into plain values.

    Raises
    ------
    ConfigError
        If the file is missing, a directory, not text or not YAML.
    """
    import yaml

    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: is not valid YAML: {line}") from None


def _explain(cls: type[Config], error: ValidationError) -> str:
    """One line for the first thing that is wrong; the others are counted."""
    problems = error.errors()
    # A list of which an element is wrong is said to be too short as well.
    problems = [p for p in problems if p["type"] != "too_short" or not any(
        len(q["loc"]) > len(p["loc"]) and q["loc"][:len(p["loc"])] == p["loc"] for q in problems)]
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or cls.__name__
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(cls, first["loc"][:-1])))
        text = f"unknown key '{key}'; allowed here: {known}"
    elif first["type"] == "missing":
        text = f"'{key}' is missing"
    else:
        text = f"{key}: {first['msg'].removeprefix('Value error, ')}"
        # What a check of several settings says names them itself.
        if not isinstance(first.get("input"), (dict, BaseModel)):
            text += f", got {first.get('input')!r}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _fields_at(cls: type[BaseModel], location: tuple) -> list[str]:
    members: list = []
    for part in location:
        field = cls.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            # Within a union the location holds the tag, the value of the member's field `kind`.
            cls = next((c for c in members if c.model_fields["kind"].default == part), cls)
            continue
        options = [c for c in (field.annotation, *get_args(field.annotation))
                   if isinstance(c, type) and issubclass(c, BaseModel)]
        if len(options) == 1:
            cls = options[0]
        members = [c for c in options if "kind" in c.model_fields]
    return list(cls.model_fields)
