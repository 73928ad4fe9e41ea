"""The pages: links and pictures exist, and the reference made from the code is complete."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from hmsa.__main__ import _APP, DATA_VERBS, VERBS
from hmsa.config.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    made = {ROOT / "docs" / "reference" / f"{name}.md" for name in ("verbs", "recipe")}
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            place = (page.parent / link).resolve()
            assert place.exists() or place in made, f"{page.name} links to {link}"


WRITTEN = [page for page in PAGES if page.parent.name != "reference"]  # the rest is made


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_parse(page):
    """Every `hmsa ..` line in a block of a page has verbs and options that exist."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if line.startswith("hmsa "):
            _, *words = shlex.split(line, comments=True)
            _APP.parse_args(words, exit_on_error=False, print_error=False)


def test_reference_has_every_verb(reference):
    page = reference.verbs()
    headings = {f"## hmsa {verb}" for verb in VERBS} | {
        f"## hmsa data {verb}" for verb in DATA_VERBS
    }
    assert headings <= set(page.splitlines())
    assert "* `--budget FLOAT`: run scales above 1 in this share" in page
    assert page.count("* `--json`") == 1
    assert not re.findall(r"^\* `[^`]+`: (?:\*|$).*", page, flags=re.M)  # an option without help


def test_reference_has_every_setting_with_its_meaning(reference):
    page = reference.recipe()
    for name in Recipe.model_fields:  # a section, or a row of the first table
        assert f"\n## `{name}`\n" in page or f"\n| `{name}` | " in page
    assert "| `stride` | `4`, `8` | `4` | pixels per cell of the head;" in page
    assert "| `ema` | number, ≥ 0, < 1 | `0.998` |" in page  # of `joint`, not of `Stage`
    empty = [line for line in page.splitlines() if re.search(r"\|\s*\|$", line)]
    assert not empty
