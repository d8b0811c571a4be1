"""The build of the library: headers compile alone, and only changed files are compiled again."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cace_fast.kernels.cpu import build, generate

CSRC = build.HERE / "csrc"
HEADERS = sorted(p.name for p in CSRC.iterdir() if p.suffix in (".h", ".inl"))
GENERATED = sorted(generate.FILES)


@pytest.fixture(autouse=True, scope="module")
def _compiler():
    try:
        build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


def test_every_header_stands_alone(tmp_path):
    """A header compiles as an editor opens it: first, and without an instruction set."""
    build._generate(tmp_path)
    line = [*build.compiler(), "-std=c++17", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
    line += [f"-I{CSRC}", f"-I{tmp_path}", "-fsyntax-only", "-x", "c++", "-"]

    def errors(name):
        text = f'#include "{name}"\n#include "{name}"\n'  # twice: it guards itself
        return subprocess.run(line, input=text, capture_output=True, text=True).stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(HEADERS + GENERATED, pool.map(errors, HEADERS + GENERATED), strict=True))
    assert {name: text for name, text in found.items() if text} == {}


def test_files_of_an_instruction_set_share_nothing(tmp_path):
    """If several files emit a function, the linker takes any copy, also for other processors."""
    kept, nm = build.default_objects(), shutil.which("nm")
    if kept is None or nm is None:
        pytest.skip("no objects here, or no nm")
    build.build(tmp_path, kept)  # links what is there
    folders = (kept / "generated", CSRC)
    contents = {p.name: p.read_bytes() for folder in folders for p in folder.iterdir()}
    units = [unit for unit in build.units(kept) if "isa" in unit.source.stem]
    assert len(units) == 5 * len(build.isas(build.platform.machine()))
    for unit in units:
        made = build._found(unit, kept, contents)
        listed = subprocess.run([nm, "-C", "--defined-only", made], capture_output=True, text=True)
        shared = re.findall(r"^[0-9a-f]+ [WVu] (.+)$", listed.stdout, re.MULTILINE)
        isa = unit.name.rpartition("-")[2]
        assert [s for s in shared if f"{isa}::" not in s and not s.startswith("DW.ref.")] == []


def test_build_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found \(looked for no-such"):
        build.build(tmp_path, tmp_path / "objects")
    assert build.main() == 1


def test_build_reports_the_compiler(monkeypatch, tmp_path):
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "broken.cpp").write_text("int broken( {")
    with pytest.raises(build.BuildError, match=r"(?s)broken\.cpp.* failed:.*error"):
        build.build(tmp_path, tmp_path / "objects", sources=sources)
    assert not (tmp_path / build.LIBRARY).exists()


def test_build_compiles_what_changed(tmp_path):
    sources, objects = tmp_path / "csrc", tmp_path / "objects"
    sources.mkdir()
    answer = 'extern "C" __attribute__((visibility("default"))) int {}() {{ return {}; }}'
    (sources / "one.cpp").write_text(answer.format("one", 1))
    (sources / "two_isa.cpp").write_text("namespace CF_ISA { int two() { return 2; } }")
    path = build.build(tmp_path, objects, sources=sources)
    made = set(objects.glob("*.o"))
    assert len([m for m in made if m.name.startswith("two_isa")]) == len(
        build.isas(build.platform.machine())
    )
    assert ctypes.CDLL(str(path)).one() == 1
    (sources / "one.cpp").write_text(answer.format("one", 7))
    build.build(tmp_path, objects, sources=sources)
    assert len(set(objects.glob("*.o")) - made) == 1
    program = f"import ctypes; print(ctypes.CDLL({str(path)!r}).one())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"7"


def made_in(objects):
    """Return name and time of each object."""
    return {(made.name, made.stat().st_mtime_ns) for made in objects.glob("*.o")}


def test_a_header_compiles_again_what_includes_it(tmp_path, monkeypatch):
    sources, objects = tmp_path / "a folder" / "csrc", tmp_path / "objects $1"
    sources.mkdir(parents=True)
    texts = {
        "one.h": "#pragma once\n",
        "two.h": '#pragma once\n#include "one.h"\n',
        "three.inl": '#pragma once\n#include "two.h"\n',
        "a.cpp": '#include "one.h"\n',
        "b.cpp": '#include "three.inl"\n',
        "c.cpp": '#include "made.h"\n#include <cstddef>\n',
    }
    texts = {name: f"{text}// as it was\n" for name, text in texts.items()}
    for name, text in texts.items():
        (sources / name).write_text(text)
    made = ["#pragma once\n"]
    monkeypatch.setattr(build, "_generate", lambda folder: write(folder / "made.h", made[-1]))

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def compiled_again():
        before = made_in(objects)
        build.build(tmp_path, objects, sources=sources)
        return "".join(sorted(name[0] for name, _ in made_in(objects) - before))

    assert compiled_again() == "abc"
    assert compiled_again() == ""
    for name, again in {"one.h": "ab", "two.h": "b", "three.inl": "b", "c.cpp": "c"}.items():
        (sources / name).write_text(texts[name].replace("as it was", "different"))
        assert (name, compiled_again()) == (name, again)
    made.append("#pragma once\nextern int changed;\n")
    assert compiled_again() == "c"  # generated
    for name, text in texts.items():  # what was right before is there still
        (sources / name).write_text(text)
    made.append(made[0])
    assert compiled_again() == ""
    (sources / "two.h").unlink()
    with pytest.raises(build.BuildError, match=r"(?s)b\.cpp.* failed:.*two\.h"):
        compiled_again()


def test_objects_stay_right_where_the_tree_moves(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "csrc").mkdir(parents=True)
    (old / "csrc" / "one.h").write_text("#pragma once\n")
    (old / "csrc" / "one.cpp").write_text('#include "one.h"\n')
    build.build(old, old / "objects", sources=old / "csrc")
    shutil.copytree(old, new)
    build.build(new, new / "objects", sources=new / "csrc")
    assert made_in(new / "objects") == made_in(old / "objects")
    (new / "csrc" / "one.h").write_text("#pragma once\n// changed\n")
    build.build(new, new / "objects", sources=new / "csrc")
    assert len(list((new / "objects").glob("*.o"))) == 2


def test_commands_for_editors(tmp_path):
    entries = json.loads(build.commands(tmp_path))
    known = build.isas(build.platform.machine())
    files = [Path(entry["file"]) for entry in entries]
    assert set(files) == {p for p in CSRC.glob("*.cpp") if build._isas_of(p.stem, known)}
    assert [p.name for p in files].count("ewald_isa.cpp") == len(known)
    (entry,) = (e for e in entries if e["file"].endswith("/model.cpp"))
    done = subprocess.run([*entry["arguments"], "-fsyntax-only"], cwd=entry["directory"])
    assert done.returncode == 0


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "riscv64"])
def test_instruction_sets_of_a_machine(machine):
    known = build.isas(machine)
    assert known == (("base", "avx2", "avx512") if "64" in machine[-2:] and machine[0] in "xA"
                     else ("base",))  # fmt: skip
    assert build._isas_of("ewald_isa", known) == known
    assert build._isas_of("isa_avx2", known) == (("avx2",) if "avx2" in known else ())
    assert build._isas_of("model", known) == ("base",)
