// Sums over neighbours with a factor of the sender: its embedding (many elements), or its embedding
// times the weights of a Bchi message.  rho_x[n][m] = sum over slots of g_n Y_m f[l(m)][x].
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "block.inl"
#include "cace_fast.h"
#include "engine.h"
#include "model.h"
#include "moments.inl"
#include "packed.inl"
#include "simd.inl"
#include "tiles.inl"
#include "transpose.inl"

namespace cace_fast {
namespace CF_ISA {

// Rows of numbers of the senders, one for each pair of a slot, and where their gradients go.
template <class T>
struct Factors {
  const T* rows;    // [sender or species][n_l * n_x]
  int n_l, n_x;     // n_l is 1 where all degrees share their factors
  bool by_species;  // rows belong to elements, not to atoms
  T* gradients;     // [sender][n_l * n_x] sums of this block's segment, or null

  int size() const { return n_l * n_x; }
};

template <class T>
void factors_of_slots(ThreadWorkspace<T>& work, const Factors<T>& factors, const cf_list& list,
                      int64_t base, const int32_t* species, int first, int n) {
  constexpr int W = ThreadWorkspace<T>::W;
  const int size = factors.size();
  for (int s = 0; s < n; ++s) {
    const int* pair = work.pair.data() + size_t(first + s) * W;
    const T* rows[W];
    for (int lane = 0; lane < W; ++lane) {
      const int64_t sender = pair[lane] < 0 ? 0 : list.sender[base + pair[lane]];
      rows[lane] = factors.rows + size * (factors.by_species ? species[sender] : sender);
    }
    to_lanes<T>(rows, size, work.factor.data() + size_t(s) * size);
  }
}

// Adds the factors' gradients of a chunk of slots to the sums of their senders.
template <class T>
inline void factor_gradients_to_senders(ThreadWorkspace<T>& work, const Factors<T>& factors,
                                        const cf_list& list, int64_t base, int first, int n) {
  constexpr int W = ThreadWorkspace<T>::W;
  const int size = factors.size();
  T* own = reinterpret_cast<T*>(work.ar.ensure(size));  // [lane][size]
  T* rows[W];
  for (int lane = 0; lane < W; ++lane) rows[lane] = own + lane * size;
  for (int s = 0; s < n; ++s) {
    from_lanes<T>(work.grad_factor.data() + size_t(s) * size, size, rows);
    const int* pair = work.pair.data() + size_t(first + s) * W;
    for (int lane = 0; lane < W; ++lane) {  // in order: two lanes may have the same sender
      if (pair[lane] < 0) continue;
      T* to = factors.gradients + size_t(list.sender[base + pair[lane]]) * size;
      for (int f = 0; f < size; ++f) to[f] += rows[lane][f];
    }
  }
}

// A piece of the outer products g_n Y_m: monomials that share their factors, and as many n as
// keep the products of a chunk of slots in the first cache.
struct Piece {
  int l, first, n_m, n0, n_n;  // group of factors; monomials first..; radial functions n0..

