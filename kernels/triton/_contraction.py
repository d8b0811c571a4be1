"""Device code of the contraction: A made of rho, contracted in registers, and all of it backwards.

A program owns BL atoms, one for each lane, at one radial function q and G channels c that share the
sender's embedding component a. The polynomials are device functions (``kernels/polynomials.py``).
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import get, length


@triton.jit
def _mixed(rho, atom_first, seg_species, sender, mixing, atom, exists, n_seg, q, channel,
           NB: tl.constexpr, K: tl.constexpr, NA: tl.constexpr, DEG: tl.constexpr,
           M0: tl.constexpr, NDEG: tl.constexpr, RADIAL: tl.constexpr, G: tl.constexpr,
           TURN: tl.constexpr, BL: tl.constexpr):  # fmt: skip
    """Return sum_n W_l[n, q, c] sum_s h_s[s, a] rho_s[n, m] for G channels: index g len(DEG) + m.

    DEG are the degrees of the monomials M0, M0 + 1, ... that are wanted, of NA in all. TURN radial
    functions are taken at once, so that their loads are under way together.
    """
    NL: tl.constexpr = length(DEG)
    first = tl.load(atom_first + atom, mask=exists, other=0)
    end = tl.load(atom_first + atom + 1, mask=exists, other=0)
    steps = tl.max(end - first, 0)
    sums = ()
    for _ in tl.static_range(G * NL):
        sums = sums + (tl.zeros((BL,), rho.dtype.element_ty),)
    for n in range(0, NB, TURN):
        inner = ()
        for _ in tl.static_range(TURN * NL):
            inner = inner + (tl.zeros((BL,), rho.dtype.element_ty),)
        for step in range(steps):
            segment = first + step
            inside = segment < end
            species = tl.load(seg_species + segment, mask=inside, other=0)
            h = tl.load(sender + species * K + channel // K, mask=inside, other=0.0)
            added = ()
            for t in tl.static_range(TURN):
                for m in tl.static_range(NL):
                    row = ((n + t) * NA + M0 + m) * n_seg
                    value = tl.load(rho + row + segment, mask=inside, other=0.0)
                    added = added + (inner[t * NL + m] + h * value,)
            inner = added
        for t in tl.static_range(TURN):
            place = mixing + ((n + t) * NDEG * RADIAL + q) * K * K + channel
            mixed = ()
            for g in tl.static_range(G):
                w = ()
                for degree in tl.static_range(NDEG):
                    w = w + (tl.load(place + degree * RADIAL * K * K + g),)
                for m in tl.static_range(NL):
                    mixed = mixed + (sums[g * NL + m] + w[get(DEG, m)] * inner[t * NL + m],)
            sums = mixed
    return sums


@triton.jit
def _place(n, GROUPS: tl.constexpr, BL: tl.constexpr):
    """Return atoms, whether they exist, and the number of the group of channels.

    Groups of one block of atoms are neighbours in time: they read the same rho.
    """
    program = tl.program_id(0)
    atom = (program // GROUPS) * BL + tl.arange(0, BL)
    return atom, atom < n, program % GROUPS


@triton.jit(do_not_specialize=["n", "n_seg"])
def contraction_forward(
    rho, atom_first, seg_species, species, sender, receiver, mixing, a, b, n, n_seg,
    INVARIANTS: tl.constexpr, NB: tl.constexpr, K: tl.constexpr, NA: tl.constexpr,
    DEG: tl.constexpr, M0: tl.constexpr, NDEG: tl.constexpr, NF: tl.constexpr,
    RADIAL: tl.constexpr, G: tl.constexpr, TURN: tl.constexpr, WRITE_A: tl.constexpr,
    WRITE_B: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write A and B of rho, or one of them; B needs all monomials, A takes any run of them."""
    NL: tl.constexpr = length(DEG)
    atom, exists, group = _place(n, RADIAL * K * K // G, BL)
    q, channel = group // (K * K // G), group % (K * K // G) * G
    sums = _mixed(rho, atom_first, seg_species, sender, mixing, atom, exists, n_seg, q, channel,
                  NB, K, NA, DEG, M0, NDEG, RADIAL, G, TURN, BL)  # fmt: skip
    stride = n
    own = tl.load(species + atom, mask=exists, other=0) * K + channel % K
    for g in tl.static_range(G):
        h = tl.load(receiver + own + g, mask=exists, other=0.0)
        moments = ()
        for m in tl.static_range(NL):
            moments = moments + (sums[g * NL + m] * h,)
        if WRITE_A:
            for m in tl.static_range(NL):
                row = (q * NA + M0 + m) * (K * K) + channel + g
                tl.store(a + row * stride + atom, moments[m], mask=exists)
        if WRITE_B:
            found = INVARIANTS(moments)
            for f in tl.static_range(NF):
                row = (q * NF + f) * (K * K) + channel + g
                tl.store(b + row * stride + atom, found[f], mask=exists)


@triton.jit
def _add_gradient(moments, grad_b, grad_a, q, channel, stride, atom, exists,
                  GRADIENT: tl.constexpr, NL: tl.constexpr, NF: tl.constexpr, C: tl.constexpr,
                  ADD: tl.constexpr):  # fmt: skip
    """Write dE/dA of one channel to ``grad_a``, or add it to what is there."""
    slopes = ()
    for f in tl.static_range(NF):
        row = (q * NF + f) * C + channel
        slopes = slopes + (tl.load(grad_b + row * stride + atom, mask=exists, other=0.0),)
    found = GRADIENT(moments, slopes)
    for m in tl.static_range(NL):
        place = grad_a + ((q * NL + m) * C + channel) * stride + atom
        value = found[m]
        if ADD:
            value += tl.load(place, mask=exists, other=0.0)
        tl.store(place, value, mask=exists)


@triton.jit(do_not_specialize=["n", "n_seg"])
def contraction_backward(
    rho, atom_first, seg_species, species, sender, receiver, mixing, grad_b, grad_a, n, n_seg,
    GRADIENT: tl.constexpr, NB: tl.constexpr, K: tl.constexpr, NA: tl.constexpr,
    DEG: tl.constexpr, M0: tl.constexpr, NDEG: tl.constexpr, NF: tl.constexpr,
    RADIAL: tl.constexpr, G: tl.constexpr, TURN: tl.constexpr, ADD: tl.constexpr,
    BL: tl.constexpr,
):  # fmt: skip
    """Write dE/dA of dE/dB, with A made of rho again."""
    NL: tl.constexpr = length(DEG)
    atom, exists, group = _place(n, RADIAL * K * K // G, BL)
    q, channel = group // (K * K // G), group % (K * K // G) * G
    sums = _mixed(rho, atom_first, seg_species, sender, mixing, atom, exists, n_seg, q, channel,
                  NB, K, NA, DEG, M0, NDEG, RADIAL, G, TURN, BL)  # fmt: skip
    own = tl.load(species + atom, mask=exists, other=0) * K + channel % K
    for g in tl.static_range(G):
        h = tl.load(receiver + own + g, mask=exists, other=0.0)
        moments = ()
        for m in tl.static_range(NL):
            moments = moments + (sums[g * NL + m] * h,)
        _add_gradient(moments, grad_b, grad_a, q, channel + g, n, atom, exists,
                      GRADIENT, NL, NF, K * K, ADD)  # fmt: skip


@triton.jit
def _load_moments(a, q, channel, stride, atom, exists, NL: tl.constexpr, C: tl.constexpr):
    moments = ()
    for m in tl.static_range(NL):
        row = (q * NL + m) * C + channel
        moments = moments + (tl.load(a + row * stride + atom, mask=exists, other=0.0),)
    return moments


@triton.jit(do_not_specialize=["n"])
def contract_forward(
    a, b, n, INVARIANTS: tl.constexpr, NL: tl.constexpr, NF: tl.constexpr, RADIAL: tl.constexpr,
    C: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write B of A."""
    atom, exists, group = _place(n, RADIAL * C, BL)
    q, channel, stride = group // C, group % C, n
    found = INVARIANTS(_load_moments(a, q, channel, stride, atom, exists, NL, C))
    for f in tl.static_range(NF):
        tl.store(b + ((q * NF + f) * C + channel) * stride + atom, found[f], mask=exists)


@triton.jit(do_not_specialize=["n"])
def contract_backward(
    a, grad_b, grad_a, n, GRADIENT: tl.constexpr, NL: tl.constexpr, NF: tl.constexpr,
    RADIAL: tl.constexpr, C: tl.constexpr, ADD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/dA of A and dE/dB, or add it to what is there."""
    atom, exists, group = _place(n, RADIAL * C, BL)
    q, channel, stride = group // C, group % C, n
    moments = _load_moments(a, q, channel, stride, atom, exists, NL, C)
    _add_gradient(moments, grad_b, grad_a, q, channel, stride, atom, exists,
                  GRADIENT, NL, NF, C, ADD)  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def contract_rates(
    a, grad_b, along, rate_b, rate_grad, n, RATES: tl.constexpr, NL: tl.constexpr,
    NF: tl.constexpr, RADIAL: tl.constexpr, C: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``along``.

    For training and Hessians: everything is in registers, which spill from l_max 4 on.
    """
    atom, exists, group = _place(n, RADIAL * C, BL)
    q, channel, stride = group // C, group % C, n
    moments = _load_moments(a, q, channel, stride, atom, exists, NL, C)
    slopes = _load_moments(grad_b, q, channel, stride, atom, exists, NF, C)
    change = _load_moments(along, q, channel, stride, atom, exists, NL, C)
    found = RATES(moments, slopes, change)
    for f in tl.static_range(NF):
        place = rate_b + ((q * NF + f) * C + channel) * stride + atom
        tl.store(place, found[f], mask=exists)
    for m in tl.static_range(NL):
        place = rate_grad + ((q * NL + m) * C + channel) * stride + atom
        tl.store(place, found[NF + m], mask=exists)


@triton.jit(do_not_specialize=["n", "n_seg"])
def mixing_backward(
    grad_a, atom_first, seg_species, species, sender, receiver, mixing, grad_rho, n, n_seg,
    NB: tl.constexpr, K: tl.constexpr, DEG: tl.constexpr, NDEG: tl.constexpr,
    RADIAL: tl.constexpr, TURN: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/drho of dE/dA: one monomial for each program, one atom for each lane."""
    NL: tl.constexpr = length(DEG)
    atom, exists, m = _place(n, NL, BL)
    degree = 0
    for k in tl.static_range(1, NL):
        if get(DEG, k) != get(DEG, k - 1):
            degree += (m >= k).to(tl.int32)
    own = tl.load(species + atom, mask=exists, other=0) * K
    h = ()
    for k in tl.static_range(K):
        h = h + (tl.load(receiver + own + k, mask=exists, other=0.0),)
    sums = ()
    for _ in tl.static_range(K * NB):
        sums = sums + (tl.zeros((BL,), grad_a.dtype.element_ty),)
    for q0 in range(0, RADIAL, TURN):
        for t in tl.static_range(TURN):
            q = q0 + t
            slope = grad_a + (q * NL + m) * (K * K) * n + atom
            weight = mixing + (degree * RADIAL + q) * K * K
            added = ()
            for k in tl.static_range(K):
                slopes = ()
                for j in tl.static_range(K):
                    value = tl.load(slope + (k * K + j) * n, mask=exists, other=0.0)
                    slopes = slopes + (value * h[j],)
                for i in tl.static_range(NB):
                    total = sums[k * NB + i]
                    for j in tl.static_range(K):
                        w = tl.load(weight + i * (NDEG * RADIAL * K * K) + (k * K + j))
                        total += w * slopes[j]
                    added = added + (total,)
            sums = added
    _spread(sums, atom_first, seg_species, sender, grad_rho + m * n_seg,
            atom, exists, n_seg, NB, K, NL)  # fmt: skip


@triton.jit
def _spread(sums, atom_first, seg_species, sender, grad_rho, atom, exists, n_seg,
            NB: tl.constexpr, K: tl.constexpr, NL: tl.constexpr):  # fmt: skip
    """Write sum_a h_s[s, a] of ``sums`` [a, n] to every segment of the atoms."""
    stride = n_seg * NL
    first = tl.load(atom_first + atom, mask=exists, other=0)
    end = tl.load(atom_first + atom + 1, mask=exists, other=0)
    for step in range(tl.max(end - first, 0)):
        segment = first + step
        inside = segment < end
        found = tl.load(seg_species + segment, mask=inside, other=0) * K
        h = ()
        for k in tl.static_range(K):
            h = h + (tl.load(sender + found + k, mask=inside, other=0.0),)
        for i in tl.static_range(NB):
            value = h[0] * sums[i]
            for k in tl.static_range(1, K):
                value += h[k] * sums[k * NB + i]
            tl.store(grad_rho + i * stride + segment, value, mask=inside)
