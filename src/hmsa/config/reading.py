"""YAML files as typed sections: `--set` changes keys, mistakes are named in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ..runs import InputError

_TAG = "tag:yaml.org,2002:"


class Strict(BaseModel):
    """A section of a YAML file. Unknown keys are errors; YAML's text "1e-3" becomes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Section = TypeVar("Section", bound=Strict)


class _Loader(yaml.SafeLoader):
    """As YAML 1.2: `no` is a text and 010 is ten. A key may stand once."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in each if tag not in (f"{_TAG}bool", f"{_TAG}int")]
        for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen and key.tag != f"{_TAG}merge":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice; remove one",
                    problem_mark=key.start_mark,
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_BOOL = re.compile("(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile("[-+]?(0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$")
_Loader.add_implicit_resolver(f"{_TAG}bool", _BOOL, "tTfF")
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, "-+0123456789")


def read(kind: type[Section], path: Path | None, changes: Sequence[str] = ()) -> Section:
    """A YAML file as a `kind`, after `changes` such as `joint.steps=100`. None: an empty file."""
    content = read_yaml(path) if path else {}
    for change in changes:
        _change(content, change)
    return validate(kind, content, path or "--set")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = yaml.load(file, _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise InputError(f"no file {path}{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, and a YAML file is needed; name one") from None
    except yaml.reader.ReaderError:
        raise InputError(f"{path} is no text in UTF-8; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}," if mark else ""
        why = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{where} is not readable YAML: {why}") from None
    if not isinstance(content, dict):
        came = "is empty" if content is None else f"contains a {type(content).__name__}"
        raise InputError(f"{path} {came}; it needs keys and values")
    if "\\x00" in repr(content):  # no name of a file or class has one
        raise InputError(f"{path} has the character NUL in a text; remove it")
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
    try:
        content[last] = yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        why = getattr(error, "problem", None) or error
        raise InputError(f"--set {change}: the value is not readable YAML: {why}") from None


def validate(kind: type[Section], content: dict[str, Any], source: object) -> Section:
    """`content` as a `kind`. Raises InputError for the worst mistake, naming `source`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A value that may be of two types has a mistake for each; the deepest says most. A key that
        # is misspelt is missing, too
        details = [(_place(content, detail), detail) for detail in error.errors()]
        place, worst = max(details, key=lambda e: (len(e[0]), e[1]["type"] == "extra_forbidden"))
        raise InputError(f"{source}: {_explain(kind, place, worst)}") from None


def _place(content: Any, detail: ErrorDetails) -> list[int | str]:
    """Where a mistake is, by keys of `content` alone: pydantic also names types in between."""
    place: list[int | str] = []
    for part in detail["loc"]:
        inside = [*content] if isinstance(content, dict) else []
        if isinstance(content, list | tuple):
            inside = [*range(len(content))]
        if part in inside:
            content = content[part]
            place.append(part)
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            place.append(part)
    return place


def _explain(kind: type[BaseModel], place: list[int | str], detail: ErrorDetails) -> str:
    where, (section, field) = ".".join(map(str, place)), _field(kind, place)
    if detail["type"] == "extra_forbidden":
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    example = ""
    if field and field.examples:
        shown = yaml.safe_dump({place[0]: field.examples[0]}, default_flow_style=True, width=1000)
        example = f"; example: {shown.strip()[1:-1]}"
    if detail["type"] == "missing":
        return f"key {where!r} is missing{example}"
    came = repr(detail["input"])
    return f"{where}: {detail['msg']}, not {came[:80]}{'..' * (len(came) > 80)}{example}"


def _field(
    kind: type[BaseModel], place: list[int | str]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """The section that contains the key `place`, and the last field on the way, if there is one."""
    field = None
    for part in place:
        if found := kind.model_fields.get(str(part)):  # else a number: the place in a list
            field = found
            held = [field.annotation, *get_args(field.annotation)]  # alone, in a list, or optional
            sections = [t for t in held if isinstance(t, type) and issubclass(t, BaseModel)]
            if part != place[-1] and sections:
                kind = sections[0]
    return kind, field
