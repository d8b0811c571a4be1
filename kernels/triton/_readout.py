"""Device code of networks: one layer, forward or backward, for all read-outs at once.

out[h] = sum_f w[f, h] x[f] for BLOCK_HIDDEN rows h and ATOMS_PER_LANE times 32 atoms of a program:
every weight is read once for ATOMS_PER_LANE atoms of each lane. Products are sums of float32
products, never TF32.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import get, length


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _mish_tanh(x):
    """Return tanh(log(1 + e^x)) without a large exponential."""
    u = tl.exp(-tl.abs(x))
    positive = (1.0 + 2.0 * u) / (1.0 + 2.0 * u + 2.0 * u * u)
    negative = (u * u + 2.0 * u) / (u * u + 2.0 * u + 2.0)
    return tl.where(x >= 0.0, positive, negative)


@triton.jit
def _value(x, KIND: tl.constexpr):
    if KIND == "silu":
        return x * _sigmoid(x)
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    elif KIND == "tanh":
        return 2.0 * _sigmoid(2.0 * x) - 1.0
    elif KIND == "sigmoid":
        return _sigmoid(x)
    elif KIND == "elu":
        return tl.where(x > 0.0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "softplus":
        return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    else:
        tl.static_assert(KIND == "mish")
        return x * _mish_tanh(x)


@triton.jit
def _slope(x, KIND: tl.constexpr):
    if KIND == "silu":
        s = _sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    elif KIND == "relu":
        return tl.where(x > 0.0, 1.0, x * 0.0)
    elif KIND == "tanh":
        t = 2.0 * _sigmoid(2.0 * x) - 1.0
        return 1.0 - t * t
    elif KIND == "sigmoid":
        s = _sigmoid(x)
        return s * (1.0 - s)
    elif KIND == "elu":
        return tl.where(x > 0.0, 1.0, tl.exp(tl.minimum(x, 0.0)))
    elif KIND == "gelu":
        bell = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * bell
    elif KIND == "softplus":
        return _sigmoid(x)
    else:
        tl.static_assert(KIND == "mish")
        t = _mish_tanh(x)
        return t + x * (1.0 - t * t) * _sigmoid(x)


@triton.jit
def _activated(x, flag, KINDS: tl.constexpr):
    """Return x where the row's flag is 0, else activation number ``flag`` of it."""
    out = x
    for k in tl.static_range(length(KINDS)):
        out = tl.where(flag == k + 1, _value(x, get(KINDS, k)), out)
    return out


@triton.jit
def _activated_slope(x, flag, KINDS: tl.constexpr):
    out = x * 0.0 + 1.0
    for k in tl.static_range(length(KINDS)):
        out = tl.where(flag == k + 1, _slope(x, get(KINDS, k)), out)
    return out


@triton.jit
def _summed(x, row, n_rows, stride, atom, exists, PARTS: tl.constexpr):
    """Return row ``row`` of x [PARTS, n_rows, n], its parts added in order."""
    place = x + row * stride + atom
    parts = ()
    for k in tl.static_range(PARTS):
        parts = parts + (tl.load(place + k * n_rows * stride, mask=exists, other=0.0),)
    total = parts[0]
    for k in tl.static_range(1, PARTS):
        total += parts[k]
    return total


