"""Device code of the contraction: A is made of rho and contracted in registers; and its gradient.

A program has BLOCK_ATOM atoms, one for each lane, at one radial function q and GROUP channels c
that share the sender's embedding component a. The polynomials are device functions
(``kernels/polynomials.py``).
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import get, length
from cace_fast.kernels.triton._invariants import add_gradient, atoms_of_group


@triton.jit
def _mixed(
    rho,
    atom_first,
    seg_species,
    sender,
    mixing,
    atom,
    exists,
    n_seg,
    q,
    channel,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    DEGREE: tl.constexpr,
    FIRST_MONOMIAL: tl.constexpr,
    N_DEGREES: tl.constexpr,
    N_RADIAL: tl.constexpr,
    GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Return sum_n W_l[n, q, c] sum_s h_s[s, a] rho_s[n, m], at g len(DEGREE) + m for channel g.

    DEGREE has the degrees of the wanted monomials, which begin at FIRST_MONOMIAL of N_MONOMIALS.
    UNROLL radial functions are loaded together, so that their latencies overlap.
    """
    N_PART: tl.constexpr = length(DEGREE)
    first = tl.load(atom_first + atom, mask=exists, other=0)
    end = tl.load(atom_first + atom + 1, mask=exists, other=0)
    steps = tl.max(end - first, 0)
    sums = ()
    for _ in tl.static_range(GROUP * N_PART):
        sums = sums + (tl.zeros((BLOCK_ATOM,), rho.dtype.element_ty),)
    for n in range(0, N_RBF, UNROLL):
        inner = ()
        for _ in tl.static_range(UNROLL * N_PART):
            inner = inner + (tl.zeros((BLOCK_ATOM,), rho.dtype.element_ty),)
        for step in range(steps):
            segment = first + step
            inside = segment < end
            species = tl.load(seg_species + segment, mask=inside, other=0)
            h = tl.load(sender + species * K + channel // K, mask=inside, other=0.0)
            added = ()
            for t in tl.static_range(UNROLL):
                for m in tl.static_range(N_PART):
                    row = ((n + t) * N_MONOMIALS + FIRST_MONOMIAL + m) * n_seg
                    value = tl.load(rho + row + segment, mask=inside, other=0.0)
                    added = added + (inner[t * N_PART + m] + h * value,)
            inner = added
        for t in tl.static_range(UNROLL):
            place = mixing + ((n + t) * N_DEGREES * N_RADIAL + q) * K * K + channel
            mixed = ()
            for g in tl.static_range(GROUP):
                w = ()
                for degree in tl.static_range(N_DEGREES):
                    w = w + (tl.load(place + degree * N_RADIAL * K * K + g),)
                for m in tl.static_range(N_PART):
                    mixed = mixed + (
                        sums[g * N_PART + m] + w[get(DEGREE, m)] * inner[t * N_PART + m],
                    )
            sums = mixed
    return sums


@triton.jit(do_not_specialize=["n", "n_seg"])
def contraction_forward(
    rho,
    atom_first,
    seg_species,
    species,
    sender,
    receiver,
    mixing,
    a,
    b,
    n,
    n_seg,
    INVARIANTS: tl.constexpr,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    DEGREE: tl.constexpr,
    FIRST_MONOMIAL: tl.constexpr,
    N_DEGREES: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    N_RADIAL: tl.constexpr,
    GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    WRITE_A: tl.constexpr,
    WRITE_B: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write A and B of rho, or one of them; B needs all monomials, A takes any run of them."""
    N_PART: tl.constexpr = length(DEGREE)
    atom, exists, group = atoms_of_group(n, N_RADIAL * K * K // GROUP, BLOCK_ATOM)
    q, channel = (group // (K * K // GROUP), group % (K * K // GROUP) * GROUP)
    sums = _mixed(
        rho,
        atom_first,
        seg_species,
        sender,
        mixing,
        atom,
        exists,
        n_seg,
        q,
        channel,
        N_RBF,
        K,
        N_MONOMIALS,
        DEGREE,
        FIRST_MONOMIAL,
        N_DEGREES,
        N_RADIAL,
        GROUP,
        UNROLL,
        BLOCK_ATOM,
    )
    stride = n
    own = tl.load(species + atom, mask=exists, other=0) * K + channel % K
    for g in tl.static_range(GROUP):
        h = tl.load(receiver + own + g, mask=exists, other=0.0)
        moments = ()
        for m in tl.static_range(N_PART):
            moments = moments + (sums[g * N_PART + m] * h,)
        if WRITE_A:
            for m in tl.static_range(N_PART):
                row = (q * N_MONOMIALS + FIRST_MONOMIAL + m) * (K * K) + channel + g
                tl.store(a + row * stride + atom, moments[m], mask=exists)
        if WRITE_B:
            found = INVARIANTS(moments)
            for f in tl.static_range(N_INVARIANTS):
                row = (q * N_INVARIANTS + f) * (K * K) + channel + g
                tl.store(b + row * stride + atom, found[f], mask=exists)


@triton.jit(do_not_specialize=["n", "n_seg"])
def contraction_backward(
    rho,
    atom_first,
    seg_species,
    species,
    sender,
    receiver,
    mixing,
    grad_b,
    grad_a,
    n,
    n_seg,
    GRADIENT: tl.constexpr,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    DEGREE: tl.constexpr,
    FIRST_MONOMIAL: tl.constexpr,
    N_DEGREES: tl.constexpr,
    N_INVARIANTS: tl.constexpr,
    N_RADIAL: tl.constexpr,
    GROUP: tl.constexpr,
    UNROLL: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write dE/dA of dE/dB; A is made of rho again."""
    N_PART: tl.constexpr = length(DEGREE)
    atom, exists, group = atoms_of_group(n, N_RADIAL * K * K // GROUP, BLOCK_ATOM)
    q, channel = (group // (K * K // GROUP), group % (K * K // GROUP) * GROUP)
    sums = _mixed(
        rho,
        atom_first,
        seg_species,
        sender,
        mixing,
        atom,
        exists,
        n_seg,
        q,
        channel,
        N_RBF,
        K,
        N_MONOMIALS,
        DEGREE,
        FIRST_MONOMIAL,
        N_DEGREES,
        N_RADIAL,
        GROUP,
        UNROLL,
        BLOCK_ATOM,
    )
    own = tl.load(species + atom, mask=exists, other=0) * K + channel % K
    for g in tl.static_range(GROUP):
        h = tl.load(receiver + own + g, mask=exists, other=0.0)
        moments = ()
        for m in tl.static_range(N_PART):
            moments = moments + (sums[g * N_PART + m] * h,)
        add_gradient(
            moments,
            grad_b,
            grad_a,
            q,
            channel + g,
            n,
            atom,
            exists,
            GRADIENT,
            N_PART,
            N_INVARIANTS,
            K * K,
            ADD,
        )


@triton.jit(do_not_specialize=["n", "n_seg"])
def mixing_backward(
    grad_a,
    atom_first,
    seg_species,
    species,
    sender,
    receiver,
    mixing,
    grad_rho,
    n,
    n_seg,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    N_RADIAL: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write dE/drho of dE/dA: one monomial for each program, one atom for each lane."""
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    atom, exists, m = atoms_of_group(n, N_MONOMIALS, BLOCK_ATOM)
    degree = 0
    for k in tl.static_range(1, N_MONOMIALS):
        if get(DEGREE, k) != get(DEGREE, k - 1):
            degree += (m >= k).to(tl.int32)
    own = tl.load(species + atom, mask=exists, other=0) * K
    h = ()
    for k in tl.static_range(K):
        h = h + (tl.load(receiver + own + k, mask=exists, other=0.0),)
    sums = ()
    for _ in tl.static_range(K * N_RBF):
        sums = sums + (tl.zeros((BLOCK_ATOM,), grad_a.dtype.element_ty),)
    for q0 in range(0, N_RADIAL, UNROLL):
        for t in tl.static_range(UNROLL):
            q = q0 + t
            slope = grad_a + (q * N_MONOMIALS + m) * (K * K) * n + atom
            weight = mixing + (degree * N_RADIAL + q) * K * K
            added = ()
            for k in tl.static_range(K):
                slopes = ()
                for j in tl.static_range(K):
                    value = tl.load(slope + (k * K + j) * n, mask=exists, other=0.0)
                    slopes = slopes + (value * h[j],)
                for i in tl.static_range(N_RBF):
                    total = sums[k * N_RBF + i]
                    for j in tl.static_range(K):
                        w = tl.load(weight + i * (N_DEGREES * N_RADIAL * K * K) + (k * K + j))
                        total += w * slopes[j]
                    added = added + (total,)
            sums = added
    _spread(
        sums,
        atom_first,
        seg_species,
        sender,
        grad_rho + m * n_seg,
        atom,
        exists,
        n_seg,
        N_RBF,
        K,
        N_MONOMIALS,
    )


@triton.jit
def _spread(
    sums,
    atom_first,
    seg_species,
    sender,
    grad_rho,
    atom,
    exists,
    n_seg,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
):
    """Write sum_a h_s[s, a] of ``sums`` [a, n] to every segment of the atoms."""
    stride = n_seg * N_MONOMIALS
    first = tl.load(atom_first + atom, mask=exists, other=0)
    end = tl.load(atom_first + atom + 1, mask=exists, other=0)
    for step in range(tl.max(end - first, 0)):
        segment = first + step
        inside = segment < end
        found = tl.load(seg_species + segment, mask=inside, other=0) * K
        h = ()
        for k in tl.static_range(K):
            h = h + (tl.load(sender + found + k, mask=inside, other=0.0),)
        for i in tl.static_range(N_RBF):
            value = h[0] * sums[i]
            for k in tl.static_range(1, K):
                value += h[k] * sums[k * N_RBF + i]
            tl.store(grad_rho + i * stride + segment, value, mask=inside)
