"""What docstrings cite exists: equations and sections of docs/theory.md, pages under docs/."""

from __future__ import annotations

import re

import pytest
from support.paths import REPOSITORY

THEORY = (REPOSITORY / "docs" / "theory.md").read_text()
NUMBERED = {int(n) for n in re.findall(r"\((\d+)\)\s*$", THEORY, re.MULTILINE)}
SECTIONS = {int(n) for n in re.findall(r"^## (\d+)\.", THEORY, re.MULTILINE)}
SOURCES = sorted(
    path
    for folder in ("reference", "cace_fast")
    for path in (REPOSITORY / folder).rglob("*.py")
    if "checkpoint" not in path.parts  # these cite the specification of files
)


def test_equations_are_numbered_without_gaps():
    assert sorted(NUMBERED) == list(range(1, max(NUMBERED) + 1))
    assert sorted(SECTIONS) == list(range(1, max(SECTIONS) + 1))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_cited_equations_exist(path):
    text = path.read_text()
    for first, last in re.findall(r"[Ee]quations? (\d+)(?: (?:and|to) (\d+))?", text):
        assert {int(first), int(last or first)} <= NUMBERED
    for section in re.findall(r"theory\.md`*,? sections? (\d+)", text):
        assert int(section) in SECTIONS
    for page in re.findall(r"docs/([\w-]+\.md)", text):
        assert (REPOSITORY / "docs" / page).exists(), page


def test_every_page_is_in_the_index():
    docs = REPOSITORY / "docs"
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "index.md").read_text()))
    pages = {page.name for page in docs.glob("*.md")} - {"index.md"}
    assert pages | {"decisions/README.md"} == listed


def test_every_decision_is_listed():
    decisions = REPOSITORY / "docs" / "decisions"
    text = (decisions / "README.md").read_text()
    pages = sorted(page.name for page in decisions.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text) == pages


def test_every_result_has_its_convention():
    """Names that a user asks for are rows of docs/conventions.md, and so are upstream's inputs."""
    from cace_fast.input_dictionary import REQUIRED
    from cace_fast.properties import PROPERTIES

    page = (REPOSITORY / "docs" / "conventions.md").read_text()
    results, inputs = page.split("## Input dictionary")
    assert set(PROPERTIES) <= set(re.findall(r"^\| `(\w+)` \|", results, re.MULTILINE))
    assert set(REQUIRED) <= set(re.findall(r"^\| `(\w+)` \|", inputs, re.MULTILINE))