@triton.jit
def _inputs(
    x,
    flags,
    f,
    end,
    n_in,
    n,
    atom,
    KINDS: tl.constexpr,
    ACTIVATE: tl.constexpr,
    PARTS: tl.constexpr,
    UNROLL: tl.constexpr,
    ATOMS_PER_LANE: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Return UNROLL inputs of ATOMS_PER_LANE atoms of every lane, zero behind the end."""
    values = ()
    for t in tl.static_range(UNROLL):
        for k in tl.static_range(ATOMS_PER_LANE):
            own = atom + k * BLOCK_ATOM
            value = _summed(x, f + t, n_in, n, own, (own < n) & (f + t < end), PARTS)
            if ACTIVATE:
                flag = tl.load(flags + tl.minimum(f + t, n_in - 1))
                # an activation of zero may not be zero
                value = tl.where(f + t < end, _activated(value, flag, KINDS), 0.0)
            values = values + (value,)
    return values


@triton.jit(do_not_specialize=["n", "n_in", "n_out", "n_before", "per_part"])
def layer(
    x,
    w,
    bias,
    flags,
    z,
    out,
    n,
    n_in,
    n_out,
    n_before,
    per_part,
    STRIDE_W: tl.constexpr,
    KINDS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATE: tl.constexpr,
    SLOPE: tl.constexpr,
    X_PARTS: tl.constexpr,
    Z_PARTS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    UNROLL: tl.constexpr,
    ATOMS_PER_LANE: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
):
    """Write a layer's sums [parts, n_out, n]: a part of it for each run of ``per_part`` inputs.

    Rounding grows with the length of a chain of additions and the size of its sums: so there are
    parts, and the bias, which may be larger than all sums, is added last.

    ACTIVATE: inputs go through the activation that ``flags`` name. SLOPE: outputs are multiplied
    by the activation's derivative at z, for a backward pass. x and z may come in parts. The first
    part is written behind ``n_before`` parts of ``out``. UNROLL inputs are loaded together, so
    that their latencies overlap.
    """
    GROUPS: tl.constexpr = STRIDE_W // BLOCK_HIDDEN
    program = tl.program_id(0)
    part = tl.program_id(1)
    atom = (program // GROUPS) * (BLOCK_ATOM * ATOMS_PER_LANE) + tl.arange(0, BLOCK_ATOM)
    h = program % GROUPS * BLOCK_HIDDEN
    first = part * per_part
    end = tl.minimum(first + per_part, n_in)
    sums = ()
    for i in tl.static_range(BLOCK_HIDDEN):
        for _ in tl.static_range(ATOMS_PER_LANE):
            sums = sums + (tl.zeros((BLOCK_ATOM,), x.dtype.element_ty),)
    for f in range(first, end, UNROLL):
        values = _inputs(
            x,
            flags,
            f,
            end,
            n_in,
            n,
            atom,
            KINDS,
            ACTIVATE,
            X_PARTS,
            UNROLL,
            ATOMS_PER_LANE,
            BLOCK_ATOM,
        )
        for t in tl.static_range(UNROLL):
            row = w + tl.minimum(f + t, n_in - 1) * STRIDE_W + h
            added = ()
            for i in tl.static_range(BLOCK_HIDDEN):
                weight = tl.load(row + i)
                for k in tl.static_range(ATOMS_PER_LANE):
                    added = added + (
                        sums[i * ATOMS_PER_LANE + k] + values[t * ATOMS_PER_LANE + k] * weight,
                    )
            sums = added
    last = part == tl.num_programs(1) - 1
    for i in tl.static_range(BLOCK_HIDDEN):
        row = (n_before + part) * n_out + h + i
        more = tl.load(bias + h + i, mask=last, other=0.0) if BIAS else 0.0
        for k in tl.static_range(ATOMS_PER_LANE):
            own = atom + k * BLOCK_ATOM
            wanted = (own < n) & (h + i < n_out)
            value = sums[i * ATOMS_PER_LANE + k]
            if BIAS:
                value += more
            if SLOPE:
                before = _summed(z, h + i, n_out, n, own, wanted, Z_PARTS)
                flag = tl.load(flags + tl.minimum(h + i, n_out - 1))
                value *= _activated_slope(before, flag, KINDS)
            tl.store(out + row * n + own, value, mask=wanted)


@triton.jit
def _of_kind(x, KINDS: tl.constexpr, FLAG: tl.constexpr):
    """Return activation number FLAG of x, x itself for 0."""
    if FLAG == 0:
        return x
    else:
        return _value(x, get(KINDS, FLAG - 1))


@triton.jit
def _slope_of_kind(x, KINDS: tl.constexpr, FLAG: tl.constexpr):
    if FLAG == 0:
        return x * 0.0 + 1.0
    else:
        return _slope(x, get(KINDS, FLAG - 1))


@triton.jit
def _further_layers(pre, packed, NET: tl.constexpr, KINDS: tl.constexpr, FLAGS: tl.constexpr):
    """Return the inputs of the activations of all layers after the second one, after ``pre``."""
    for k in tl.static_range(1, length(NET)):
        inputs = ()
        for i in tl.static_range(get(NET, k, 0)):
            before = pre[get(NET, k - 1, 5) + i]
            inputs = inputs + (_of_kind(before, KINDS, get(FLAGS, get(NET, k - 1, 5) + i)),)
        for o in tl.static_range(get(NET, k, 1)):
            total = inputs[0] * 0.0
            for i in tl.static_range(get(NET, k, 0)):
                weight = tl.load(packed + (get(NET, k, 2) + o * get(NET, k, 4) + i))
                total += weight * inputs[i]
            pre = pre + (total + tl.load(packed + (get(NET, k, 3) + o)),)
    return pre


@triton.jit
def _back_to_second(grad, pre, packed, NET: tl.constexpr, KINDS: tl.constexpr, FLAGS: tl.constexpr):
    """Return dE/dz of the activations' inputs of the second layer, of dE/dy."""
    for back in tl.static_range(1, length(NET)):
        below = ()
        for i in tl.static_range(get(NET, length(NET) - back, 0)):
            before = pre[get(NET, length(NET) - back - 1, 5) + i]
            total = before * 0.0
            for o in tl.static_range(get(NET, length(NET) - back, 1)):
                row = get(NET, length(NET) - back, 2) + o * get(NET, length(NET) - back, 4)
                total += tl.load(packed + (row + i)) * grad[o]
            total *= _slope_of_kind(
                before, KINDS, get(FLAGS, get(NET, length(NET) - back - 1, 5) + i)
            )
            below = below + (total,)
        grad = below
    return grad


@triton.jit(do_not_specialize=["n"])
def tail(
    z,
    packed,
    flags,
    y,
    grad_y,
    grad_z,
    n,
    NET: tl.constexpr,
    FLAGS: tl.constexpr,
    KINDS: tl.constexpr,
    PARTS: tl.constexpr,
    FORWARD: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
):
    """Compute all layers after the first one, for one atom: forward, backward, or both.

    ``z`` [PARTS, n_1, n] are the first layer's sums: BLOCK_HIDDEN times 32 lanes have a row each
    (in groups of 32, as a wider array would go through shared memory), and every later number is
    the same in all lanes. NET has (inputs, outputs, begin of weights and of biases in ``packed``,
    length of a row, number of the first output in FLAGS) of each layer. In a backward pass
    ``grad_z`` [n_1, n] gets dE/dz of dE/dy.
    """
    N1: tl.constexpr = get(NET, 0, 0)
    LAST: tl.constexpr = length(NET) - 1
    atom = tl.program_id(0)
    h = tl.arange(0, 32)
    first = ()
    for c in tl.static_range(BLOCK_HIDDEN):
        x = _summed(z, h + c * 32, N1, n, atom, h + c * 32 < N1, PARTS)
        flag = tl.load(flags + (h + c * 32), mask=h + c * 32 < N1, other=0)
        first = first + (tl.where(h + c * 32 < N1, _activated(x, flag, KINDS), 0.0),)
    pre = ()
    for o in tl.static_range(get(NET, 0, 1)):
        place = packed + (get(NET, 0, 2) + o * get(NET, 0, 4))
        products = first[0] * 0.0
        for c in tl.static_range(BLOCK_HIDDEN):
            products += tl.load(place + (h + c * 32), mask=h + c * 32 < N1, other=0.0) * first[c]
        pre = pre + (tl.sum(products, 0) + tl.load(packed + (get(NET, 0, 3) + o)),)
    pre = _further_layers(pre, packed, NET, KINDS, FLAGS)
    if FORWARD:
        for o in tl.static_range(get(NET, LAST, 1)):
            tl.store(y + o * n + atom, pre[get(NET, LAST, 5) + o])
    if BACKWARD:
        grad = ()
        for o in tl.static_range(get(NET, LAST, 1)):
            grad = grad + (tl.load(grad_y + o * n + atom),)
        grad = _back_to_second(grad, pre, packed, NET, KINDS, FLAGS)
        for c in tl.static_range(BLOCK_HIDDEN):
            x = _summed(z, h + c * 32, N1, n, atom, h + c * 32 < N1, PARTS)
            flag = tl.load(flags + (h + c * 32), mask=h + c * 32 < N1, other=0)
            total = x * 0.0
            for o in tl.static_range(get(NET, 0, 1)):
                place = packed + (get(NET, 0, 2) + o * get(NET, 0, 4))
                weight = tl.load(place + (h + c * 32), mask=h + c * 32 < N1, other=0.0)
                total += weight * grad[o]
            total *= _activated_slope(x, flag, KINDS)
            tl.store(grad_z + (h + c * 32) * n + atom, total, mask=h + c * 32 < N1)
