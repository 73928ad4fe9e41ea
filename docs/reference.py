"""Write the pages of the reference from the code: `docs/reference/verbs.md` and `recipe.md`."""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from hmsa.__main__ import _APP
from hmsa.config.options import Preset
from hmsa.config.reading import Strict
from hmsa.config.recipe import Recipe, preset

FOLDER = Path(__file__).parent / "reference"
RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}


def verbs() -> str:
    """Every verb with its arguments and options, as `--help` has them."""
    page = _APP.generate_docs(flatten_commands=True, heading_level=2)
    page = re.sub(r" \*\[default: (?:\[\]|False|None)\]\*", "", page)
    page = re.sub(r"\n {2,}(?!-|\*)", " ", page)  # a help of several lines
    page = re.sub(r"^example: (.+(?:\n.+)*)", r"Examples:\n\n```sh\n\1\n```", page, flags=re.M)
    page = page.replace("\n```\n\nExamples:\n\n```sh\n", "\n")
    shared = re.search(r"\*\*Every verb\*\*:\n\n(?:\*.*\n)+", page)
    assert shared, "no options of every verb"
    verbs = page[page.index("\n## hmsa train") :].replace(shared[0], "")
    head = "What `hmsa VERB --help` prints. A switch is off unless it is given."
    return f"# Verbs and options\n\n{head}\n\n{shared[0]}{verbs}"


def recipe() -> str:
    """Every setting of a recipe, by section: type, range, default, meaning."""
    head = (
        "A recipe is a YAML file with what differs from these defaults; `--set section.key=value` "
        "changes one setting. Unknown keys and values out of range are refused."
    )
    return f"# Settings of a recipe\n\n{head}\n" + "".join(_section(Recipe, "")) + _presets()


def _presets() -> str:
    """What each preset sets, as a table."""
    chosen = {name: dict(each.split("=", 1) for each in preset(name)) for name in get_args(Preset)}
    head = (
        "What `hmsa train DATASET --preset NAME` sets; the rest is as above. By the dataset it "
        "then sets `joint.steps`, `joint.validate_every`, `joint.warmup`, `sampling.tile`, "
        "`attention.crop`, smaller crops for small images and larger ones for large images, and "
        "for paper `joint.lr` by the number of GPUs."
    )
    page = f"\n## Presets\n\n{head}\n\n| key | {' | '.join(chosen)} |\n{'|---' * 4}|\n"
    for key in dict.fromkeys(key for settings in chosen.values() for key in settings):
        values = (f"`{found[key]}`" if key in found else "–" for found in chosen.values())
        page += f"| `{key}` | {' | '.join(values)} |\n"
    return page


def _section(kind: type[Strict], path: str) -> Iterator[str]:
    """The table of one section, then those of the sections inside it. `path`: `joint.` or empty."""
    schema, inside, rows = kind.model_json_schema(), [], []
    notes = _comments(kind)
    for name, field in schema["properties"].items():
        if sections := _sections(kind.model_fields[name].annotation):
            inside += [(section, f"{path}{name}.") for section in sections]
            if not notes.get(name):
                continue
        default = "required" if name in schema.get("required", ()) else _yaml(field.get("default"))
        values = _values(field)
        rows.append(f"| `{name}` | {values} | {default} | {notes.get(name, '')} |\n")
    yield f"\n## {f'`{path[:-1]}`' if path else 'Top level'}\n\n{inspect.getdoc(kind)}\n\n"
    if rows:
        yield "| key | value | default | meaning |\n|---|---|---|---|\n" + "".join(rows)
    for section, place in inside:
        yield from _section(section, place)


def _sections(annotation: Any) -> list[type[Strict]]:
    """The sections that an annotation such as `list[Extra]` or `ByPeople | None` names."""
    parts = [annotation, *getattr(annotation, "__args__", ())]
    return [part for part in parts if inspect.isclass(part) and issubclass(part, Strict)]


def _values(field: dict[str, Any]) -> str:
    """A JSON schema in words: `number, > 0`."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_values(each) for each in field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return "a section, below"
    if field.get("type") == "array":
        inside = (field.get("prefixItems") or [field.get("items", {})])[0]
        least, most = field.get("minItems", 0), field.get("maxItems")
        count = f"{least} to {most}" if most else "list"
        return f"{most if least == most else count} of: {_values(inside)}"
    if field.get("type") == "object":
        return f"class name: {_values(field['additionalProperties'])}"
    ranges = [f"{sign} {field[key]:g}" for key, sign in RANGES.items() if key in field]
    if {"minimum", "maximum"} <= field.keys():
        ranges = [f"{field['minimum']:g} to {field['maximum']:g}"]
    return ", ".join([WORDS.get(field.get("type", ""), "number"), *ranges])


def _comments(kind: type[Strict]) -> dict[str, str]:
    """The comment at each field, behind it or in the lines above, of a class and its parents."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, Strict) and each is not Strict:
            found |= _own_comments(inspect.getsource(each))
    return found


def _own_comments(source: str) -> dict[str, str]:
    found, above, name = {}, "", ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if not name:
                above = f"{above} {text}".strip()
            elif text != "fmt: skip":
                found[name] = f"{found.get(name, '')} {text}".strip()
        elif token.type == tokenize.NAME and token.start[1] == 4 and not name:
            name = token.string
            if above:
                found[name], above = above, ""
        elif token.type == tokenize.NEWLINE:
            name = ""
    return found


def _yaml(value: Any) -> str:
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=999).split(chr(10))[0]}`"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in {"verbs": verbs(), "recipe": recipe()}.items():
        (FOLDER / f"{name}.md").write_text(page, encoding="utf-8")
