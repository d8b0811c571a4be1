"""Fast kernels: each operation of `cace_fast.reference` under the same name, in C++ and Triton."""
