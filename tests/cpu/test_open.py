"""Models that a host in C opens by their path alone: their settings, and refused files."""

from __future__ import annotations

import ctypes
import json
import random
from ctypes import byref, c_int32, c_void_p
from dataclasses import replace

import pytest
from safetensors.torch import save
from support import golden
from support.tiny_models import repeated, tiny_program, tiny_spec, tiny_weights

from cace_fast import InputError, UnsupportedModelError
from cace_fast.kernels.cpu import library
from cace_fast.spec import FixedCharge, energy_keys, energy_program, file_to_json, to_json

ISOLATED = ((1, -0.25), (8, -3.5))
GOLDEN, GOLDEN_WEIGHTS = golden.model()
SEVERAL = replace(repeated(tiny_program()[0]), atomic_energies=ISOLATED)
CHARGED = tiny_spec(ewald_channels=1)


def file_of(spec, change=None, text=None):
    """The bytes of a model file, with a change of its text."""
    content = json.loads(file_to_json(spec) if text is None else text)
    if change is not None:
        change(content)
    weights = GOLDEN_WEIGHTS if spec is GOLDEN else tiny_weights(spec)
    return save(dict(weights), metadata={"cace_fast": json.dumps(content)})


class Opened:
    """An opened model, freed at the end."""

    def __init__(self, data, key=None, output_index=-1):
        self.lib, self.model = library.library(), c_void_p()
        text = ctypes.create_string_buffer(library.ERROR_LENGTH)
        name = None if key is None else key.encode()
        code = self.lib.cf_model_open_bytes(
            data, len(data), name, output_index, byref(self.model), text
        )
        library.raise_for(code, text.value.decode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.cf_model_free(self.model)

    def query(self, name):
        return self.lib.cf_model_query(self.model, name)

    def terms(self):
        n_terms = c_int32()
        found = self.lib.cf_model_terms(self.model, byref(n_terms))
        return [found[k] for k in range(n_terms.value)]


def test_everything_of_the_program_is_known():
    program = energy_program(SEVERAL)
    assert [term.weight for term in program.terms] == [1.0, 3.0, 2.0]
    with Opened(file_of(SEVERAL)) as opened:
        lib, model = opened.lib, opened.model
        elements = SEVERAL.representation.elements
        assert [lib.cf_model_row(model, z) for z in (*elements, 6)] == [0, 1, -1]
        isolated = [lib.cf_model_isolated(model, k) for k in (0, 1, 2, -1)]
        assert isolated == [*(dict(ISOLATED)[z] for z in elements), 0.0, 0.0]
        assert lib.cf_model_charge_unit(model) == 0.0  # of three sums
        assert opened.query(b"n_heads") == len(program.heads)
        assert opened.query(b"n_charges") == 2
        for found, term in zip(opened.terms(), program.terms, strict=True):
            assert (found.ewald.dl, found.ewald.sigma) == (term.ewald.dl, term.ewald.sigma)
            assert found.ewald.norm == term.ewald.norm_factor
            assert found.ewald.exponent == term.ewald.exponent
            assert bool(found.ewald.remove_self) == term.ewald.remove_self_interaction
            assert found.ewald.field == (term.ewald.external_field or 0.0)
            assert found.ewald.field_direction == (term.ewald.external_field_direction or 0)
            assert found.ewald.neutral_lambda == (term.ewald.charge_neutral_lambda or 0.0)
            assert found.weight == term.weight
            assert bool(found.fixed) == (term.fixed is not None)
            if term.fixed is None:
                assert (found.first_charge, found.n_charges) == (0, 2)
            else:
                table = dict(term.fixed.charges)
                assert [found.fixed[k] for k in range(2)] == [9.48933 * table[z] for z in elements]


@pytest.mark.parametrize("spec", [GOLDEN, CHARGED, SEVERAL])
def test_every_energy_opens(spec):
    for key in energy_keys(spec):
        program = energy_program(spec, key, 0)
        with Opened(file_of(spec), key, 0) as opened:
            assert opened.query(b"n_heads") == len(program.heads)
            assert len(opened.terms()) == len(program.terms)
            unit = opened.lib.cf_model_charge_unit(opened.model)
            assert unit == (program.charge_unit or 0.0)


def test_names_beyond_ascii(tmp_path):
    module = replace(GOLDEN.submodels[0].modules[0], output_key="\u00e9nergie \U0001f4a7")
    spec = replace(GOLDEN, submodels=(replace(GOLDEN.submodels[0], modules=(module,)),))
    weights = {k: t for k, t in GOLDEN_WEIGHTS.items() if not k.startswith(("outputs.0.1",))}
    data = save(weights, metadata={"cace_fast": file_to_json(spec)})
    with Opened(data, module.output_key) as opened:
        assert opened.query(b"n_heads") == 1
    (tmp_path / "m").write_bytes(data)
    model, text = c_void_p(), ctypes.create_string_buffer(library.ERROR_LENGTH)
    lib = library.library()
    path = str(tmp_path / "m").encode()
    assert lib.cf_model_open(path, None, -1, byref(model), text) == 0
    lib.cf_model_free(model)


def test_version_1_is_refused_with_the_remedy():
    with pytest.raises(UnsupportedModelError, match=r"version 1.*'cace-fast convert OLD"):
        Opened(file_of(CHARGED, text=to_json(CHARGED)))


def test_the_choice_of_an_energy():
    data = file_of(GOLDEN)
    with pytest.raises(InputError, match=r"output_index: expected 0 to 1: .*got -1"):
        Opened(data, "tot_q")
    with pytest.raises(InputError, match=r"output_index: expected 0 to 1: .*got 2"):
        Opened(data, "tot_q", 2)
    with pytest.raises(InputError, match=r"energy_key: expected one of E, tot_q, .*got nothing"):
        Opened(data, "nothing")
    unclear = file_of(GOLDEN, lambda c: c.update(total=None))
    with pytest.raises(InputError, match=r"energy_key: .*not clear"):
        Opened(unclear)


def program(**fields):
    """A change of fields of the program of the total energy."""

    def change(content):
        next(p for p in content["programs"] if p["energy_key"] == "CACE_energy").update(fields)

    return change


def part(kind, number, **fields):
    """A change of fields of a head or term of the program."""

    def change(content):
        own = next(p for p in content["programs"] if p["energy_key"] == "CACE_energy")
        own[kind][number].update(fields)

    return change


def heads(content):
    """The heads of the program of the total energy."""
    return next(p["heads"] for p in content["programs"] if p["energy_key"] == "CACE_energy")


def terms(content):
    """The terms of the program of the total energy."""
    return next(p["terms"] for p in content["programs"] if p["energy_key"] == "CACE_energy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (part("heads", 0, index=2), "energies of read-outs, got FixedCharge"),
        (part("heads", 1, index=2), "the number of a read-out"),
        (lambda c: heads(c).append(heads(c)[1]), "each head once"),
        (lambda c: heads(c).reverse(), "energies before charges"),
        (lambda c: terms(c).append(terms(c)[1]), "each Ewald sum once"),
        (part("heads", 0, index=99), "modules of the specification, got 0.99"),
        (part("heads", 0, submodel=-1), "modules of the specification, got -1.0"),
        (part("heads", 0, average=True), "averages where the specification has them"),
        (part("heads", 1, n_out=3), "2 outputs of a head, got 3"),
        (part("heads", 0, gives="forces"), "energy or charges, got forces"),
        (part("heads", 0, weight="1"), "expected a number"),
        (part("terms", 0, head=0), "a head that gives charges, got 0"),
        (part("terms", 0, head=7), "a head that gives charges, got 7"),
        (part("terms", 0, index=4), "the Ewald module of the specification"),
        (part("terms", 2, fixed=None), "fixed charges of the specification, got others"),
        (program(charge_unit=0.1), "a charge unit of 0"),
        (program(isolated=[[1, 0.0]]), "the isolated energies of the specification"),
        (program(heads=None), "expected a list"),
        (lambda c: c.pop("programs"), "missing field 'programs'"),
    ],
)
def test_what_is_inconsistent_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Opened(file_of(SEVERAL, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (part("terms", 0, charges="potential"), "charges that no head gives .potential"),
        (part("heads", 0, extras=None), "takes what no network gives"),
        (lambda c: c.update(version=3), "a file of version 3"),
    ],
)
def test_what_the_library_does_not_have_is_unsupported(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        Opened(file_of(SEVERAL, change))


def test_fixed_charges_of_all_elements_are_needed():
    modules = [
        replace(m, charges=m.charges[:1]) if isinstance(m, FixedCharge) else m
        for m in SEVERAL.submodels[0].modules
    ]
    spec = replace(SEVERAL, submodels=(replace(SEVERAL.submodels[0], modules=tuple(modules)),))
    with pytest.raises(UnsupportedModelError, match="fixed charges for some elements only"):
        Opened(file_of(spec))


def test_damaged_bytes_are_refused():
    """A cut or a changed byte gives an error, or a model with other numbers."""
    data = file_of(CHARGED)
    for cut in (0, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError):
            Opened(data[:cut])
    draw, refused = random.Random(3), 0
    for _ in range(300):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] = draw.randrange(256)
        try:
            with Opened(bytes(changed)):
                pass
        except (InputError, UnsupportedModelError):
            refused += 1
    assert refused > 30
