"""`cace-fast eval`: right numbers under the right keys, and outputs that survive interruptions."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from ase.io import read, write
from support.command import cace_fast, start, succeed
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure

from cace_fast import CACECalculator
from cace_fast.cli.resume import count_frames, next_frame
from cace_fast.loading import load

N = 7
SPEC = tiny_spec(ewald_channels=1, inputs=("charge_states",))


@pytest.fixture
def files(tmp_path):
    """A model and structures, open and periodic ones in turn, with energies of another method."""
    tiny_potential(ewald_channels=1, inputs=("charge_states",)).save(tmp_path / "m.safetensors")
    frames = []
    for k in range(N):
        atoms = tiny_structure(SPEC, seed=k, pbc=bool(k % 2))
        atoms.info |= {"energy": 0.5 * k, "name": f"structure number {k}"}
        frames.append(atoms)
    write(tmp_path / "in.xyz", frames, format="extxyz")
    return tmp_path


def evaluate(files, *more, output="out.xyz", configs="in.xyz", model="m.safetensors"):
    arguments = ["--model", files / model, "--configs", files / configs]
    return cace_fast("eval", *arguments, "--output", files / output, *more)


def test_predictions_and_what_came_with_the_structures(files):
    assert evaluate(files, "--compute-stress").exit_code == 0
    potential = load(files / "m.safetensors", device="cpu")
    before, after = read(files / "in.xyz", ":"), read(files / "out.xyz", ":")
    assert len(after) == N
    for old, new in zip(before, after, strict=True):
        expected = potential.compute(old)
        assert new.info["CACE_energy"] == pytest.approx(expected["energy"], abs=1e-6)
        assert np.allclose(new.arrays["CACE_forces"], expected["forces"], atol=2e-6)
        assert new.info["name"] == old.info["name"]
        assert new.get_potential_energy() == old.get_potential_energy()
        assert np.array_equal(new.arrays["charge_states"], old.arrays["charge_states"])
        assert np.array_equal(new.positions, old.positions)
        assert ("CACE_stress" in new.info) == bool(old.pbc.all())
        if old.pbc.all():
            stress = potential.compute(old, ("stress",))["stress"]
            assert np.allclose(new.info["CACE_stress"], stress, atol=1e-7)


def test_a_field_acts_as_in_the_calculator(files):
    """Open frames gain -f.P, periodic ones forces only; names of frames in errors stay right."""
    field = [0.1, -0.2, 0.3]
    words = ("--default-dtype", "float64", "--properties", "energy,energies,forces", "--batch-size")
    assert evaluate(files, *words, "3", "--field", "0.1,-0.2,0.3").exit_code == 0
    calc = CACECalculator(files / "m.safetensors", default_dtype="float64", external_field=field)
    plain = load(files / "m.safetensors", device="cpu", dtype="float64")
    for old, new in zip(read(files / "in.xyz", ":"), read(files / "out.xyz", ":"), strict=True):
        old.calc = calc
        assert new.info["CACE_energy"] == pytest.approx(old.get_potential_energy(), abs=1e-8)
        assert np.allclose(new.arrays["CACE_energies"], old.get_potential_energies(), atol=1e-7)
        assert np.allclose(new.arrays["CACE_forces"], old.get_forces(), atol=1e-7)
        without = plain.compute(old)
        assert not np.allclose(new.arrays["CACE_forces"], without["forces"], atol=1e-4)
        changed = abs(new.info["CACE_energy"] - without["energy"]) > 1e-4
        assert changed == (not old.pbc.any())
        assert "CACE_bec" not in new.arrays
    other = evaluate(files, *words, "3", "--field", "0.1,-0.2,0.4")
    assert "is of another model or other options (frame 0)" in other.stderr


def test_slabs_need_their_vacuum(files):
    frames = read(files / "in.xyz", ":")
    frames[1].pbc = (True, True, False)
    write(files / "in.xyz", frames, format="extxyz")
    assert "frame 1: " in evaluate(files).stderr
    (files / "out.xyz").unlink()
    words = ("--default-dtype", "float64")
    assert evaluate(files, *words, "--slab-vacuum", "12").exit_code == 0
    potential = load(files / "m.safetensors", device="cpu", dtype="float64", slab_vacuum=12.0)
    for old, new in zip(frames, read(files / "out.xyz", ":"), strict=True):
        expected = potential.compute(old)
        assert new.info["CACE_energy"] == pytest.approx(expected["energy"], abs=1e-8)
    assert "of another model or other options" in evaluate(files, *words).stderr


def test_options(files):
    result = evaluate(
        files, "--default_dtype", "float64", "--batch_size", "2", "--info_prefix", "MINE_",
        "--properties", "energy,energies,latent_charges,bec,virials",
    )  # fmt: skip
    assert result.exit_code == 0
    potential = load(files / "m.safetensors", device="cpu", dtype="float64")
    names = ("energy", "energies", "latent_charges", "bec", "virials")
    for old, new in zip(read(files / "in.xyz", ":"), read(files / "out.xyz", ":"), strict=True):
        expected = potential.compute(old, names)
        assert new.info["MINE_energy"] == pytest.approx(expected["energy"], rel=1e-12)
        assert np.allclose(new.info["MINE_virials"], expected["virials"], atol=1e-12)
        assert np.allclose(new.arrays["MINE_energies"], expected["energies"], atol=1e-8)
        charges = expected["latent_charges"][:, 0]
        assert np.allclose(new.arrays["MINE_latent_charges"], charges, atol=1e-8)
        assert np.allclose(new.arrays["MINE_bec"], expected["bec"].reshape(-1, 9), atol=1e-8)
        assert "float64" in new.info["MINE_model"]
        assert "MINE_forces" not in new.arrays


@pytest.mark.parametrize("size", [0.0, 0.03, 0.3, 0.55, 0.999])
def test_an_output_cut_anywhere_is_continued(files, size):
    one = ("--batch-size", "1")  # sums in other batches differ in their last digits
    assert evaluate(files, *one).exit_code == 0
    whole = (files / "out.xyz").read_bytes()
    cut = whole[: int(size * len(whole))]
    (files / "out.xyz").write_bytes(cut)
    result = evaluate(files, *one)
    assert result.exit_code == 0, result.stderr
    assert (files / "out.xyz").read_bytes() == whole
    frames = size * N // 1
    assert (f"holds {frames:.0f} frames" in result.stderr) == (frames > 0)


def test_new_frames_of_the_input_are_added(files):
    write(files / "fewer.xyz", read(files / "in.xyz", ":3"), format="extxyz")
    assert evaluate(files, configs="fewer.xyz").exit_code == 0
    assert "holds 3 frames" in evaluate(files).stderr
    assert evaluate(files, output="fresh.xyz").exit_code == 0
    found, fresh = (read(files / name, ":") for name in ("out.xyz", "fresh.xyz"))
    assert len(found) == len(fresh) == N
    for a, b in zip(found, fresh, strict=True):
        assert np.allclose(a.arrays["CACE_forces"], b.arrays["CACE_forces"], atol=1e-5)


def test_a_finished_output_is_left_alone(files):
    assert evaluate(files).exit_code == 0
    whole = (files / "out.xyz").read_bytes()
    result = evaluate(files)
    assert result.exit_code == 3
    assert f"is complete ({N} frames)" in result.stderr
    assert (files / "out.xyz").read_bytes() == whole
    assert evaluate(files, "--force", "--default-dtype", "float64").exit_code == 0
    assert (files / "out.xyz").read_bytes() != whole


def other_structures(files):
    assert evaluate(files).exit_code == 0
    frames = read(files / "in.xyz", ":")
    frames[1].positions += 1e-3
    write(files / "in.xyz", frames, format="extxyz")


def other_text(files):
    (files / "out.xyz").write_text("a diary\nof a scientist\n")


def other_xyz(files):
    write(files / "out.xyz", read(files / "in.xyz", ":2"), format="extxyz")


def xyz_without_end(files):
    write(files / "out.xyz", read(files / "in.xyz", "0"), format="extxyz")
    text = (files / "out.xyz").read_text()
    (files / "out.xyz").write_text(text.rstrip("\n"))


def shorter_input(files):
    assert evaluate(files).exit_code == 0
    write(files / "in.xyz", read(files / "in.xyz", ":3"), format="extxyz")


def of_float64(files):
    assert evaluate(files, "--default-dtype", "float64").exit_code == 0


def with_stress(files):
    assert evaluate(files, "--compute-stress").exit_code == 0


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (other_structures, "holds another structure than the input (frame 1)"),
        (other_text, "does not come from this command"),
        (other_xyz, "is of another model or other options (frame 0)"),
        (xyz_without_end, "does not come from this command"),
        (shorter_input, "has more frames than the input (frame 3)"),
        (of_float64, "is of another model or other options (frame 0)"),
        (with_stress, "was written with other options (CACE_stress) (frame 1)"),
    ],
)
def test_files_that_are_not_this_runs_own_are_left_alone(files, spoil, text):
    spoil(files)
    precious = (files / "out.xyz").read_bytes()
    result = evaluate(files)
    assert result.exit_code == 3
    assert text in result.stderr
    assert "pass --force to overwrite" in result.stderr
    assert (files / "out.xyz").read_bytes() == precious


def test_an_error_names_the_frame_and_leaves_whole_frames(files):
    frames = read(files / "in.xyz", ":")
    frames[4].numbers[2] = 29
    write(files / "in.xyz", frames, format="extxyz")
    result = evaluate(files, "--batch-size", "2")
    assert result.exit_code == 3
    assert "frame 4: numbers: expected elements among H, O, got Cu (atoms 2)" in result.stderr
    assert len(read(files / "out.xyz", ":")) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_whole_frames(files, monkeypatch, error):
    """The file is cut back when a write stops half way."""
    from cace_fast.cli import evaluate as module

    class Stopping:
        """A file whose third write stops after some bytes."""

        def __init__(self, file):
            self.file, self.count = file, 0

        def write(self, data):
            self.count += 1
            if self.count < 3:
                return self.file.write(data)
            self.file.write(data[:100])
            raise error

        def fileno(self):
            return self.file.fileno()

    honest = module.append_whole
    wrapped: list[Stopping] = []

    def append(file, data):
        wrapped.append(wrapped[0] if wrapped else Stopping(file))
        honest(wrapped[0], data)

    monkeypatch.setattr(module, "append_whole", append)
    result = evaluate(files, "--batch-size", "2")
    assert result.exit_code == (130 if error is KeyboardInterrupt else 3)
    assert len(read(files / "out.xyz", ":")) == 4
    assert (files / "out.xyz").read_bytes().endswith(b"\n")
    monkeypatch.undo()
    assert "holds 4 frames" in evaluate(files).stderr


def test_a_killed_process_is_continued(files):
    many = [tiny_structure(SPEC, seed=k) for k in range(300)]
    write(files / "in.xyz", many, format="extxyz")
    arguments = ["eval", "--model", files / "m.safetensors", "--configs", files / "in.xyz"]
    arguments += ["--batch-size", "1"]
    process = start(*arguments, "--output", files / "out.xyz")
    deadline = time.monotonic() + 120
    while not (files / "out.xyz").exists() or (files / "out.xyz").stat().st_size < 20_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = count_frames(files / "out.xyz")
    assert 0 < done < 300
    assert f"holds {done} frames" in succeed(*arguments, "--output", files / "out.xyz").stderr
    succeed(*arguments, "--output", files / "once.xyz")
    assert (files / "out.xyz").read_bytes() == (files / "once.xyz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--info-prefix", ""), "--info-prefix: expected letters, digits and _, got ''"),
        (("--properties", "energy,mood"), "properties: expected names among"),
        (("--output", "in.xyz"), "--output: expected another file than --configs"),
        (("--field", "1,2"), "--field: expected numbers X,Y,Z, got '1,2'"),
        (("--field", "1,2,inf"), "--field: expected three finite numbers, got"),
        (("--properties", "dipole"), "frame 1: dipole: defined for open systems only"),
    ],
)
def test_wrong_arguments(files, monkeypatch, arguments, text):
    monkeypatch.chdir(files)
    base = ["--model", "m.safetensors", "--configs", "in.xyz", "--output", "out.xyz"]
    result = cace_fast("eval", *base, *arguments)
    assert result.exit_code == 3
    assert text in result.stderr
    assert (files / "out.xyz").exists() == text.startswith("frame 1")  # frame 0 was good


def test_frames_are_counted_as_far_as_they_are_whole(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("1\nx\nH 0 0 0\n2\ny\nH 0 0 0\nH 0 0 1\n1\nz\nH 0 0")
    assert count_frames(path) == 2
    assert count_frames(tmp_path / "a.cif") is None
    with path.open("rb") as file:
        assert next_frame(file) == "1\nx\nH 0 0 0\n"
