// The two small matrix products that all kernels are made of.  An element is a vector (one lane for
// each atom); a tile of sums stays in registers.
#pragma once

#include <stddef.h>

#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

// Sums that fit the registers: 32 of them with AVX-512 and NEON, 16 otherwise, less operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 24;
#else
constexpr int kTile = 12;
#endif

// Loops over a tile are unrolled before the compiler decides what lives in registers: left to
// itself it keeps copies of all sums on the stack.
#define CF_UNROLL _Pragma("GCC unroll 32")
#define CF_INLINE inline __attribute__((always_inline))

// C[i][j] (+)= sum_k A[k][i] B[k][j], all vectors.  Strides count vectors; *_k is from one k to the
// next.  A sum is complete before it is added to C: neighbours come in chunks, and sums of chunks
// have less rounding than one long chain.
template <class V, int NI, int NJ, bool kAdd>
inline void product_tile(const V* a, ptrdiff_t a_k, ptrdiff_t a_i, const V* b, ptrdiff_t b_k,
                         ptrdiff_t b_j, int n_k, V* c, ptrdiff_t c_i, ptrdiff_t c_j) {
  V sum[NI][NJ];
  CF_UNROLL
  for (int i = 0; i < NI; ++i) {
    CF_UNROLL
    for (int j = 0; j < NJ; ++j) sum[i][j] = V{};
  }
  for (int k = 0; k < n_k; ++k, a += a_k, b += b_k) {
    V row[NJ];
    CF_UNROLL
    for (int j = 0; j < NJ; ++j) row[j] = b[j * b_j];
    CF_UNROLL
    for (int i = 0; i < NI; ++i) {
      const V left = a[i * a_i];
      CF_UNROLL
      for (int j = 0; j < NJ; ++j) sum[i][j] += left * row[j];
    }
  }
  CF_UNROLL
  for (int i = 0; i < NI; ++i) {
    CF_UNROLL
    for (int j = 0; j < NJ; ++j) {
      V& to = c[i * c_i + j * c_j];
      to = kAdd ? to + sum[i][j] : sum[i][j];
    }
  }
}

// Columns of a tile with NI rows.
constexpr int tile_columns(int rows) {
  return kTile / rows < 1 ? 1 : (kTile / rows > 6 ? 6 : kTile / rows);
}

template <class V, int NI, int NJ, bool kAdd>
inline void product_columns(const V* a, ptrdiff_t a_k, ptrdiff_t a_i, const V* b, ptrdiff_t b_k,
                            ptrdiff_t b_j, int n_k, V* c, ptrdiff_t c_i, ptrdiff_t c_j, int n_j) {
  if constexpr (NJ > 0) {
    int j = 0;
    for (; j + NJ <= n_j; j += NJ)
      product_tile<V, NI, NJ, kAdd>(a, a_k, a_i, b + j * b_j, b_k, b_j, n_k, c + j * c_j, c_i, c_j);
    if (j < n_j)
      product_columns<V, NI, NJ - 1, kAdd>(a, a_k, a_i, b + j * b_j, b_k, b_j, n_k, c + j * c_j,
                                           c_i, c_j, n_j - j);
  }
}

constexpr int kRows = kTile / 4;  // rows of a full tile of vectors: 6 x 4 or 3 x 4

template <class V, int NI, bool kAdd>
inline void product_rows(const V* a, ptrdiff_t a_k, ptrdiff_t a_i, const V* b, ptrdiff_t b_k,
                         ptrdiff_t b_j, int n_k, V* c, ptrdiff_t c_i, ptrdiff_t c_j, int n_i,
                         int n_j) {
  if constexpr (NI > 0) {
    int i = 0;
    for (; i + NI <= n_i; i += NI)
      product_columns<V, NI, tile_columns(NI), kAdd>(a + i * a_i, a_k, a_i, b, b_k, b_j, n_k,
                                                     c + i * c_i, c_i, c_j, n_j);
    if (i < n_i)
      product_rows<V, NI - 1, kAdd>(a + i * a_i, a_k, a_i, b, b_k, b_j, n_k, c + i * c_i, c_i, c_j,
                                    n_i - i, n_j);
  }
}

// A matrix whose element (i, j) is at data + i*i_stride + j*j_stride.
template <class V>
struct Strided {
  V* data;
  ptrdiff_t i, j;
};

// c[n_i][n_j] = or += sum over n_k of a[k][i] b[k][j].
template <bool kAdd, class V>
inline void product(Strided<const V> a, Strided<const V> b, Strided<V> c, int n_i, int n_j,
                    int n_k) {
  product_rows<V, kRows, kAdd>(a.data, a.i, a.j, b.data, b.i, b.j, n_k, c.data, c.i, c.j, n_i, n_j);
}

// sum[i][j] += sum_k w[k][i] x[offset_k + j]: weights are numbers, the same for every lane.
template <class T, int NI, int NJ>
CF_INLINE void weighted_tile(const T* w, const int* offsets, int n_k, const Vec<T>* x,
                             Vec<T> (&sum)[NI][NJ]) {
  for (int k = 0; k < n_k; ++k, w += NI) {
    const Vec<T>* column = x + offsets[k];
    Vec<T> row[NJ];
    CF_UNROLL
    for (int j = 0; j < NJ; ++j) row[j] = column[j];
    CF_UNROLL
    for (int i = 0; i < NI; ++i) {
      CF_UNROLL
      for (int j = 0; j < NJ; ++j) sum[i][j] += w[i] * row[j];
    }
  }
}

}  // namespace CF_ISA
}  // namespace cace_fast
