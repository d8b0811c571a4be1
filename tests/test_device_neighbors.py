"""The neighbour list in torch operations, against vesin's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.boxes import CELLS, PBC, places
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast import device_neighbors
from cace_fast.device_neighbors import device_neighbor_list
from cace_fast.engine.verlet import DeviceVerletList
from cace_fast.errors import InputError
from cace_fast.neighbors import neighbor_list
from cace_fast.potential import Potential


@pytest.fixture(params=["all pairs", "bins"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both searches: small systems would never see bins."""
    if request.param == "bins":
        monkeypatch.setattr(device_neighbors, "FEW_ATOMS", 0)


def compare(r: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...], cutoff: float) -> int:
    expected = neighbor_list(r, cell, np.array(pbc), cutoff)
    found = device_neighbor_list(
        torch.from_numpy(r), torch.from_numpy(cell)[None], torch.tensor([pbc]), cutoff
    )
    for name in ("receivers", "senders", "shifts"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name))
    return len(expected.senders)


@pytest.mark.parametrize("pbc", PBC.values(), ids=PBC)
@pytest.mark.parametrize("name", CELLS)
def test_pairs_are_those_of_vesin(name: str, pbc: tuple[bool, ...]) -> None:
    assert compare(places(40, CELLS[name]), CELLS[name], pbc, 4.5) > 40


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_atoms(n: int) -> None:
    compare(places(n, CELLS["small"]), CELLS["small"], (True,) * 3, 5.5)
    compare(places(n, CELLS["small"]), CELLS["small"], (False,) * 3, 5.5)


def test_chunks_do_not_change_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_neighbors, "AT_ONCE", 500)
    assert compare(places(60, CELLS["triclinic"]), CELLS["triclinic"], (True,) * 3, 4.0) > 1000
    assert compare(places(30, CELLS["small"]), CELLS["small"], (True,) * 3, 4.0) > 1000


def test_a_line_of_atoms_without_a_cell() -> None:
    r = np.zeros((50, 3))
    r[:, 1] = np.arange(50) * 1.5
    compare(r, np.zeros((3, 3)), (False,) * 3, 4.6)


def test_systems_of_a_batch_do_not_see_each_other() -> None:
    names, sizes = ["cubic", "small", "triclinic"], [20, 7, 13]
    flags = [PBC["ppp"], PBC["ppp"], PBC["ppo"]]
    parts = [
        places(n, CELLS[name], k) for k, (n, name) in enumerate(zip(sizes, names, strict=True))
    ]
    found = device_neighbor_list(
        torch.from_numpy(np.concatenate(parts)),
        torch.from_numpy(np.stack([CELLS[name] for name in names])),
        torch.tensor(flags), 5.0, torch.repeat_interleave(torch.tensor(sizes)),
    )  # fmt: skip
    first = 0
    expected = []
    for r, name, flag in zip(parts, names, flags, strict=True):
        one = neighbor_list(r, CELLS[name], np.array(flag), 5.0)
        expected.append((one.receivers + first, one.senders + first, one.shifts))
        first += len(r)
    for got, want in zip(
        (found.receivers, found.senders, found.shifts), zip(*expected, strict=True), strict=True
    ):
        np.testing.assert_array_equal(got.numpy(), np.concatenate(want))


def test_errors_name_what_is_wrong() -> None:
    cell, pbc = torch.eye(3).double()[None] * 8, torch.tensor([[True] * 3])
    r = torch.zeros(3, 3, dtype=torch.float64)
    r[1, 2] = float("nan")
    with pytest.raises(InputError, match=r"positions: expected finite numbers.*atoms 1"):
        device_neighbor_list(r, cell, pbc, 4.0)
    with pytest.raises(InputError, match="cell: expected independent vectors"):
        device_neighbor_list(torch.zeros(1, 3).double(), cell * 0.0, pbc, 4.0)
    with pytest.raises(InputError, match="skin: expected a length"):
        DeviceVerletList(4.0, -1.0)


def test_a_skin_keeps_the_list_until_two_atoms_moved_that_far() -> None:
    cell = torch.from_numpy(CELLS["cubic"])[None]
    pbc = torch.tensor([[True] * 3])
    r = torch.from_numpy(places(30, CELLS["cubic"]))
    search = DeviceVerletList(4.0, 0.6)
    first = search(r, cell, pbc)
    near = r.clone()
    near[0, 0] += 0.29
    near[1, 0] -= 0.29
    assert search(near, cell, pbc) is first
    need = device_neighbor_list(near, cell, pbc, 4.0)
    held = {
        tuple(x)
        for x in torch.cat(
            [first.senders[:, None], first.receivers[:, None], first.shifts], 1
        ).tolist()
    }
    wanted = {
        tuple(x)
        for x in torch.cat(
            [need.senders[:, None], need.receivers[:, None], need.shifts], 1
        ).tolist()
    }
    assert wanted <= held
    near[1, 0] -= 0.05
    assert search(near, cell, pbc) is not first
    assert search.n_builds == 2
    assert search(near, cell * 1.001, pbc) is not None
    assert search.n_builds == 3


def test_a_resident_system_of_the_reference_finds_its_pairs_as_they_are_due() -> None:
    model = tiny_potential(l_max=1, n_rbf=2, n_radial=2)
    atoms = tiny_structure(model.spec, side=2, spacing=2.7)
    reference = Potential(model.spec, model.weights, device="cpu", backend="reference",
                          dtype="float64")  # fmt: skip
    system = reference.batch([atoms, atoms], skin=0.4)
    for step in range(4):
        found = system.evaluate(wanted=("forces",))
        expected = model.compute(atoms, ("energy", "forces"))
        np.testing.assert_allclose(found.energy, 2 * [expected["energy"]], rtol=1e-12)
        np.testing.assert_allclose(found.forces[:8], expected["forces"], atol=1e-11)
        move = 0.08 * np.cos(np.arange(24) + step).reshape(8, 3)
        atoms.positions += move
        system.positions += torch.from_numpy(np.concatenate([move, move]))
    assert 1 < system.n_builds < 4
    with pytest.raises(InputError, match=r"positions: expected a torch.float64 tensor of shape"):
        system.evaluate(positions=torch.zeros(3, 3))
