// Weights packed in tiles of rows: the rows of a tile next to each other for each column.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "simd.inl"
#include "tiles.inl"

namespace cace_fast {
namespace CF_ISA {

template <class T>
class Packed {
 public:
  // rows x columns from get(row, column); tiles of at most `most` rows, of nearly equal size.
  template <class Get>
  void fill(int rows, int columns, int most, Get get) {
    rows_ = rows;
    columns_ = columns;
    tiles_ = (rows + most - 1) / most;
    T* to = data_.ensure(size_t(rows) * columns + 1);
    for (int t = 0, first = 0; t < tiles_; first += size(t), ++t)
      for (int k = 0; k < columns; ++k)
        for (int i = 0; i < size(t); ++i) *to++ = T(get(first + i, k));
  }
  int rows() const { return rows_; }
  int columns() const { return columns_; }
  int tiles() const { return tiles_; }
  int size(int tile) const { return rows_ / tiles_ + (tile < rows_ % tiles_); }
  const T* data() const { return data_.data(); }
  size_t bytes() const { return data_.bytes(); }

 private:
  int rows_ = 0, columns_ = 0, tiles_ = 0;
  Buffer<T> data_;
};

template <class T, int NI, int NJ, class Store>
inline void run_weighted_tile(int ni, const T* w, const int* offsets, int n_k, const Vec<T>* x,
                              int first, const Store& store) {
  if (ni == NI) {
    Vec<T> sum[NI][NJ] = {};
    weighted_tile<T, NI, NJ>(w, offsets, n_k, x, sum);
    CF_UNROLL
    for (int i = 0; i < NI; ++i) store(first + i, sum[i]);
  } else if constexpr (NI > 1) {
    run_weighted_tile<T, NI - 1, NJ>(ni, w, offsets, n_k, x, first, store);
  }
}

// For every row i: store(i, sums[NJ]) with sums[j] = sum_k w[i][k] x[offsets[k] + j].
template <class T, int NJ, class Store>
inline void weighted_rows(const Packed<T>& p, const int* offsets, const Vec<T>* x,
                          const Store& store) {
  const T* w = p.data();
  for (int t = 0, first = 0; t < p.tiles(); ++t) {
    const int ni = p.size(t);
    run_weighted_tile<T, kTile / NJ, NJ>(ni, w, offsets, p.columns(), x, first, store);
    w += size_t(ni) * p.columns();
    first += ni;
  }
}

// Long sums are split into parts: rounding grows with the length of a chain of additions.
constexpr int kPart = 64;
inline int64_t part_end(int64_t first, int64_t n) { return n - first < kPart ? n : first + kPart; }

template <class T, int NI>
inline void add_weighted_tile(int ni, const T* w, int n_k, const Vec<T>* x, Vec<T>* out) {
  if (ni == NI) {
    for (int first = 0; first < n_k; first += kPart) {
      const int end = int(part_end(first, n_k));
      Vec<T> sum[NI];
      CF_UNROLL
      for (int i = 0; i < NI; ++i) sum[i] = w[i] * x[first];
      w += NI;
      for (int k = first + 1; k < end; ++k, w += NI) {
        CF_UNROLL
        for (int i = 0; i < NI; ++i) sum[i] += w[i] * x[k];
      }
      CF_UNROLL
      for (int i = 0; i < NI; ++i) out[i] += sum[i];
    }
  } else if constexpr (NI > 1) {
    add_weighted_tile<T, NI - 1>(ni, w, n_k, x, out);
  }
}

// out[i] += sum_k w[i][k] x[k].  One function for all callers: it has a body for every tile size.
template <class T>
void add_weighted(const Packed<T>& p, const Vec<T>* x, Vec<T>* out) {
  const T* w = p.data();
  for (int t = 0, first = 0; t < p.tiles(); ++t) {
    const int ni = p.size(t);
    add_weighted_tile<T, kTile>(ni, w, p.columns(), x, out + first);
    w += size_t(ni) * p.columns();
    first += ni;
  }
}

// Columns of one tile for the monomials of a degree: divides their number (l+1)(l+2)/2.
constexpr int degree_columns(int degree) {
  return degree == 0   ? 1
         : degree == 1 ? 3
         : degree == 2 ? (kTile >= 24 ? 6 : 3)
         : degree <= 4 ? 5
                       : 7;
}
constexpr int kMaxDegree = 6;
constexpr int degree_offset(int degree) { return degree * (degree + 1) * (degree + 2) / 6; }
constexpr int degree_size(int degree) { return (degree + 1) * (degree + 2) / 2; }

}  // namespace CF_ISA
}  // namespace cace_fast
