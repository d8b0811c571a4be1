"""The C interface of sums in parts: bricks of a mesh with the host's transforms, and refusals."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int32, c_int64
from itertools import pairwise

import numpy as np
import pytest
import torch

from cace_fast.errors import InputError
from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.long_range import EwaldSum, Transform
from cace_fast.kernels.ewald_method import Sphere, choose, require_size

SPEC = interface.EwaldSpec(1.9, 0.8, 1.3, 0.3, 0.7, 1, 1, 2)
CELL = np.array([[29.0, 0.2, -0.3], [6.7, 21.4, 0.4], [-5.1, 2.9, 24.1]])
VACUUM, ORDER, PAD = 9.0, 5, 16


class Mesh(ctypes.Structure):
    _fields_ = (
        ("width", c_int32),
        ("precision", c_int32),
        ("size", c_int64 * 3),
        ("modes", c_int64 * 3),
    )


class Brick(ctypes.Structure):
    _fields_ = (("first", c_int64 * 3), ("count", c_int64 * 3))

    @classmethod
    def of(cls, ranges):
        first, count = zip(*((a, b - a) for a, b in ranges), strict=True)
        return cls((c_int64 * 3)(*first), (c_int64 * 3)(*count))


class Rank:
    """A sum as a rank of a parallel host has it."""

    def __init__(self, method=2, tolerance=1e-10):
        self.lib, self.text = library.library(), ctypes.create_string_buffer(512)
        self.handle = library.Handle("ewald", byref(SPEC))
        self.transform = Transform()
        self.lib.cf_ewald_slab(self.handle, ctypes.c_double(VACUUM))
        self("method", c_int32(method), ctypes.c_double(tolerance), byref(self.transform.given))

    def code(self, name, *given):
        given = [x.ctypes.data if isinstance(x, np.ndarray) else x for x in given]
        return getattr(self.lib, f"cf_ewald_{name}")(self.handle, *given, self.text)

    def __call__(self, name, *given):
        library.raise_for(self.code(name, *given), self.text.value.decode())


def charges(n=400, n_q=2):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, n_q)), rng.uniform(0.05, 0.9, (n, 3)) @ CELL


def axis_ranges(size, parts):
    ends = [k * size // parts for k in range(parts + 1)]
    return list(pairwise(ends))


def places(first, count, size):
    return (first + np.arange(count)) % size


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-10])
@pytest.mark.parametrize("periodic", [1, 4], ids=["box", "slab"])
def test_bricks_with_transforms_of_the_host(periodic, tolerance, half):
    """As ranks do it: 2 x 1 x 2 bricks in space, 1 x 3 x 1 in wave numbers."""
    q, r = charges()
    n, n_q = q.shape
    options = {"slab_vacuum": VACUUM, "method": "mesh", "tolerance": tolerance}
    want = EwaldSum(SPEC, **options).evaluate(q, r, CELL, periodic=periodic, n_threads=1)
    ranks = [Rank(tolerance=tolerance) for _ in range(4)]
    mesh, size = Mesh(), c_int64()
    for rank in ranks:
        rank("cell", CELL, periodic, n, n_q, byref(size))
        rank("mesh", byref(mesh))
    shape, w = tuple(mesh.size), mesh.width
    real = np.float32 if mesh.precision == 32 else np.float64
    assert mesh.precision == (32 if tolerance == 1e-5 else 64)
    box = CELL.copy()
    if periodic == 4:
        normal = np.cross(CELL[0], CELL[1])
        normal /= np.linalg.norm(normal)
        box[2] = normal * (abs(normal @ CELL[2]) + VACUUM)
    fraction = (r @ np.linalg.inv(box)) % 1.0
    begin = np.ceil(fraction * shape - 0.5 * w).astype(int) % shape
    ranges = [
        (x, (0, shape[1]), z) for x in axis_ranges(shape[0], 2) for z in axis_ranges(shape[2], 2)
    ]
    inside = [
        np.all([(a <= b) & (b < e) for (a, e), b in zip(x, begin.T, strict=True)], 0)
        for x in ranges
    ]
    parts = [(q[i].copy(), r[i].copy()) for i in inside]
    halo = [tuple(e - a + w - 1 for a, e in x) for x in ranges]

    whole, moments = np.zeros((n_q, *shape)), np.zeros((3, n_q))
    for rank, (qs, rs), x, size3 in zip(ranks, parts, ranges, halo, strict=True):
        grid = np.full((n_q, *size3[:2], size3[2] + PAD), np.nan, real)
        rank("spread", byref(Brick.of(x)), c_int64(len(qs)), qs, rs, grid)
        assert not grid[..., size3[2] :].any()
        index = np.ix_(*(places(a, c, s) for (a, _), c, s in zip(x, size3, shape, strict=True)))
        for c in range(n_q):
            np.add.at(whole[c], index, grid[c, ..., : size3[2]])
        rank("moments", c_int64(len(qs)), qs, rs, moments)
    modes = (np.fft.rfftn if half else np.fft.fftn)(whole, axes=(1, 2, 3))
    complex_type = np.complex64 if real == np.float32 else np.complex128
    virials = np.zeros((4, 3, 3))
    for k, (a, e) in enumerate(axis_ranges(shape[1], 3)):
        part = np.ascontiguousarray(modes[:, :, a:e], complex_type)
        brick = Brick.of([(0, shape[0]), (a, e), (0, modes.shape[3])])
        ranks[k]("multiply", byref(brick), int(half), part, virials[k])
        modes[:, :, a:e] = part
    points = shape[0] * shape[1] * shape[2]
    if half:
        whole = np.fft.irfftn(modes, shape, axes=(1, 2, 3)) * points
    else:
        whole = np.fft.ifftn(modes, axes=(1, 2, 3)).real * points
    found = [np.zeros_like(x) for x in want[:3]]
    for rank, (qs, rs), i, x, size3, virial in zip(
        ranks, parts, inside, ranges, halo, virials, strict=True
    ):
        grid = np.zeros((n_q, *size3[:2], size3[2] + PAD), real)
        index = np.ix_(*(places(a, c, s) for (a, _), c, s in zip(x, size3, shape, strict=True)))
        for c in range(n_q):
            grid[c, ..., : size3[2]] = whole[c][index]
        results = [np.empty_like(qs), np.empty_like(qs), np.zeros_like(rs)]
        brick = Brick.of(x)
        rank("gather", byref(brick), c_int64(len(qs)), qs, rs, grid, moments, *results, virial)
        for to, part in zip(found, results, strict=True):
            to[i] = part
    limit = 3e-6 if real == np.float32 else 1e-11
    for got, expected in zip([*found, virials.sum(0)], want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=limit * np.abs(expected).max())


def test_parts_out_of_order_are_refused():
    q, r = charges(5)
    n, size, mesh = c_int64(5), c_int64(), Mesh()
    out, sums = (
        [np.zeros_like(q), np.zeros_like(q), np.zeros_like(r), np.zeros((3, 3))],
        np.zeros(9),
    )
    brick, grid, moments = Brick.of([(0, 9)] * 3), np.zeros(9), np.zeros((3, 2))
    calls = {
        "sums": (n, q, r, sums),
        "finish": (n, q, r, sums, *out),
        "mesh": (byref(mesh),),
        "spread": (byref(brick), n, q, r, grid),
        "multiply": (byref(brick), 0, grid, out[3]),
        "moments": (n, q, r, moments),
        "gather": (byref(brick), n, q, r, grid, moments, *out),
    }
    rank = Rank()
    for name, given in calls.items():
        assert rank.code(name, *given) == ORDER, name
        assert rank.text.value == b"long range: cf_ewald_cell begins a sum"
    assert rank.code("cell", np.zeros((3, 3)), 1, 5, 2, byref(size)) == library.INVALID
    assert rank.code("sums", *calls["sums"]) == ORDER  # that one did not begin
    direct = Rank(method=1)
    direct("cell", CELL, 1, 5, 2, byref(size))
    direct("mesh", byref(mesh))
    assert mesh.width == 0
    for name in ("spread", "multiply", "gather"):
        assert direct.code(name, *calls[name]) == ORDER
        assert direct.text.value == b"long range: this sum is direct; cf_ewald_mesh tells"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0, 5, 2), b"periodic: expected 1, or 2 + a: sums over k have parts, got 0"),
        ((1, -1, 2), b"n_all, n_q: expected 0 or more atoms, 1 or more channels, got -1, 2"),
        ((1, 5, 0), b"n_all, n_q: expected 0 or more atoms, 1 or more channels, got 5, 0"),
        ((7, 5, 2), b"pbc: expected all or no directions periodic, or two with a vacuum above 0"),
    ],
)
def test_sums_that_make_no_sense_are_refused(given, text):
    rank = Rank()
    assert rank.code("cell", CELL, *given, byref(c_int64())) == library.INVALID
    assert rank.text.value.startswith(text)


def test_bricks_that_do_not_hold_their_atoms_are_refused():
    q, r = charges(50)
    rank, mesh, size = Rank(), Mesh(), c_int64()
    rank("cell", CELL, 1, 50, 2, byref(size))
    rank("mesh", byref(mesh))
    grid = np.zeros(2 * np.prod([s + mesh.width + PAD for s in mesh.size]))
    small = Brick.of([(0, 2), (0, mesh.size[1]), (0, mesh.size[2])])
    given = (c_int64(50), q, r, grid)
    assert rank.code("spread", byref(small), *given) == library.INVALID
    assert rank.text.value.startswith(b"brick: expected one where the stencils of all atoms begin")
    for wrong in ([(-1, 2)] * 3, [(0, 0)] * 3, [(0, mesh.size[0] + 1)] * 3):
        assert rank.code("spread", byref(Brick.of(wrong)), *given) == library.INVALID
        assert rank.text.value.startswith(b"brick: expected a part of the grid along axis 0")


def test_a_rank_may_have_no_atoms():
    q, r = charges(60)
    none = np.zeros((0, 2)), np.zeros((0, 3))
    for method in ("direct", "mesh"):
        options = {"slab_vacuum": VACUUM, "method": method}
        want = EwaldSum(SPEC, **options).evaluate(q, r, CELL, periodic=1, n_threads=1)
        ranks = [EwaldSum(SPEC, **options) for _ in range(2)]
        total = sum(e.sums(*x, CELL, n_all=60) for e, x in zip(ranks, ((q, r), none), strict=True))
        found = [e.finish(total, *x) for e, x in zip(ranks, ((q, r), none), strict=True)]
        assert [x.shape for x in found[1]] == [(0, 2), (0, 2), (0, 3), (3, 3)]
        for got, expected in zip(found[0], want, strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10, 3e-12])
def test_the_library_chooses_as_python_does(tolerance):
    """Method, window, precision and grid, for boxes of all shapes and numbers of atoms."""
    rng, mesh, size = np.random.default_rng(0), Mesh(), c_int64()
    sphere, methods = Sphere(SPEC.dl, SPEC.sigma), set()
    for _ in range(60):
        n, n_q = int(10 ** rng.uniform(0, 5)), int(rng.integers(1, 6))
        shape = np.eye(3) * rng.choice([1.0, 1.0, 3.0, 20.0], 3) + 0.2 * rng.normal(size=(3, 3))
        volume = n / rng.choice([0.1, 0.03, 1e-4])
        cell = shape * (volume / abs(np.linalg.det(shape))) ** (1.0 / 3.0)
        want = choose("auto", tolerance, n, n_q, cell, sphere)
        try:
            require_size(want, n, volume)
        except InputError:
            continue
        rank = Rank(method=0, tolerance=tolerance)
        rank("cell", cell, 1, n, n_q, byref(size))
        rank("mesh", byref(mesh))
        methods.add(want.method)
        if want.plan is None:
            assert mesh.width == 0
            continue
        bits = 32 if want.plan.dtype == torch.float32 else 64
        assert (mesh.width, mesh.precision) == (want.plan.window.width, bits)
        assert (tuple(mesh.size), tuple(mesh.modes)) == (want.plan.size, want.plan.modes)
    assert methods == {"direct", "mesh"}


def test_bricks_that_begin_anywhere():
    """An atom is in a brick or refused, also where both begin on different sides of point 0."""
    rank = Rank(tolerance=1e-10)
    mesh, size = Mesh(), c_int64()
    rank("cell", CELL, 1, 1, 1, byref(size))
    rank("mesh", byref(mesh))
    n, w = mesh.size[0], mesh.width
    q = np.ones((1, 1))
    for begin in (-w // 2, -3, 0, 5, n - w // 2 - 1):
        r = ((begin + 0.5 * w - 0.25) / n % 1.0) * CELL[:1]  # along the first vector
        for first in range(n):
            brick = Brick.of([(first, first + 2), (0, mesh.size[1]), (0, mesh.size[2])])
            grid = np.full((1, w + 1, mesh.size[1] + w - 1, mesh.size[2] + w - 1 + PAD), np.nan)
            code = rank.code("spread", byref(brick), c_int64(1), q, r, grid)
            inside = (begin - first) % n < 2
            assert (code == 0) == inside, (begin, first)
            if inside:
                assert np.isfinite(grid).all()
                assert grid.any()
