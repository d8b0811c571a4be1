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
