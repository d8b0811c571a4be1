"""Common behaviour of all commands: help, version, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.command import cace_fast, environment, run, succeed
from support.tiny_models import tiny_potential, tiny_structure
from typer.main import get_command

import cace_fast as package
from cace_fast.cli.app import CODES, _as_options, app

COMMANDS = ("info", "convert", "eval", "md", "relax", "verify", "bench", "doctor")


@pytest.fixture
def files(tmp_path):
    potential = tiny_potential()
    potential.save(tmp_path / "model.safetensors")
    tiny_structure(potential.spec).write(tmp_path / "structure.xyz")
    return tmp_path


def test_help_lists_the_commands():
    for flag in ("-h", "--help"):
        text = succeed(flag).stdout
        assert all(f" {name} " in text for name in COMMANDS)
        assert " ".join(CODES.split()) in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    assert f"Usage: cace-fast {name}" in succeed(name, "-h").stdout


def test_version():
    assert succeed("--version").stdout.strip() == f"cace-fast {package.__version__}"


def test_help_needs_neither_torch_nor_ase():
    code = (
        "import sys\n"
        "from cace_fast.cli.app import app\n"
        "loaded = {'torch', 'ase', 'vesin', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Usage: cace-fast"),
        (("evaluate",), "No such command 'evaluate'"),
        (("info",), "Missing argument 'MODEL'"),
        (("md", "m", "s", "--output", "o"), "Missing option '--steps'"),
        (("md", "m", "s", "--output", "o", "--steps", "0"), "Invalid value for '--steps'"),
        (("md", "m", "s", "--ensemble", "nph"), "Invalid value for '--ensemble'"),
        (("eval", "--nonsense"), "No such option"),
    ],
)
def test_usage_errors(arguments, text):
    result = cace_fast(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr + result.stdout
    if not arguments:
        assert result.stderr == ""
    else:
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("cace-fast: error: ")
        assert ". See 'cace-fast" in result.stderr


def test_a_hint_names_the_command():
    assert "See 'cace-fast md --help'." in cace_fast("md", "--nonsense").stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("info", "nothing.pth"), "nothing.pth: no such file, and no shipped potential"),
        (("info", "structure.xyz"), "structure.xyz: "),
        (("info", "two\nlines"), "two lines: no such file"),
        (("verify", "model.safetensors", "nothing.xyz"), "STRUCTURE: no such file: nothing.xyz"),
        (("verify", "model.safetensors", "copper.xyz"), "expected elements among H, O, got Cu"),
        (("verify", "model.safetensors", "model.safetensors"), "a file of structures that ASE"),
        (("verify", "model.safetensors", "empty.xyz"), "expected a file of structures"),
        (("info", "broken.safetensors"), "broken.safetensors: not a readable safetensors file"),
        (("verify", "model.safetensors", "--device", "abacus"), "device: expected"),
        (("verify", "model.safetensors", "--backend", "abacus"), "backend: expected one of auto"),
        (("verify", "model.safetensors", "--backend", "triton"), "'triton' is not available here"),
    ],
)
def test_input_errors_are_one_line(files, monkeypatch, arguments, text):
    monkeypatch.chdir(files)
    (files / "copper.xyz").write_text("1\n\nCu 0 0 0\n")
    (files / "empty.xyz").write_text("")
    (files / "broken.safetensors").write_bytes(b"no tensors here, and long enough for a header")
    result = cace_fast(*arguments)
    assert result.exit_code == 3
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("cace-fast: error: ")
    assert "Traceback" not in result.stderr


def test_internal_errors_say_how_to_get_the_traceback(files, monkeypatch):
    def fail(path):
        raise ZeroDivisionError("the fault")

    monkeypatch.setattr("cace_fast.model_files.read_model", fail)
    result = cace_fast("info", files / "model.safetensors")
    assert result.exit_code == 70
    assert "internal error: ZeroDivisionError: the fault" in result.stderr
    assert "cace-fast --debug ..." in result.stderr
    debugged = cace_fast("--debug", "info", files / "model.safetensors")
    assert isinstance(debugged.exception, ZeroDivisionError)


def test_processes_end_with_the_same_codes(files):
    """The console script goes the same way as the runner of the other tests."""
    found = run("info", "nothing.pth", cwd=files)
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr.startswith("cace-fast: error: nothing.pth: no such file")
    debugged = run("--debug", "info", "nothing.pth", cwd=files)
    assert debugged.returncode == 1
    assert "Traceback (most recent call last)" in debugged.stderr
    assert "FileNotFoundError: nothing.pth" in debugged.stderr


def test_interrupts_have_their_own_code(files, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("cace_fast.model_files.read_model", interrupt)
    assert cace_fast("info", files / "model.safetensors").exit_code == 130


def test_underscores_are_dashes(files):
    result = cace_fast("verify", files / "model.safetensors", "--default_dtype", "float16")
    assert result.exit_code == 2
    assert "Invalid value for '--default-dtype'" in result.stderr


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("md", "pass slab_vacuum=... there", "pass --slab-vacuum ... there"),
        ("verify", "Pass slab_vacuum=15.0.", "Pass --slab-vacuum 15.0."),
        ("relax", "allow it by min_dist=None or", "allow it by --min-dist none or"),
        ("md", "use k_set='sphere', or", "use --k-set sphere, or"),
        ("info", "allow it by min_dist=None or", "allow it by min_dist=None or"),
        ("md", "l_max=2 with charge_unit=3", "l_max=2 with charge_unit=3"),
    ],
)
def test_remedies_name_options_of_the_command(command, text, expected):
    options = {name for p in get_command(app).commands[command].params for name in p.opts}
    assert _as_options(text, options) == expected


def test_slabs_and_close_atoms_on_every_command(files):
    """An option that a message advises is an option of the command."""
    potential = tiny_potential(ewald_channels=1)
    potential.save(files / "charged.safetensors")
    atoms = tiny_structure(potential.spec)
    atoms.pbc = [True, True, False]
    atoms.write(files / "slab.xyz")
    atoms.set_pbc(True)
    atoms.positions[1] = atoms.positions[0] + [0.1, 0, 0]
    atoms.write(files / "close.xyz")
    model, out = files / "charged.safetensors", files / "out.xyz"
    commands = {
        "bench": ("bench", model, None, "--rounds", 1),
        "verify": ("verify", model, None),
        "relax": ("relax", model, None, "--output", out, "--fmax", 100),
        "md": ("md", model, None, "--output", files / "run", "--steps", 1),
        "eval": ("eval", "--model", model, "--configs", None, "--output", out),
    }
    for name, words in commands.items():
        for file, option in (("slab.xyz", "--slab-vacuum"), ("close.xyz", "--min-dist")):
            if (name, option) == ("verify", "--min-dist"):  # it takes any distance
                continue
            refused = cace_fast(*(files / file if word is None else word for word in words))
            assert refused.exit_code == 3, (name, option)
            assert f" {option} " in refused.stderr, refused.stderr
    words = (files / "slab.xyz" if word is None else word for word in commands["verify"])
    assert "slab_vacuum" not in cace_fast(*words, "--slab-vacuum", 20, "--steps", 2).stderr
    words = (files / "close.xyz" if word is None else word for word in commands["bench"])
    succeed(*words, "--min-dist", "none")
