"""The interfaces of FINUFFT and cuFINUFFT, by the packages themselves and by a stand-in.

cuFINUFFT cannot be imported without CUDA. If the package is there, its own Python code runs here
over a C layer made of FINUFFT; otherwise that is skipped, and the stand-in has to have the
interface that was read from it (2.4.1 and 2.5.1, which agree).
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from pathlib import Path

import finufft
import numpy as np
import pytest
import torch
from support.k_sums import CELLS, DL, SIGMA, direct, error, evaluate, liquid

from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.transforms import LibraryTransforms, make_transforms

CUDA_PLAN = {
    "__init__": "self, nufft_type, n_modes, n_trans=1, eps=1e-06, isign=None, "
    "dtype='complex64', **kwargs",
    "setpts": "self, x, y=None, z=None, s=None, t=None, u=None",
    "execute": "self, data, out=None",
}
CUDA_OPTIONS = {"upsampfac", "gpu_stream", "gpu_device_id"}  # that kernels/transforms.py sets
HOST_OPTIONS = {"upsampfac", "nthreads", "showwarn"}


class StandIn:
    """A plan with cuFINUFFT's interface that computes with FINUFFT on the CPU."""

    plans: list[tuple[object, ...]] = []  # noqa: RUF012

    def __init__(
        self, nufft_type, n_modes, n_trans=1, eps=1e-6, isign=None, dtype="complex64", **kwargs
    ):
        assert set(kwargs) <= CUDA_OPTIONS, "no options of the CPU library"
        self.plans.append((nufft_type, n_modes, n_trans, eps, isign, dtype))
        self.plan = finufft.Plan(
            nufft_type, n_modes, n_trans, eps, isign, dtype=dtype, nthreads=1, showwarn=0, **kwargs
        )

    def setpts(self, x, y=None, z=None, s=None, t=None, u=None):
        assert all(isinstance(p, torch.Tensor) and p.is_contiguous() for p in (x, y, z))
        self.plan.setpts(x.numpy(), y.numpy(), z.numpy())

    def execute(self, data, out=None):
        assert all(isinstance(x, torch.Tensor) and x.is_contiguous() for x in (data, out))
        self.plan.execute(data.numpy(), out=out.numpy())
        return out


def arguments(function) -> str:
    return str(inspect.signature(function)).strip("()").split(") ->")[0]


def installed() -> Path:
    """Return the folder of the package; skips without."""
    found = importlib.util.find_spec("cufinufft")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package cufinufft is not installed (extra gpu)")
    return Path(next(iter(found.submodule_search_locations)))


def fields_of_options(folder: Path) -> dict[str, str]:
    """Return names and C types of the options that the package passes on."""
    found = {}
    for node in ast.walk(ast.parse((folder / "_cufinufft.py").read_text())):
        if isinstance(node, ast.Tuple) and isinstance(node.elts[0], ast.Constant):
            name, kind = node.elts[0].value, node.elts[-1]
            if isinstance(kind, ast.Name):
                found[name] = kind.id
    return found


def c_layer(folder: Path) -> types.ModuleType:
    """Return what stands for cufinufft._cufinufft: the same calls on FINUFFT."""

    class NufftOpts(ctypes.Structure):
        _fields_ = [(n, getattr(ctypes, kind)) for n, kind in fields_of_options(folder).items()]

    plans: list[tuple[finufft.Plan, int, tuple[int, ...], list[int]]] = []

    def array(address, real, shape):
        count = int(np.prod(shape)) * (2 if len(shape) > 1 else 1)
        kind = ctypes.c_float if real == "f" else ctypes.c_double
        flat = np.ctypeslib.as_array((kind * count).from_address(address))
        return flat.view(flat.dtype.name.replace("float32", "complex64").replace(
            "float64", "complex128")).reshape(shape) if len(shape) > 1 else flat  # fmt: skip

    def functions(real: str) -> dict[str, object]:
        def make(kind, dim, modes, isign, n_trans, eps, plan, options):
            given = getattr(options, "_obj", options)
            shape = tuple(modes)[dim - 1 :: -1]
            made = finufft.Plan(
                kind, shape, n_trans, eps, isign, nthreads=1, showwarn=0,
                dtype="complex64" if real == "f" else "complex128", upsampfac=given.upsampfac,
            )  # fmt: skip
            plans.append((made, kind, (n_trans, *shape), [0]))
            plan._obj.value = len(plans)
            return 0

        def set_points(plan, n, a, b, c, *_of_type_3):
            made, _, _, points = plans[plan.value - 1]
            points[0] = n
            made.setpts(*(array(address, real, (n,)) for address in (c, b, a)))
            return 0

        def execute(plan, values, modes):
            made, kind, shape, (n,) = plans[plan.value - 1]
            both = array(values, real, (shape[0], n)), array(modes, real, shape)
            found = made.execute(both[kind - 1])
            both[2 - kind][:] = found.reshape(both[2 - kind].shape)
            return 0

        return {"make_plan": make, "set_pts": set_points, "exec_plan": execute}

    layer = types.ModuleType("cufinufft._cufinufft")
    layer.NufftOpts = NufftOpts
    layer._default_opts = lambda options: None
    for real in ("", "f"):
        for name, function in functions(real).items():
            setattr(layer, f"_{name}{real}", function)
        setattr(layer, f"_destroy_plan{real}", lambda plan: 0)
    return layer


