"""Committees, further inputs of atoms, and what a run can ask for."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import chemical_symbols
from support.lammps import in_lammps_frame, script, write_data
from support.lammps_cases import KINDS, tiny
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential

DUMP = "dump 1 all custom 1 f.dump id fx fy fz {}\ndump_modify 1 sort id format float %.17g\n"


@pytest.mark.parametrize("kind", ["short range", "messages", "charges"])
def test_a_committee_has_mean_forces_and_a_spread(lammps, kind):
    _, atoms = tiny(kind)
    spec = tiny_spec(**KINDS[kind])
    members = [Potential(spec, tiny_weights(spec, seed), dtype="float64") for seed in (1, 2, 3)]
    names = []
    for k, member in enumerate(members):
        member.save(lammps.folder / f"m{k}.safetensors")
        names.append(f"m{k}.safetensors")
    elements = sorted(set(atoms.numbers))
    write_data(lammps.folder / "in.data", atoms, elements)
    after = "fix s all pair 1 cace spread 0 forces_std 0\ncompute c all pair cace\n"
    after += "variable e equal c_c[5]\nvariable m equal c_c[6]\nfix 1 all nve\n"
    text = script(" ".join(names), elements, style="cace precision double min_dist -1", after=after)
    text += "thermo_style custom step pe v_e v_m\nthermo_modify format float %.16g\nrun 1\n"
    text += DUMP.format("f_s[1] f_s[2] f_s[3] f_s[4] xu yu zu") + "run 0\n"
    for ranks in (1, 2):
        done = lammps.run(text, ranks)
        assert done.code == 0, done.text
        table = done.dump("f.dump")
        moved = atoms.copy()
        moved.positions = table[:, 7:10]
        found = [m.compute(moved, ("energy", "forces")) for m in members]
        forces = np.array([f["forces"] for f in found])
        energies = np.array([f["energy"] for f in found])
        limit = 1e-9 * np.abs(forces).max()
        np.testing.assert_allclose(table[:, :3], forces.mean(0), rtol=0, atol=limit)
        np.testing.assert_allclose(table[:, 4:7], forces.std(0), rtol=0, atol=limit)
        spread = np.linalg.norm(forces.std(0), axis=1)
        np.testing.assert_allclose(table[:, 3], spread, rtol=0, atol=limit)
        row = done.rows[-1]
        assert row[1] == pytest.approx(energies.mean(), abs=1e-8)
        assert row[2] == pytest.approx(energies.std(), abs=1e-8)
        assert row[3] == pytest.approx(spread.max(), abs=limit)


def test_a_run_stops_where_the_committee_does_not_agree(lammps):
    _, atoms = tiny("short range")
    spec = tiny_spec()
    for k in (1, 2):
        Potential(spec, tiny_weights(spec, k)).save(lammps.folder / f"m{k}.safetensors")
    elements = sorted(set(atoms.numbers))
    write_data(lammps.folder / "in.data", atoms, elements)
    text = script("m1.safetensors m2.safetensors", elements, style="cace min_dist -1")
    text += "compute c all pair cace\nvariable worst equal c_c[6]\nfix 1 all nve\n"
    text += "fix stop all halt 1 v_worst > 0.001 error soft message yes\nrun 100\nrun 0\n"
    done = lammps.run(text, 2)
    assert "Fix halt condition for fix-id stop met on step" in done.text
    assert done.rows[-1][0] < 50


def test_inputs_of_atoms(lammps):
    """What a read-out takes beside the features comes from fix property/atom."""
    spec = tiny_spec(inputs=("charge_states",))
    potential = Potential(spec, tiny_weights(spec), dtype="float64")
    atoms = tiny_structure(spec, 3, spacing=2.2)
    states = atoms.arrays["charge_states"].copy()
    turned = in_lammps_frame(atoms)
    turned.arrays["charge_states"] = states
    elements = sorted(set(atoms.numbers))
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", turned, elements)
    table = "\n".join(f"{i + 1} {value:.17g}" for i, value in enumerate(states))
    data = (lammps.folder / "in.data").read_text()
    expected = potential.compute(turned, ("energy", "forces"))
    for name, style in (("charge_states", ""), ("mine", "inputs mine")):
        (lammps.folder / "in.data").write_text(f"{data}\nStates\n\n{table}\n")
        text = script(
            lammps.folder / "model.safetensors",
            elements,
            style=f"cace precision double {style}",
            before=f"fix states all property/atom d_{name}",
            data="in.data fix states NULL States",
        )
        done = lammps.run(text + DUMP.format("") + "run 0\n", 2)
        assert done.code == 0, done.text
        assert done.rows[0][1] == pytest.approx(expected["energy"], abs=1e-9)
        np.testing.assert_allclose(done.dump("f.dump"), expected["forces"], rtol=0, atol=1e-8)
    missing = text.replace("inputs mine", "")
    done = lammps.run(missing + "run 0\n", 2)
    assert "the model takes charge_states of each atom" in done.errors[0]
    assert chemical_symbols[elements[0]] in text


def test_timing(lammps):
    potential, atoms = tiny("everything")
    elements = sorted(set(atoms.numbers))
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements)
    text = script(
        lammps.folder / "model.safetensors", elements, style="cace timing yes kspace mesh"
    )
    done = lammps.run(text + "fix 1 all nve\nrun 5\n", 2)
    assert done.code == 0, done.text
    for words in (
        "pair_style cace, ms a step over 6 steps",
        "whole pair style",
        "lists",
        "exchange of messages",
        "contract",
        "transforms",
        "long range: mesh",
    ):
        assert words in done.text  # fmt: skip
