"""Configuration: one frozen model per stage, read from and written to YAML.

Each stage declares its own subclass of `Config` in its own file, with a unit and a meaning for
every field. The same tree is stored in everything that the stage writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .errors import ConfigError

__all__ = ["Config"]


class Config(BaseModel):
    """A frozen tree of settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, tree: Any) -> Any:
        """Pydantic takes true for 1."""
        for name, value in tree.items() if isinstance(tree, dict) else ():
            annotation = cls.model_fields[name].annotation if name in cls.model_fields else bool
            values = value if isinstance(value, (list, tuple)) else [value]
            if isinstance(value, dict) and get_origin(annotation) is dict:
                values = value.values()
            if "bool" not in str(annotation) and any(isinstance(v, bool) for v in values):
                hint = "; write null to leave it out" if value is False and type(None) in get_args(annotation) else ""
                wrong = PydanticCustomError("truth", f"must not be true or false (in YAML also yes, no, on, off){hint}")
                raise ValidationError.from_exception_data(cls.__name__, [
                    {"type": wrong, "loc": (name,), "input": value}])
        return tree

    @classmethod
    def parse(cls, tree: Any, source: str = "configuration") -> Self:
        """Check a tree of plain values.

        Raises
        ------
        ConfigError
            Naming the source, the key, the value and what is allowed.
        """
        if tree is None:
            raise ConfigError(f"{source}: is empty; write its settings, one 'key: value' a line")
        if not isinstance(tree, dict):
            raise ConfigError(f"{source}: expected a mapping of settings, got {type(tree).__name__}")
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_explain(cls, tree, error)}") from None

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
        If the file is missing, a directory, not text or not YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:  # the last one would count
                    raise yaml.YAMLError(f"the key '{key.value}' is there twice, again in line "
                                         f"{key.start_mark.line + 1}; keep one of them")
                seen.add(str(key.value))
            return node

    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: is not valid YAML: {line}") from None


def _explain(cls: type[Config], tree: dict, error: ValidationError) -> str:
    """One line for the first thing that is wrong; the others are counted."""
    problems = error.errors()
    # A list of which an element is wrong is said to be too short as well.
    problems = [p for p in problems if p["type"] != "too_short" or not any(
        len(q["loc"]) > len(p["loc"]) and q["loc"][:len(p["loc"])] == p["loc"] for q in problems)]
    problems = [{**p, "key": _key(tree, p) or cls.__name__} for p in problems]
    first = problems[0]
    key = first["key"]
    alike = [p for p in problems if p["key"] == key]  # what may be of several types fails as each of them
    n_others = len(problems) - len(alike)
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(cls, first["loc"][:-1])))
        text = f"unknown key '{key}'; allowed here: {known}"
    elif first["type"] == "missing":
        text = f"'{key}' is missing"
    elif first["input"] is None:
        text = f"{key}: is empty; fill it, or leave it out"
    elif first["type"] in ("model_type", "model_attributes_type"):
        text = f"{key}: expected a mapping of settings, got {first['input']!r}"
    else:
        others = dict.fromkeys(p["msg"].removeprefix("Input should be ") for p in alike[1:])
        text = " or ".join([f"{key}: {first['msg'].removeprefix('Value error, ')}", *others])
        # What a check of several settings says names them itself.
        if not isinstance(first.get("input"), (dict, BaseModel)):
            text += f", got {first.get('input')!r}"
    return text + (f" (and {n_others} more)" if n_others else "")


def _key(tree: Any, problem: dict) -> str:
    """Where that is in the tree; pydantic ends with the name of a type, where a value may be of several."""
    parts, location = [], problem["loc"]
    for i, part in enumerate(location, 1):
        inside = part in tree if isinstance(tree, dict) else isinstance(part, int) and isinstance(tree, (list, tuple))
        if inside or (isinstance(tree, dict) and (i < len(location) or problem["type"] == "missing")):
            parts.append(str(part))
        tree = tree[part] if inside else tree
    return ".".join(parts)


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
