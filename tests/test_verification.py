"""A sound potential passes every check; each kind of error fails its check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential, load
from cace_fast.errors import InputError, UnknownElementError, VerificationError
from cace_fast.spec import ModelSpec
from cace_fast.verification import Check, Report, completed, quick_check, trial_structure, verify
from cace_fast.weights import Weights

VARIANTS = {
    "short range": {},
    "messages": {"steps": ("M+Ar+Bchi",), "atomic_energies": ((1, -1.5), (8, 2.0))},
    "long range, inputs": {"ewald_channels": 2, "inputs": ("charge_states",), "steps": ("M",)},
    "nu 4": {"l_max": 3, "nu_max": 4, "radial": "bessel", "cutoff_kind": "cosine"},
}


def rows(report: Report) -> dict[str, Check]:
    return {check.name.split(",")[0]: check for check in report.checks}


def failing(report: Report) -> set[str]:
    return {check.name.split(",")[0] for check in report.failures}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_sound_potentials_pass(options, dtype):
    potential = tiny_potential(dtype=dtype, **options)
    report = verify(potential, steps=20)
    assert report.ok, str(report)
    quick_check(potential)
    skipped = {check.name for check in report.checks if check.skipped}
    assert skipped == (
        set() if "ewald_channels" in options else {"latent charges = float64 reference"}
    )


@pytest.mark.parametrize("pbc", [True, False, (True, True, False)], ids=["bulk", "open", "slab"])
def test_structures_of_users(pbc):
    potential = tiny_potential()
    atoms = tiny_structure(potential.spec, pbc=pbc)
    before = atoms.copy()
    report = verify(potential, atoms, steps=10)
    assert report.ok, str(report)
    assert atoms == before
    assert bool(rows(report)["stress = dE/dstrain / V"].skipped) == (pbc is not True)


class Wrong(Potential):
    """A potential whose results are spoiled by a function of (frames, results, properties)."""

    spoil = staticmethod(lambda frames, results: None)

    def evaluate(self, frames, properties, **options):
        frames = list(frames)
        results = super().evaluate(frames, properties, **options)
        type(self).spoil(frames, results)
        return results


def wrong(spoil, dtype="float64", **options) -> Wrong:
    spec = tiny_spec(**options)
    kind = type("Wrong", (Wrong,), {"spoil": staticmethod(spoil)})
    return kind(spec, tiny_weights(spec), device="cpu", dtype=dtype, backend="reference")


def scaled(name, factor):
    def spoil(frames, results):
        for result in results:
            if name in result:
                result[name] = result[name] * factor

    return spoil


def added(function, *names):
    """Add ``function(atoms)``, in the order of ``names``, to the results of every frame."""

    def spoil(frames, results):
        for atoms, result in zip(frames, results, strict=True):
            for name, value in zip(names, function(atoms), strict=True):
                if name in result:
                    result[name] = result[name] + value

    return spoil


FD = "forces = -dE/dr of the float64 energy"
STRAIN, STRESS = "virials = -dE/dstrain", "stress = dE/dstrain / V"
NVE = "NVE"


def vortex(atoms):
    """A force without an energy: it turns about the z axis."""
    return (0.02 * np.cross([0.0, 0.0, 1.0], atoms.positions - atoms.positions.mean(0)),)


def push(atoms):
    """A force on the first atom along x, whatever the structure."""
    force = np.zeros((len(atoms), 3))
    force[0, 0] = 0.1
    return -0.1 * atoms.positions[0, 0], force


def hook(atoms):
    """An energy with its forces that depends on the number of an atom in the list."""
    first = atoms.get_distances(0, np.arange(len(atoms)), mic=bool(atoms.pbc.all()))
    return (0.1 * np.exp(-first).sum(),)


def wall(atoms):
    """An energy and forces of atoms beyond the box, which ignore that the box repeats."""
    images = atoms.get_scaled_positions(wrap=False) // 1.0
    return 0.01 * float(images.sum()), 0.01 * images


BROKEN = {
    "force factor": (scaled("forces", 1.05), {"forces = float64 reference", FD, NVE}),
    "one force": (
        added(lambda a: (np.eye(len(a), 3) * 1e-4,), "forces"),
        {"forces = float64 reference", FD, "sum of forces / sqrt(n)", "permutation: forces"},
    ),
    "energy": (
        scaled("energy", 1.001),
        {"energy = float64 reference", "energies of atoms sum to the energy"},
    ),
    "moved energy": (
        added(lambda a: (1e-3 * a.positions[0, 0] ** 2,), "energy"),
        {"energy of moved atoms = float64 reference", "translation: energy"},
    ),
    "per-atom energies": (scaled("energies", 1.01), {"energies of atoms sum to the energy"}),
    "virials": (scaled("virials", 1.01), {"virials = float64 reference", STRAIN}),
    "stress": (scaled("stress", -1.0), {STRESS}),
    "stress voigt": (scaled("stress", np.array([[1, 1, 1], [1, 1, 1.01], [1, 1.01, 1]])), {STRESS}),
    "vortex": (added(vortex, "forces"), {FD, "rotation: forces", "forces = float64 reference"}),
    "push": (
        added(push, "energy", "forces"),
        {"sum of forces / sqrt(n)", "translation: energy", "rotation: energy", "rotation: forces"},
    ),
    "hook": (added(hook, "energy"), {"permutation: energy"}),
    "wall": (
        added(wall, "energy", "forces"),
        {
            "lattice shifts of atoms: energy",
            "lattice shifts of atoms: forces",
            "translation: forces",
        },
    ),
    "axis": (
        added(lambda a: (np.diag([0.1, 0.0, 0.0]),), "virials"),
        {"rotation: virials", "virials = float64 reference", STRAIN},
    ),
    "charges": (scaled("latent_charges", -1.0), {"latent charges = float64 reference"}),
}


LEAKS = {f"batch = single: {name}" for name in ("energy", "forces", "virials")}
JUMPS = {"cutoff: jump of the energy", "cutoff: jump of forces"}
FEATURES = {"features = float64 reference"}


@pytest.mark.parametrize(("spoil", "expected"), BROKEN.values(), ids=BROKEN)
def test_each_error_fails_its_check(spoil, expected):
    potential = wrong(spoil, ewald_channels=1)
    report = verify(potential, steps=60)
    assert not report.ok
    assert expected <= failing(report), str(report)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (scaled("forces", 1.001), "forces = float64 reference"),
        (scaled("energy", 1.0001), "energy = float64 reference"),
        (scaled("virials", 1.001), STRAIN),
    ],
)
def test_float32_limits_are_sharp_too(spoil, expected):
    assert expected in failing(verify(wrong(spoil, "float32"), steps=5))


def test_dynamics_see_forces_that_do_not_belong_to_the_energy():
    """Only the run shows them: no derivative is compared."""
    potential = wrong(scaled("forces", 1.1))
    (check,) = (c for c in verify(potential, steps=60).checks if c.name.startswith(NVE))
    assert not check.ok
    sound = [c for c in verify(tiny_potential(), steps=60).checks if c.name.startswith(NVE)]
    assert sound[0].ok
    assert sound[0].value < 0.3 * sound[0].limit


def test_batches_that_leak_are_seen():
    def spoil(frames, results):
        if len(frames) > 1 and any(len(frames[0]) != len(atoms) for atoms in frames):
            for result in results:
                result["energy"] = result["energy"] + 1e-6
                if "forces" in result:
                    result["forces"] = np.roll(result["forces"], 1, axis=0)
                    result["virials"] = results[0]["virials"]

    assert failing(verify(wrong(spoil), steps=5)) == LEAKS


def test_every_check_is_seen_to_fail():
    """A check that no test makes fail would prove nothing."""
    seen = set.union(LEAKS, JUMPS, FEATURES, *(expected for _, expected in BROKEN.values()))
    assert set(rows(verify(tiny_potential(ewald_channels=1), steps=1))) == seen


def test_a_step_at_the_cutoff_is_seen():
    """A pair energy that ends abruptly at the cutoff, with the forces that belong to it."""

    def spoil(frames, results):
        for atoms, result in zip(frames, results, strict=True):
            apart = atoms.positions[:, None] - atoms.positions
            lengths = np.linalg.norm(apart, axis=2)
            near = (lengths < 4.0) & (lengths > 0)
            if "energy" in result:
                result["energy"] += 0.5 * float((near * 0.01 * lengths).sum())
            if "forces" in result:
                unit = apart / np.where(near, lengths, 1.0)[:, :, None]
                result["forces"] = result["forces"] - 0.01 * (unit * near[:, :, None]).sum(1)

    found = failing(verify(wrong(spoil), steps=5))
    assert found >= JUMPS


def test_nan_is_never_ok():
    assert not Check("x", math.nan, 1.0, "eV").ok
    report = verify(wrong(scaled("forces", math.nan)), steps=2)
    assert {FD, "forces = float64 reference", "sum of forces / sqrt(n)", NVE} <= failing(report)
    values = {row["check"]: row["value"] for row in report.to_dict()["checks"]}
    assert values[FD] is None  # NaN is no JSON


def test_features_are_compared():
    class OtherFeatures(Potential):
        def features(self, atoms):
            return super().features(atoms) * 1.00001

    spec = tiny_spec()
    potential = OtherFeatures(spec, tiny_weights(spec), device="cpu", dtype="float64")
    assert failing(verify(potential, steps=2)) == FEATURES


def descriptor(kind=Potential) -> Potential:
    whole = tiny_spec(steps=("M",))
    spec = ModelSpec(whole.representation)
    tensors = {k: t for k, t in tiny_weights(whole).items() if not k.startswith("outputs.")}
    return kind(spec, Weights(spec, tensors), device="cpu", dtype="float32")


def test_bare_descriptors():
    class Turned(Potential):
        def features(self, atoms):
            return super().features(atoms) + 1e-3 * atoms.positions[:, 0].reshape(-1, 1, 1, 1, 1)

    report = verify(descriptor())
    assert report.ok, str(report)
    assert len(report.checks) == 3
    quick_check(descriptor())
    assert failing(verify(descriptor(Turned))) == {
        "features = float64 reference",
        "rotation: features",
    }


def test_a_field_breaks_symmetries_rightly():
    options = {"external_field": 0.1, "external_field_direction": 0}
    potential = tiny_potential(ewald_channels=1, ewald=options)
    report = verify(potential, tiny_structure(potential.spec, pbc=False), steps=10)
    assert report.ok, str(report)
    assert rows(report)["rotation"].skipped == "the model has an external field"


def test_k_vectors_on_the_edge_of_the_sphere_are_no_error():
    """In a cube whose edge is a multiple of dl any strain lets k vectors in."""
    potential = tiny_potential(ewald_channels=1, ewald={"dl": 2.0})
    atoms = tiny_structure(potential.spec, spacing=3.0)
    report = verify(potential, atoms, steps=10)
    assert report.ok, str(report)
    assert (
        rows(report)[STRAIN].skipped
        == "k vectors lie on the edge of their sphere; take another cell"
    )


@pytest.mark.parametrize(
    "check", [quick_check, lambda p: load_and_check(p)], ids=["direct", "load"]
)
def test_quick_check_raises(check, tmp_path, monkeypatch):
    potential = wrong(scaled("forces", 1.001))
    monkeypatch.setattr("cace_fast.loading.Potential", lambda *a, **k: potential)
    potential.path = tmp_path / "model.safetensors"
    potential.save(potential.path)
    with pytest.raises(VerificationError) as caught:
        check(potential)
    text = str(caught.value)
    assert "forces = float64 reference: " in text
    assert "failed 2 of" in text
    assert "cace-fast verify" in text


def load_and_check(potential):
    load(potential.path, verify=True)


def test_sound_files_load_with_verification(tmp_path):
    tiny_potential().save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", device="cpu", verify=True)
    assert loaded.dtype == torch.float32


def test_trial_structures_are_sensible_and_repeat():
    spec = tiny_spec(elements=(1, 6, 8, 29, 55), inputs=("charge_states",), ewald_channels=1)
    atoms = trial_structure(spec, 20)
    assert atoms == trial_structure(spec, 20)
    assert set(atoms.numbers) == {1, 6, 8, 29, 55}
    assert atoms.pbc.all()
    distances = atoms.get_all_distances(mic=True)[np.triu_indices(20, 1)]
    assert 1.4 < distances.min() < 4.0
    assert len(set(atoms.arrays["charge_states"].ravel())) == 20


def test_trial_structures_sample_many_elements():
    spec = tiny_spec(elements=tuple(range(1, 90)))
    assert len(set(trial_structure(spec).numbers)) == 8


def test_structures_that_cannot_be_verified():
    potential = tiny_potential()
    with pytest.raises(InputError, match="atoms: expected a structure with atoms, got none"):
        verify(potential, Atoms())
    with pytest.raises(UnknownElementError, match="expected elements among H, O, got Cu"):
        verify(potential, Atoms("Cu"))
    with pytest.raises(InputError, match="no element of the periodic table"):
        quick_check(tiny_potential(elements=(0, 300)))


def test_reports_print_and_convert():
    seen = []
    report = verify(wrong(scaled("stress", 2.0)), steps=2, on_check=seen.append)
    assert tuple(seen) == report.checks
    text = str(report)
    assert text.startswith(
        "Potential(H O, cutoff 4 A, backend 'reference' on 'cpu', float64) on H12O12"
    )
    (failed,) = [line for line in text.splitlines() if line.endswith("FAILED")]
    assert failed.startswith(STRESS)
    plain = report.to_dict()
    assert plain["ok"] is False
    assert [row["check"] for row in plain["checks"] if not row["ok"]] == [STRESS]


@pytest.mark.parametrize(
    "given", [0.25, [0.25], [0.1 * k for k in range(8)]], ids=["number", "list of one", "each atom"]
)
def test_inputs_of_structures_are_kept(given):
    """Whether they were for the structure or for each atom, so that atoms can be permuted."""
    spec = tiny_spec(inputs=("charge_states",))
    atoms = tiny_structure(spec)
    del atoms.arrays["charge_states"]
    atoms.info["charge_states"] = given
    ready = completed(atoms, spec)
    expected = np.broadcast_to(np.ravel(given), 8)
    assert np.array_equal(ready.arrays["charge_states"].ravel(), expected)
    assert "charge_states" not in ready.info
    assert atoms.info["charge_states"] == given
    potential = tiny_potential(inputs=("charge_states",))
    assert potential.compute(ready)["energy"] == pytest.approx(potential.compute(atoms)["energy"])
    assert verify(potential, atoms, steps=2).ok


def test_cells_grow_until_the_atoms_fit(monkeypatch):
    spec = tiny_spec()
    before = trial_structure(spec)
    monkeypatch.setattr("cace_fast.verification.probe_structure.TRIES", 30)
    after = trial_structure(spec)
    assert len(after) == len(before)
    assert after.get_volume() > before.get_volume()