  int size() const { return n_n * n_m; }
};

constexpr int kPieceSize = 20;
constexpr int kForwardChunk = 16, kBackwardChunk = 8;  // slots

template <class F>
inline void over_pieces(const Model& m, int n_l, const F& f) {
  for (int l = 0; l < n_l; ++l) {
    const int first = n_l == 1 ? 0 : degree_offset(l), n_m = n_l == 1 ? m.n_a : degree_size(l);
    const int at_once = n_m < kPieceSize ? kPieceSize / n_m : 1;
    for (int n0 = 0; n0 < m.n_b; n0 += at_once)
      f(Piece{l, first, n_m, n0, m.n_b - n0 < at_once ? m.n_b - n0 : at_once});
  }
}

// Calls f with the number of monomials as an integral constant where it is that of one degree, so
// that the loops over them unroll; else with 0: f takes the number at run time.
template <int L = 0, class F>
inline void with_monomials(int n_m, const F& f) {
  if (n_m == degree_size(L)) {
    f(std::integral_constant<int, degree_size(L)>());
  } else if constexpr (L < 4) {
    with_monomials<L + 1>(n_m, f);
  } else {
    f(std::integral_constant<int, 0>());
  }
}

// z[slot][n][m] = g_n Y_m
template <class T, int kN>
inline void outer_products(const Vec<T>* g, const Vec<T>* y, const Model& m, const Piece& piece,
                           int n, Vec<T>* z) {
  const int n_m = kN ? kN : piece.n_m;
  for (int s = 0; s < n; ++s, g += m.n_b, y += m.n_a) {
    Vec<T> monomials[kN ? kN : 1];
    for (int i = 0; i < kN; ++i) monomials[i] = y[piece.first + i];
    for (int k = 0; k < piece.n_n; ++k, z += n_m) {
      const Vec<T> radial = g[piece.n0 + k];
      for (int i = 0; i < n_m; ++i) z[i] = radial * (kN ? monomials[i] : y[piece.first + i]);
    }
  }
}

// Where a piece stands in rho: for each group of degrees [x][n_b][monomials], see RhoLayout.
template <class V>
inline V* piece_of(V* rho, const Model& m, int n_x, const Piece& piece) {
  return rho + ptrdiff_t(n_x) * m.n_b * piece.first + piece.n0 * piece.n_m;
}

template <class T>
void weighted_sums(ThreadWorkspace<T>& work, const Model& m, const Factors<T>& factors,
                   const cf_list& list, int64_t base, const int32_t* species) {
  typedef Vec<T> V;
  ScopedTimer timer(work.ticks_of, kSums);
  const int n_a = m.n_a, n_x = factors.n_x, size = factors.size();
  V* rho = work.rho.zeros(size_t(n_x) * m.n_b * n_a);
  V* y = work.y.ensure(size_t(kForwardChunk) * n_a);
  V* z = work.outer.ensure(size_t(kForwardChunk) * (n_a > kPieceSize ? n_a : kPieceSize));
  const V* factor = work.factor.ensure(size_t(kForwardChunk) * size);
  for (int first = 0; first < work.n_slots; first += kForwardChunk) {
    const int rest = work.n_slots - first, n = rest < kForwardChunk ? rest : kForwardChunk;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    over_pieces(m, factors.n_l, [&](const Piece& piece) {
      with_monomials(piece.n_m, [&](auto size) {
        outer_products<T, decltype(size)::value>(work.g.data() + size_t(first) * m.n_b, y, m, piece,
                                                 n, z);
      });
      product<true, V>({factor + piece.l * n_x, size, 1}, {z, piece.size(), 1},
                       {piece_of(rho, m, n_x, piece), m.n_b * piece.n_m, 1}, n_x, piece.size(), n);
    });
  }
}

// For each slot: grad_g[n] += sum_m h[n][m] y[m], grad_y[m] += sum_n h[n][m] g[n]
template <class T, int kN>
inline void split_gradient(const Vec<T>* h, const Piece& piece, const Model& m, int n,
                           const Vec<T>* g, const Vec<T>* y, Vec<T>* grad_g, Vec<T>* grad_y) {
  const int n_m = kN ? kN : piece.n_m;
  for (int s = 0; s < n; ++s, g += m.n_b, grad_g += m.n_b, y += m.n_a, grad_y += m.n_a) {
    const Vec<T>* monomials = y + piece.first;
    Vec<T>* to = grad_y + piece.first;
    Vec<T> sums[kN ? kN : 1];
    for (int i = 0; i < kN; ++i) sums[i] = to[i];
    for (int k = 0; k < piece.n_n; ++k, h += n_m) {
      const Vec<T> radial = g[piece.n0 + k];
      Vec<T> along = grad_g[piece.n0 + k];
      for (int i = 0; i < n_m; ++i) {
        along += h[i] * monomials[i];
        (kN ? sums[i] : to[i]) += h[i] * radial;
      }
      grad_g[piece.n0 + k] = along;
    }
    for (int i = 0; i < kN; ++i) to[i] = sums[i];
  }
}

// Backward of weighted_sums, from grad_rho of the same layout.  With H = sum_x f_x dE/drho_x, what
// is left for g and Y is small.
template <class T>
void weighted_gradient(ThreadWorkspace<T>& work, const Model& m, const Factors<T>& factors,
                       const cf_list& list, int64_t base, const int32_t* species,
                       const Vec<T>* more_dr, T* pair_gradient, PairSums<T>& sums) {
  typedef Vec<T> V;
  ScopedTimer timer(work.ticks_of, kEdges);
  const int n_b = m.n_b, n_a = m.n_a, n_x = factors.n_x, size = factors.size();
  const size_t piece_most = n_a > kPieceSize ? n_a : kPieceSize;
  V* y = work.y.ensure(size_t(kBackwardChunk) * n_a);
  V* grad_y = work.grad_y.ensure(size_t(kBackwardChunk) * n_a);
  V* grad_g = work.grad_g.ensure(size_t(kBackwardChunk) * n_b);
  V* z = work.outer.ensure(kBackwardChunk * 2 * piece_most);
  V* h = z + kBackwardChunk * piece_most;
  const V* factor = work.factor.ensure(size_t(kBackwardChunk) * size);
  V* grad_factor = work.grad_factor.ensure(size_t(kBackwardChunk) * size);
  for (int first = 0; first < work.n_slots; first += kBackwardChunk) {
    const int rest = work.n_slots - first, n = rest < kBackwardChunk ? rest : kBackwardChunk;
    const V* g = work.g.data() + size_t(first) * n_b;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    for (int i = 0; i < n * n_b; ++i) grad_g[i] = V{};
    for (int i = 0; i < n * n_a; ++i) grad_y[i] = V{};
    for (int i = 0; i < n * size; ++i) grad_factor[i] = V{};
    over_pieces(m, factors.n_l, [&](const Piece& piece) {
      const int n_z = piece.size(), x_stride = n_b * piece.n_m;
      const V* grad_rho = piece_of<const V>(work.grad_rho.data(), m, n_x, piece);
      if (factors.gradients) {
        with_monomials(piece.n_m, [&](auto size) {
          outer_products<T, decltype(size)::value>(g, y, m, piece, n, z);
        });
        product<true, V>({grad_rho, 1, x_stride}, {z, 1, n_z},
                         {grad_factor + piece.l * n_x, 1, size}, n_x, n, n_z);
      }
      product<false, V>({grad_rho, x_stride, 1}, {factor + piece.l * n_x, 1, size}, {h, 1, n_z},
                        n_z, n, n_x);
      with_monomials(piece.n_m, [&](auto size) {
        split_gradient<T, decltype(size)::value>(h, piece, m, n, g, y, grad_g, grad_y);
      });
    });
    if (factors.gradients) factor_gradients_to_senders(work, factors, list, base, first, n);
    finish_slots<T>(work, m, first, n, more_dr, pair_gradient, true, sums);
  }
}

}  // namespace CF_ISA
}  // namespace cace_fast
