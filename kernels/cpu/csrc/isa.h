// The instruction set that a file is compiled for: the name of its namespace, and the width of its
// vectors.  isa_*.cpp or the command line (build.py) give them; an editor that opens an .inl alone
// gets what its compiler is set to.
#pragma once

#ifndef CF_ISA
#define CF_ISA isa_base
#endif

#ifndef CF_VECTOR_BYTES
#if defined(__AVX512F__)
#define CF_VECTOR_BYTES 64
#elif defined(__AVX__)
#define CF_VECTOR_BYTES 32
#else
#define CF_VECTOR_BYTES 16
#endif
#endif
