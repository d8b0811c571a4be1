"""A process whose decimal point is a comma reads and writes the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import ase.io
import pytest
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

import cace_fast.engine
from cace_fast import Potential, weights
from cace_fast.errors import CaceFastError
from cace_fast.kernels.cpu.evaluator import Evaluator
from cace_fast.spec import to_json

CHILD = """
import ctypes, locale, sys, warnings
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
libc = ctypes.CDLL(None)
libc.strtod.restype = ctypes.c_double
assert libc.strtod(b"1,5", None) == 1.5  # the locale is there, and C asks it
import ase.io
import cace_fast
atoms = ase.io.read(sys.argv[2])
for backend in ("cpu", "auto"):
    potential = cace_fast.load(sys.argv[1], backend=backend, dtype="float64")
    assert potential.backend == "cpu", potential.backend_note
    print(repr(float(potential.compute(atoms)["energy"])))
cace_fast.load(sys.argv[1]).save(sys.argv[3])
"""


def _german(folder):
    """Make the locale, or skip if its tools are missing."""
    tool = shutil.which("localedef")
    if tool is None:
        pytest.skip("there is no localedef to make a locale with")
    made = subprocess.run(
        [tool, "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not (folder / "de_DE.UTF-8").exists():
        pytest.skip(f"localedef made no German locale: {made.stderr.strip()[:200]}")
    return {**os.environ, "LOCPATH": str(folder)}


def test_a_decimal_comma_changes_nothing(tmp_path):
    spec = tiny_spec(ewald_channels=1, ewald={"sigma": 1.25}, steps=("M+Ar+Bchi",))
    own = tiny_weights(spec)
    weights.save(tmp_path / "m.safetensors", spec, own)
    atoms = tiny_structure(spec)
    atoms.write(tmp_path / "a.xyz")
    atoms = ase.io.read(tmp_path / "a.xyz")  # as it is written, with its digits
    want = Potential(spec, own, dtype="float64", backend="cpu").compute(atoms)["energy"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / n) for n in
                                        ("m.safetensors", "a.xyz", "again.safetensors"))],
        capture_output=True, text=True, env=_german(tmp_path), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx([want, want], rel=1e-12)
    assert weights.load(tmp_path / "again.safetensors")[0] == spec


@pytest.mark.parametrize(("text", "message"), [
    ("1,5", "JSON: "), ("0x1p3", "JSON: "), ("nan", "not a number"), ("inf", "not a number"),
    ("1e999", "not a number"), ("1.5.5", "not a number"), ("-", "not a number"),
    ("+1", "not a number"), ('"\\u12"', "unknown escape"), ('"\\u+123"', "unknown escape"),
])  # fmt: skip
def test_numbers_of_another_form_are_refused(text, message):
    spec = tiny_spec()
    content = to_json(spec).replace('"cutoff": 4.0', f'"cutoff": {text}', 1)
    assert content != to_json(spec)
    arrays = {name: t.numpy() for name, t in tiny_weights(spec).items()}
    with pytest.raises(CaceFastError, match=message):
        Evaluator(content, arrays, [], [], 64)


@pytest.mark.parametrize("text", ["4.0", "4", "40e-1", "0.4E+1", "4.000000000000000000000000001"])
def test_numbers_in_any_notation(text):
    spec = tiny_spec()
    content = to_json(spec).replace('"cutoff": 4.0', f'"cutoff": {text}', 1)
    json.loads(content)
    arrays = {name: t.numpy() for name, t in tiny_weights(spec).items()}
    Evaluator(content, arrays, [], [], 64)


def test_auto_goes_on_whatever_a_backend_refuses(monkeypatch):
    """`auto` takes the next backend after any error and says why; an explicit request raises."""
    spec = tiny_spec()

    def refuse(*args, **options):
        raise CaceFastError("JSON: not a number at byte 7")

    monkeypatch.setattr(cace_fast.engine.CpuEngine, "__init__", refuse)
    potential = Potential(spec, tiny_weights(spec))
    assert potential.backend == "reference"
    assert potential.backend_note == "plain torch (cpu: JSON: not a number at byte 7)"
    with pytest.raises(CaceFastError, match="not a number at byte 7"):
        Potential(spec, tiny_weights(spec), backend="cpu")
