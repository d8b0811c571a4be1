"""Sines and cosines by polynomials after range reduction; those of the library need a stack."""

import triton
import triton.language as tl


@triton.jit
def sincospi(turns):
    """Return sin(pi x), cos(pi x) of x = ``turns``, |x| < 2^21 in float32."""
    if turns.dtype == tl.float64:
        return _sincospi_double(turns)
    else:
        # adding and taking away 1.5 2^23 rounds to an integer: x - 2 k is exact and in [-1, 1]
        even = tl.fma(turns, 0.5, 12582912.0) - 12582912.0
        return _sincospi_reduced(tl.fma(even, -2.0, turns))


@triton.jit
def sincos_product(w, r):
    """Return sin(w r), cos(w r): in float32 the product is not rounded before reduction."""
    if r.dtype == tl.float64:
        return sincospi(w * 0.3183098861837907 * r)
    else:
        even = tl.fma(w * 0.15915494309189535, r, 12582912.0) - 12582912.0
        # 2 pi in two parts: the first has few bits, so that whole turns times it are exact
        rest = tl.fma(w, r, even * -6.28125)
        rest = tl.fma(even, -0.0019353071795864769, rest)
        return _sincospi_reduced(rest * 0.3183098861837907)


@triton.jit
def _sincospi_reduced(u):
    """Return sin and cos of pi u, |u| <= 1: Chebyshev fits of sin/(u (1-u^2)) and cos/(1-4u^2).

    Dividing by the zeros makes them exact there; errors are below 3e-7.
    """
    w = u * u
    s = tl.fma(w, -0.00038593770539966114, 0.006860187318272263)
    s = tl.fma(s, w, -0.07518726334906756)
    s = tl.fma(s, w, 0.524036151372038)
    s = tl.fma(s, w, -2.0261194642622)
    s = tl.fma(s, w, 3.1415926444234024)
    c = tl.fma(w, -0.00040402037544151197, 0.006253968605349106)
    c = tl.fma(c, w, -0.057209165765623265)
    c = tl.fma(c, w, 0.31949395262415836)
    c = tl.fma(c, w, -0.9348014015262159)
    c = tl.fma(c, w, 0.9999999889445824)
    return s * tl.fma(-w, u, u), c * tl.fma(w, -4.0, 1.0)


@triton.jit
def _sincospi_double(turns):
    """Return them in float64, |x| < 2^50, to 4e-16; tl.fma would round the constants."""
    even = (turns * 0.5 + 6755399441055744.0) - 6755399441055744.0
    u = turns - 2.0 * even
    w = u * u
    s = w * -4.795585299774921e-10 + 2.2316263150901134e-08
    s = s * w + -7.726653626528434e-07
    s = s * w + 2.1142482257621263e-05
    s = s * w + -0.00044516020078506175
    s = s * w + 0.006925270697499447
    s = s * w + -0.07522061590208608
    s = s * w + 0.5240439134170486
    s = s * w + -2.026120126460173
    s = s * w + 3.141592653589793
    c = w * -8.05331395730229e-10 + 3.4283071559158883e-08
    c = c * w + -1.0669271789494348e-06
    c = c * w + 2.5892581981078213e-05
    c = c * w + -0.0004759203237541083
    c = c * w + 0.006332742730945354
    c = c * w + -0.057249471899557834
    c = c * w + 0.31950332423783023
    c = c * w + -0.9348022005446727
    c = c * w + 1.0
    return s * (u - u * w), c * (1.0 - 4.0 * w)
