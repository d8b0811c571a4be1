"""The golden numbers of the specification, through the public potential."""

from __future__ import annotations

import numpy as np
import pytest
from support import golden

from cace_fast import Potential
from cace_fast.neighbors import neighbor_list

KINDS = pytest.mark.parametrize("kind", ["periodic", "open"])
TIGHT = {"rtol": 0.0, "atol": 1e-11}  # the numbers are given to 12 decimals


def potential(energy_key=None):
    return Potential(*golden.model(), dtype="float64", backend="reference", energy_key=energy_key)


def voigt(m):
    return [m[0, 0], m[1, 1], m[2, 2], m[1, 2], m[0, 2], m[0, 1]]


@KINDS
def test_edges(kind):
    atoms = golden.atoms(kind)
    edges = neighbor_list(atoms.positions, atoms.cell[:], atoms.pbc, golden.CUTOFF)
    assert len(edges.senders) == golden.EXPECTED[kind]["edges"]


@KINDS
def test_features(kind):
    want = golden.EXPECTED[kind]
    feat = potential().features(golden.atoms(kind))
    for t in range(2):
        total, squares = want["features"][t]
        np.testing.assert_allclose(
            [feat[..., t].sum(), (feat[..., t] ** 2).sum()], [total, squares], **TIGHT
        )
        np.testing.assert_allclose(feat[0, 0, :, 0, t], want[f"feat{t}"], **TIGHT)


@KINDS
@pytest.mark.parametrize(("key", "prefix"), [("E", ""), ("ewald", "ewald ")])
def test_energy_forces_stress_of_each_part(kind, key, prefix):
    want, atoms = golden.EXPECTED[kind], golden.atoms(kind)
    names = ("energy", "forces") + (("stress",) if kind == "periodic" else ())
    got = potential(key).compute(atoms, names)
    np.testing.assert_allclose(got["energy"], want[key], **TIGHT)
    np.testing.assert_allclose(got["forces"][0], want[f"{prefix}forces"], **TIGHT)
    if kind == "periodic":
        np.testing.assert_allclose(voigt(got["stress"]), want[f"{prefix}stress"], **TIGHT)


@KINDS
def test_charges_and_total(kind):
    want = golden.EXPECTED[kind]
    got = potential().compute(
        golden.atoms(kind), ("energy", "energies", "energies_sr", "latent_charges")
    )
    np.testing.assert_allclose(got["latent_charges"][0], want["q"], **TIGHT)
    np.testing.assert_allclose(got["energy"], want["E"] + want["ewald"], **TIGHT)
    np.testing.assert_allclose(got["energies"].sum(), got["energy"], **TIGHT)
    np.testing.assert_allclose(got["energies_sr"].sum(), want["E"], **TIGHT)
