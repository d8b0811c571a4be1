"""Pages are complete, their code runs, and parts of docs/theory.md that docstrings cite exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.markdown import anchors, blocks
from support.paths import REPOSITORY

import cace_fast.errors
from cace_fast.cli import app

DOCS = REPOSITORY / "docs"
USER = sorted((DOCS / "user").glob("*.md"))
THEORY = (DOCS / "theory.md").read_text()
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


@pytest.mark.parametrize(
    ("folder", "further"),
    [
        ("", {"user/index.md", "developer/index.md"}),
        ("user", set()),
        ("developer", {"decisions/README.md"}),
    ],
    ids=["docs", "user", "developer"],
)
def test_every_page_is_in_the_index_of_its_folder(folder, further):
    text = (DOCS / folder / "index.md").read_text()
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", text))
    pages = {page.name for page in (DOCS / folder).glob("*.md")} - {"index.md"}
    assert pages | further == listed


@pytest.mark.parametrize("page", USER, ids=lambda p: p.stem)
def test_users_can_run_the_commands_of_their_pages(page):
    """No command of a user's page needs recorded checkpoints or the benches."""
    for block in blocks(page.read_text()):
        assert not re.search(r"\.\./shared|\bbench/", block.code), block.code


CODE = [
    pytest.param(block, id=f"{page.stem}-{block.line}")
    for page in (REPOSITORY / "README.md", *USER)
    for block in blocks(page.read_text())
    if block.info[:1] in (("python",), ("bash",)) and "no-run" not in block.info
    if (page.name, block.info) != ("README.md", ("bash",))  # test_readme.py has these
]


@pytest.mark.slow
@pytest.mark.parametrize("block", CODE)
def test_code_of_user_pages_runs(block, tmp_path):
    """Each block runs alone, in an empty folder."""
    folder = os.path.dirname(sys.executable)
    interpreter = [sys.executable, "-c"] if block.info == ("python",) else ["bash", "-euc"]
    done = subprocess.run(
        [*interpreter, block.code],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block.code}\nprinted\n{done.stdout}\n{done.stderr}"


def test_every_error_and_exit_code_is_explained():
    page = (DOCS / "user" / "errors.md").read_text()
    classes = {
        name
        for name, value in vars(cace_fast.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {name.lower() for name in classes} <= anchors(page)
    explained = set(re.findall(r"^\| (\d+) \| \w", page, re.MULTILINE))
    codes = {str(code) for code in (app.FAILED, app.USAGE, app.INPUT, app.INTERNAL)}
    assert codes | set(re.findall(r"\b\d+\b", app.CODES)) == explained


def test_texts_of_errors_are_those_of_the_code():
    """Every longer piece between numbers, dots and names of a quoted text is in the sources."""
    page = (DOCS / "user" / "errors.md").read_text()
    folders = ("cace_fast", "kernels", "reference")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    sources = re.sub(r'"\s*f?"', "", "".join(path.read_text() for path in paths))
    holes = r"\.\.\.|[A-Z]{3,}|[\d.,]*\d|: expected|, got|'[^']*'|\w+="
    pieces = {
        piece
        for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for text in re.findall(r"`([^`]+)`", cell)
        for part in re.split(holes, text)
        if len(piece := part.strip(" :,;'")) >= 10
    }
    assert len(pieces) > 30
    assert {piece for piece in pieces if piece not in sources} == set()


def test_every_decision_is_listed():
    decisions = DOCS / "developer" / "decisions"
    text = (decisions / "README.md").read_text()
    pages = sorted(page.name for page in decisions.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text) == pages


def test_every_result_has_its_convention():
    """Names that a user asks for are rows of docs/conventions.md, and so are upstream's inputs."""
    from cace_fast.input_dictionary import REQUIRED
    from cace_fast.properties import PROPERTIES

    page = (DOCS / "conventions.md").read_text()
    results, inputs = page.split("## Input dictionary")
    assert set(PROPERTIES) <= set(re.findall(r"^\| `(\w+)` \|", results, re.MULTILINE))
    assert set(REQUIRED) <= set(re.findall(r"^\| `(\w+)` \|", inputs, re.MULTILINE))
