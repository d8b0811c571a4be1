"""The GPU engine's kernels in Triton; ``docs/developer/kernels.md`` says why each has its shape.

Modules that begin with an underscore hold device code and import triton; so do the host modules
that launch it. Nothing else of cace-fast imports them before it knows that triton is there
(:mod:`cace_fast.kernels.backend`).
"""
