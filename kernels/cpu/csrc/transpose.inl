// Transposition between rows of numbers of W atoms and vectors whose lanes are these atoms.
#pragma once

#include <stddef.h>
#include <string.h>

#include <utility>

#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define CF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif

template <class T, int H, size_t... I>
inline void swap_blocks(Vec<T>& a, Vec<T>& b, std::index_sequence<I...>) {
  constexpr int W = Simd<T>::width;
#ifdef CF_SHUFFLE
  const Vec<T> low = CF_SHUFFLE(a, b, ((I & H) ? int(I) + W - H : int(I))...);
  const Vec<T> high = CF_SHUFFLE(a, b, ((I & H) ? int(I) + W : int(I) + H)...);
#else  // g++ before 12
  const Vec<T> low = __builtin_shuffle(a, b, IntVec<T>{((I & H) ? int(I) + W - H : int(I))...});
  const Vec<T> high = __builtin_shuffle(a, b, IntVec<T>{((I & H) ? int(I) + W : int(I) + H)...});
#endif
  a = low;
  b = high;
}

// Transposes a W x W matrix in registers: swaps off-diagonal blocks of half, quarter, ... the size.
template <class T, int H = Simd<T>::width / 2>
inline void transpose(Vec<T>* r) {
  constexpr int W = Simd<T>::width;
  for (int i = 0; i < W; ++i)
    if (!(i & H)) swap_blocks<T, H>(r[i], r[i + H], std::make_index_sequence<W>());
  if constexpr (H > 1) transpose<T, H / 2>(r);
}

// A vector at any address.
template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  ::memcpy(&v, from, sizeof v);
  return v;
}

// out[f * stride][lane] = rows[lane][f] for f < n.
template <class T>
inline void to_lanes(const T* const (&rows)[Simd<T>::width], int n, Vec<T>* out,
                     ptrdiff_t stride = 1) {
  constexpr int W = Simd<T>::width;
  int f = 0;
  for (; f + W <= n; f += W) {
    Vec<T> r[W];
    for (int lane = 0; lane < W; ++lane) r[lane] = load(rows[lane] + f);
    transpose<T>(r);
    for (int k = 0; k < W; ++k) out[(f + k) * stride] = r[k];
  }
  for (; f < n; ++f)
    for (int lane = 0; lane < W; ++lane) out[f * stride][lane] = rows[lane][f];
}

// rows[lane][f] = in[f * stride][lane] for f < n.
template <class T>
inline void from_lanes(const Vec<T>* in, int n, T* const (&rows)[Simd<T>::width],
                       ptrdiff_t stride = 1) {
  constexpr int W = Simd<T>::width;
  int f = 0;
  for (; f + W <= n; f += W) {
    Vec<T> r[W];
    for (int k = 0; k < W; ++k) r[k] = in[(f + k) * stride];
    transpose<T>(r);
    for (int lane = 0; lane < W; ++lane) ::memcpy(rows[lane] + f, &r[lane], sizeof(Vec<T>));
  }
  for (; f < n; ++f)
    for (int lane = 0; lane < W; ++lane) rows[lane][f] = in[f * stride][lane];
}

}  // namespace CF_ISA
}  // namespace cace_fast