@pytest.fixture
def own_plan():
    """The Plan of the package, over :func:`c_layer`."""
    folder, before = installed(), dict(sys.modules)
    package = types.ModuleType("cufinufft")
    package.__path__ = [str(folder)]
    sys.modules |= {"cufinufft": package, "cufinufft._cufinufft": c_layer(folder)}
    plan = importlib.import_module("cufinufft._plan")
    plan._compat.get_array_ptr = lambda tensor: tensor.data_ptr()  # asks CUDA otherwise
    yield plan.Plan
    for name in [name for name in sys.modules if name.split(".")[0] == "cufinufft"]:
        del sys.modules[name]
    sys.modules |= {k: v for k, v in before.items() if k.split(".")[0] == "cufinufft"}


def check_sums(plan, monkeypatch, tolerance):
    """Compare sums by a library's plans with the direct sum."""
    monkeypatch.setitem(sys.modules, "cufinufft", types.SimpleNamespace(Plan=plan))
    wanted, dtype = accuracy(tolerance)
    made = make_transforms(torch.device("cuda"), wanted, dtype)
    assert isinstance(made, LibraryTransforms)
    cell = CELLS["triclinic"]
    for n_q in (1, 2):
        q, r = liquid(cell, 70, n_q)
        got = evaluate(NufftSum(DL, SIGMA, 1, made, dtype), q, r, cell)
        assert error(got, direct(q, r, cell)) < tolerance
    modes = tuple(2 * int(np.linalg.norm(row) / DL) + 1 for row in cell)
    name = str(dtype).removeprefix("torch.")
    return [(1, modes, 1, wanted, 1, name), (2, modes, 2, wanted, -1, name)]


@pytest.mark.parametrize("tolerance", [3e-3, 1e-6])
def test_a_stand_in_gets_what_it_takes(monkeypatch, tolerance):
    monkeypatch.setattr(StandIn, "plans", [])
    expected = check_sums(StandIn, monkeypatch, tolerance)
    assert StandIn.plans == expected


@pytest.mark.parametrize("tolerance", [3e-3, 1e-6])
def test_cufinufft_itself_gets_what_it_takes(own_plan, monkeypatch, tolerance):
    check_sums(own_plan, monkeypatch, tolerance)
    with pytest.raises(TypeError, match="Invalid option 'nthreads'"):
        own_plan(1, (3, 3, 3), 1, 1e-6, 1, dtype="complex128", nthreads=1)


def test_the_stand_in_has_the_interface():
    assert {name: arguments(getattr(StandIn, name)) for name in CUDA_PLAN} == CUDA_PLAN


def test_the_interface_is_that_of_cufinufft():
    folder = installed()
    tree = ast.parse((folder / "_plan.py").read_text())
    (plan,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Plan")
    methods = {n.name: n for n in plan.body if isinstance(n, ast.FunctionDef)}
    found = {name: ast.unparse(methods[name].args) for name in CUDA_PLAN}
    assert found == CUDA_PLAN
    assert set(fields_of_options(folder)) >= CUDA_OPTIONS


def test_the_interface_of_finufft():
    """What is passed by position, and the options, which the package checks by name."""
    first = list(inspect.signature(finufft.Plan.__init__).parameters)[1:7]
    assert first == ["nufft_type", "n_modes_or_dim", "n_trans", "eps", "isign", "dtype"]
    assert list(inspect.signature(finufft.Plan.setpts).parameters)[1:4] == ["x", "y", "z"]
    assert list(inspect.signature(finufft.Plan.execute).parameters)[1:] == ["data", "out"]
    options = {"upsampfac": 1.25, "nthreads": 1, "showwarn": 0}
    assert set(options) == HOST_OPTIONS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finufft.Plan(2, (3, 3, 3), 2, 1e-6, -1, dtype="complex128", **options)
    with pytest.warns(Warning, match="gpu_stream"):
        finufft.Plan(2, (3, 3, 3), 2, 1e-6, -1, dtype="complex128", gpu_stream=0)
