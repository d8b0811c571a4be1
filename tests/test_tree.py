"""Rules for the whole tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from support.markdown import anchors, blocks, commands, links
from support.paths import REPOSITORY

LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 60, 8
DEVICE_CODE = "kernels/triton/_"  # kernels take pointers, sizes and constants one by one
# Deviations from the last, each with its reason.
MAY_HAVE_MORE_PARAMETERS = {
    ("cace_fast/interfaces/ase.py", "__init__"): "upstream's keywords in upstream's order",
    ("cace_fast/cli/bench.py", "bench"): "a parameter is an option of the command",
    ("cace_fast/cli/evaluate.py", "evaluate"): "a parameter is an option of the command",
    ("cace_fast/cli/md.py", "md"): "a parameter is an option of the command",
    ("cace_fast/cli/relax.py", "relax"): "a parameter is an option of the command",
    ("cace_fast/potential.py", "__init__"): "a model's two parts and the options of `load`",
    ("cace_fast/loading.py", "load"): "a file and the options of a potential, one by one",
    ("reference/messages.py", "messages"): "a step needs both bases, the edges and the weights",
    ("kernels/moments.py", "_moments_jvps"): "an operator of torch takes tensors",
    ("kernels/moments.py", "_moments_by_weights"): "an operator of torch takes tensors",
    ("kernels/messages.py", "messages"): "the same, and the backend",
    ("kernels/messages.py", "_messages"): "an operator of torch takes tensors, not structures",
    ("kernels/messages.py", "_messages_gradient"): "an operator of torch takes tensors",
}
# Spelled in parts, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(
    "|".join(("/wor" + "k/", "/far" + "m/", "/tmp/" + "devenv", "/ro" + "ot/"))
)


def tracked(*patterns: str) -> list[Path]:
    """Return the files that git knows, links left out."""
    command = ["git", "ls-files", "-z", "--", *patterns]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in names.stdout.split("\0") if name]
    return [p for p in paths if p.is_file() and not p.is_symlink()]


PYTHON = tracked("*.py")
PAGES = tracked("*.md")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_git_knows_the_tree():
    assert REPOSITORY / "cace_fast" / "__init__.py" in PYTHON


def test_no_file_names_a_path_of_one_machine():
    found = {}
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        if match := MACHINE_PATHS.search(text):
            found[name_of(path)] = match.group()
    assert found == {}


def test_files_are_short():
    lengths = {name_of(p): len(p.read_text().splitlines()) for p in PYTHON}
    assert {n: length for n, length in lengths.items() if length > LONGEST_FILE} == {}


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return (file, function) of all functions and methods of the package."""
    found = []
    for path in PYTHON:
        if not name_of(path).startswith("tests/"):
            tree = ast.parse(path.read_text())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            found += [(name_of(path), node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    long = {(n, f.name): code_lines(f) for n, f in functions() if code_lines(f) > LONGEST_FUNCTION}
    assert long == {}


def test_functions_have_few_parameters():
    counted = {}
    for name, function in functions():
        if name.startswith(DEVICE_CODE):
            continue
        a = function.args
        names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        counted[name, function.name] = len([n for n in names if n not in ("self", "cls")])
    many = {key: n for key, n in counted.items() if n > MOST_PARAMETERS}
    assert set(many) == set(MAY_HAVE_MORE_PARAMETERS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text()
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue  # another site: not ours to check
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {link} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text()), f"{name_of(page)}: {link}: no such heading"


def test_pages_that_files_name_exist():
    """Comments, docstrings and messages name pages from the top of the repository."""
    missing = {}
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        named = set(re.findall(r"(?<![\w/.])docs/[\w./-]+\.(?:md|png|csv)", text))
        if absent := sorted(page for page in named if not (REPOSITORY / page).exists()):
            missing[name_of(path)] = absent
    assert missing == {}


def test_markdown_is_read_as_meant():
    page = (
        "# A title: of `x`\n[one](pages/a.md) and ![two](b.png)\n"
        "```bash\nls [no](link.md)\n```\n```bash no-run\nrm\n```\n```python\n1\n```\n"
    )
    assert links(page) == ["pages/a.md", "b.png"]
    assert anchors(page) == {"a-title-of-x"}
    assert [b.line for b in blocks(page)] == [4, 7, 10]
    assert [b.code for b in commands(page)] == ["ls [no](link.md)\n"]
