"""YAML files as typed sections: `--set` changes keys, mistakes are named in one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ..runs import InputError


class Strict(BaseModel):
    """A section of a YAML file. Unknown keys are errors; YAML's text "1e-3" becomes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Section = TypeVar("Section", bound=Strict)


def read(kind: type[Section], path: Path | None, changes: Sequence[str] = ()) -> Section:
    """A YAML file as a `kind`, after `changes` such as `joint.steps=100`. None: an empty file."""
    content = read_yaml(path) if path else {}
    for change in changes:
        _change(content, change)
    return validate(kind, content, path or "--set")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises InputError if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise InputError(f"no file {path}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}; it needs keys and values")
    return content


def _change(content: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set {change}: write section.key=value, such as joint.lr=1e-3")
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"--set {change}: {section!r} is a value, not a section")
    content[last] = yaml.safe_load(value)


def validate(kind: type[Section], content: dict[str, Any], source: object) -> Section:
    """`content` as a `kind`. Raises InputError for the first mistake, naming `source`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(kind, error.errors()[0])}") from None


def _explain(kind: type[BaseModel], detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_beside(kind, detail["loc"])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if detail["type"] == "missing":
        return f"key {where!r} is missing"
    return f"{where}: {detail['msg']}, not {detail['input']!r}"


def _keys_beside(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that contains the key `place`."""
    for part in place[:-1]:
        if field := kind.model_fields.get(str(part)):  # else a number: the place in a list
            held = [field.annotation, *get_args(field.annotation)]  # alone, in a list, or optional
            kind = next(t for t in held if isinstance(t, type) and issubclass(t, BaseModel))
    return list(kind.model_fields)
