// The weights of a model in the working precision, packed for the kernels.
#pragma once

#include <stddef.h>

#include <new>  // IWYU pragma: keep

#include "model.h"
#include "packed.inl"
#include "simd.inl"
#include "tiles.inl"

namespace cace_fast {
namespace CF_ISA {

// Layout of rho[x][n][m].  Sums whose factors depend on the degree store each degree together,
// [l][x][n_b][monomials of l]; others are [x][n_b][n_A].
struct RhoLayout {
  Buffer<int> source;  // [l][n] offset of the first monomial of l from rho of its x
  bool by_degree = false;
  int n_b = 0, n_a = 0;

  void prepare(const Model& m, bool degrees_apart) {
    by_degree = degrees_apart;
    n_b = m.n_b;
    n_a = m.n_a;
    source.ensure(size_t(m.l_max + 1) * n_b);
    for (int l = 0; l <= m.l_max; ++l)
      for (int n = 0; n < n_b; ++n)
        source[l * n_b + n] = by_degree ? n * degree_size(l) : n * n_a + degree_offset(l);
  }
  // Offset of rho_x for degree l.
  ptrdiff_t of(int l, int x, int n_x) const {
    return by_degree ? ptrdiff_t(n_b) * (n_x * degree_offset(l) + x * degree_size(l))
                     : ptrdiff_t(x) * n_b * n_a;
  }
};

// Radial mixing between rho (X of them) and A [R][C][n_A], X being the K embedding channels of
// the sender (a) or, with a weight for each channel (a, b), all C.
template <class T>
struct Mixing {
  int n_x = 0;
  Buffer<Packed<T>> forward, backward;  // [l][x]: rows (q, b) or q; and transposed
  Buffer<int> target;                   // [x][row] offset of A[q][c]
  Buffer<int> receiver;                 // [x][row] b
  int n_rows = 0;

  void prepare(const Model& m, bool by_channel) {
    n_x = by_channel ? m.c : m.k;
    const int per_x = by_channel ? 1 : m.k;
    n_rows = m.r * per_x;
    target.ensure(size_t(n_x) * n_rows);
    receiver.ensure(size_t(n_x) * n_rows);
    const auto channel = [&](int x, int row) { return by_channel ? x : x * m.k + row % per_x; };
    for (int x = 0; x < n_x; ++x)
      for (int row = 0; row < n_rows; ++row) {
        const int c = channel(x, row);
        target[x * n_rows + row] = (row / per_x * m.c + c) * m.n_a;
        receiver[x * n_rows + row] = c % m.k;
      }
    const size_t count = size_t(m.l_max + 1) * n_x;
    new_packed(forward, count);
    new_packed(backward, count);
    for (int l = 0; l <= m.l_max; ++l)
      for (int x = 0; x < n_x; ++x) {
        const auto weight = [&](int row, int n) {
          const int q = row / per_x;
          return m.mixing[l][(size_t(n) * m.r + q) * m.c + channel(x, row)];
        };
        const int most = kTile / degree_columns(l);
        forward[l * n_x + x].fill(n_rows, m.n_b, most, weight);
        backward[l * n_x + x].fill(m.n_b, n_rows, most,
                                   [&](int n, int row) { return weight(row, n); });
      }
  }
  ~Mixing() {
    delete_packed(forward, count_);
    delete_packed(backward, count_);
  }

 private:
  size_t count_ = 0;
  void new_packed(Buffer<Packed<T>>& list, size_t count) {
    count_ = count;
    list.ensure(count);
    for (size_t i = 0; i < count; ++i) new (&list[i]) Packed<T>();
  }
  static void delete_packed(Buffer<Packed<T>>& list, size_t count) {
    for (size_t i = 0; i < count; ++i) list[i].~Packed<T>();
  }
};

// The first layers of all networks that take the features of one generation, as one matrix: rows
// of the read-outs first, then those of this generation's Bchi network.
template <class T>
struct Stack {
  int n_readout = 0, n_message = 0;
  Packed<T> forward, backward;

  int rows() const { return n_readout + n_message; }

  void prepare(const Model& m, int t) {
    for (const Head& head : m.heads) n_readout += head.net.n_first_rows();
    const bool message = t < m.stages - 1 && m.steps[t].bchi;
    n_message = message ? m.steps[t].net.n_first_rows() : 0;
    const int n_f = m.n_features();
    Buffer<double> dense;
    double* to = dense.ensure(size_t(rows()) * n_f + 1);
    for (const Head& head : m.heads)
      for (const Affine& layer : head.net.first_layers)
        for (int i = 0; i < layer.out; ++i)
          for (int f = 0; f < n_f; ++f)
            *to++ = layer.w[size_t(i) * layer.in + size_t(feature(m, f)) * m.stages + t];
    if (message)
      for (const Affine& layer : m.steps[t].net.first_layers)
        for (int i = 0; i < layer.out; ++i)
          for (int f = 0; f < n_f; ++f) *to++ = layer.w[size_t(i) * layer.in + feature(m, f)];
    const auto at = [&](int row, int f) { return dense[size_t(row) * n_f + f]; };
    forward.fill(rows(), n_f, kTile, at);
    backward.fill(n_f, rows(), kTile, [&](int f, int row) { return at(row, f); });
  }

  // Position (q, b, c) in files of feature f = (q, c, b) here.
  static int feature(const Model& m, int f) {
    const int b = f % m.n_inv, c = f / m.n_inv % m.c, q = f / m.n_inv / m.c;
    return (q * m.n_inv + b) * m.c + c;
  }
};

}  // namespace CF_ISA
}  // namespace cace_fast
