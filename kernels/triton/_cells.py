"""Device code of cells, and the layout of the tables of the neighbour list.

``grids`` has FIELDS integers of each system: numbers of bins, how many bins away neighbours are,
how many bins an atom looks at, how many cells away images are, whether periodic (three each, by
axis), the first bin, and the first of the system's shifts.

``settings``: reach of the list, its square, width of bins in open directions, skin.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(17)
N_BINS, FAR, WINDOW, IMAGES, PERIODIC = (tl.constexpr(3 * k) for k in range(5))  # for each axis
FIRST_BIN, FIRST_SHIFT = tl.constexpr(15), tl.constexpr(16)
REACH, REACH2, BIN_WIDTH, SKIN = (tl.constexpr(k) for k in range(4))  # of ``settings``


@triton.jit
def lattice_vectors(cells, frames, grid, system, mask):
    """Return the lattice vectors of systems, those of the frame in open directions.

    Masked lanes get unit vectors, which have an inverse.
    """
    h = ()
    for k in tl.static_range(9):
        periodic = tl.load(grid + PERIODIC + k // 3, mask=mask, other=0)
        own = tl.load(cells + 9 * system + k, mask=mask, other=1.0 if k % 4 == 0 else 0.0)
        frame = tl.load(frames + 9 * system + k, mask=mask, other=1.0 if k % 4 == 0 else 0.0)
        h = h + (tl.where(periodic > 0, own, frame),)
    return h


@triton.jit
def reciprocal(h):
    """Return the vectors c_k with c_k . h_l = delta_kl."""
    c0 = h[4] * h[8] - h[5] * h[7]
    c1 = h[5] * h[6] - h[3] * h[8]
    c2 = h[3] * h[7] - h[4] * h[6]
    v = 1.0 / (h[0] * c0 + h[1] * c1 + h[2] * c2)
    return (
        c0 * v,
        c1 * v,
        c2 * v,
        (h[7] * h[2] - h[8] * h[1]) * v,
        (h[8] * h[0] - h[6] * h[2]) * v,
        (h[6] * h[1] - h[7] * h[0]) * v,
        (h[1] * h[5] - h[2] * h[4]) * v,
        (h[2] * h[3] - h[0] * h[5]) * v,
        (h[0] * h[4] - h[1] * h[3]) * v,
    )
