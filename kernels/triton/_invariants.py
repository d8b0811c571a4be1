"""Device code of the contraction of given moments A, and its gradient.

A program has BLOCK_ATOM atoms, one for each lane, at one radial function and channel. The
polynomials are device functions (``kernels/polynomials.py``).
"""

import triton
import triton.language as tl


@triton.jit
def atoms_of_group(n, GROUPS: tl.constexpr, BLOCK_ATOM: tl.constexpr):
    """Return atoms, whether they exist, and the number of the group of channels.

    Groups of one block of atoms run close in time: they read the same rho.
    """
    program = tl.program_id(0)
    atom = (program // GROUPS) * BLOCK_ATOM + tl.arange(0, BLOCK_ATOM)
    return atom, atom < n, program % GROUPS


@triton.jit
def add_gradient(
    moments,
    grad_b,
    grad_a,
    q,
    channel,
    stride,
    atom,
    exists,
    GRADIENT: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    C: tl.constexpr,
    ADD: tl.constexpr,
):
    """Write dE/dA of one channel to ``grad_a``, or add it."""
    slopes = ()
    for f in tl.static_range(N_INVARIANTS):
        row = (q * N_INVARIANTS + f) * C + channel
        slopes = slopes + (tl.load(grad_b + row * stride + atom, mask=exists, other=0.0),)
    found = GRADIENT(moments, slopes)
    for m in tl.static_range(N_MONOMIALS):
        place = grad_a + ((q * N_MONOMIALS + m) * C + channel) * stride + atom
        value = found[m]
        if ADD:
            value += tl.load(place, mask=exists, other=0.0)
        tl.store(place, value, mask=exists)


@triton.jit
def _load_moments(a, q, channel, stride, atom, exists, N_MONOMIALS: tl.constexpr, C: tl.constexpr):
    moments = ()
    for m in tl.static_range(N_MONOMIALS):
        row = (q * N_MONOMIALS + m) * C + channel
        moments = moments + (tl.load(a + row * stride + atom, mask=exists, other=0.0),)
    return moments


@triton.jit(do_not_specialize=["n"])
def contract_forward(
    a,
    b,
    n,
    INVARIANTS: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    N_RADIAL: tl.constexpr,
    C: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write B of A."""
    atom, exists, group = atoms_of_group(n, N_RADIAL * C, BLOCK_ATOM)
    q, channel, stride = group // C, group % C, n
    found = INVARIANTS(_load_moments(a, q, channel, stride, atom, exists, N_MONOMIALS, C))
    for f in tl.static_range(N_INVARIANTS):
        tl.store(b + ((q * N_INVARIANTS + f) * C + channel) * stride + atom, found[f], mask=exists)


@triton.jit(do_not_specialize=["n"])
def contract_backward(
    a,
    grad_b,
    grad_a,
    n,
    GRADIENT: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    N_RADIAL: tl.constexpr,
    C: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write dE/dA of A and dE/dB, or add it."""
    atom, exists, group = atoms_of_group(n, N_RADIAL * C, BLOCK_ATOM)
    q, channel, stride = group // C, group % C, n
    moments = _load_moments(a, q, channel, stride, atom, exists, N_MONOMIALS, C)
    add_gradient(
        moments,
        grad_b,
        grad_a,
        q,
        channel,
        stride,
        atom,
        exists,
        GRADIENT,
        N_MONOMIALS,
        N_INVARIANTS,
        C,
        ADD,
    )


@triton.jit(do_not_specialize=["n"])
def contract_jvps(
    a,
    grad_b,
    tangent,
    jvp_b,
    jvp_grad,
    n,
    JVPS: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    N_RADIAL: tl.constexpr,
    C: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``tangent``.

    It serves training and Hessians: everything is in registers, which spill from l_max 4 on.
    """
    atom, exists, group = atoms_of_group(n, N_RADIAL * C, BLOCK_ATOM)
    q, channel, stride = group // C, group % C, n
    moments = _load_moments(a, q, channel, stride, atom, exists, N_MONOMIALS, C)
    slopes = _load_moments(grad_b, q, channel, stride, atom, exists, N_INVARIANTS, C)
    change = _load_moments(tangent, q, channel, stride, atom, exists, N_MONOMIALS, C)
    found = JVPS(moments, slopes, change)
    for f in tl.static_range(N_INVARIANTS):
        place = jvp_b + ((q * N_INVARIANTS + f) * C + channel) * stride + atom
        tl.store(place, found[f], mask=exists)
    for m in tl.static_range(N_MONOMIALS):
        place = jvp_grad + ((q * N_MONOMIALS + m) * C + channel) * stride + atom
        tl.store(place, found[N_INVARIANTS + m], mask=exists)
