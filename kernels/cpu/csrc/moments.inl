// Sums of outer products R_n f_c Y_m over neighbours, and their gradients by pairs.
#pragma once

#include <stddef.h>

#include <type_traits>

#include "block.inl"
#include "constants_generated.h"
#include "contraction.inl"
#include "engine.h"
#include "model.h"
#include "packed.inl"
#include "params.inl"
#include "simd.inl"
#include "tiles.inl"

namespace cace_fast {
namespace CF_ISA {

// Y_m of u, and dE/du of dE/dY (which is overwritten).
template <class T, int L>
struct Monomials {
  typedef Vec<T> V;
  static constexpr int n = degree_offset(L + 1);

  static inline void values(const V* u, V* y) {
    y[0] = splat<T>(T(1));
#pragma GCC unroll 84
    for (int m = 1; m < n; ++m) y[m] = y[kMonomials.parent[m]] * u[kMonomials.axis[m]];
  }
  static inline void gradient(const V* u, const V* y, V* dy, V* du) {
    du[0] = du[1] = du[2] = V{};
#pragma GCC unroll 84
    for (int m = n - 1; m >= 1; --m) {
      du[kMonomials.axis[m]] += dy[m] * y[kMonomials.parent[m]];
      dy[kMonomials.parent[m]] += dy[m] * u[kMonomials.axis[m]];
    }
  }
};

// Calls f(integral constant L) for the run-time degree.
template <int L = 0, class F>
inline void with_degree(int l_max, const F& f) {
  if (l_max == L) {
    f(std::integral_constant<int, L>());
  } else if constexpr (L < kMaxDegree) {
    with_degree<L + 1>(l_max, f);
  }
}

template <class T>
inline void monomials_of_slots(const ThreadWorkspace<T>& work, int first, int n, int l_max,
                               Vec<T>* y) {
  with_degree(l_max, [&](auto degree) {
    typedef Monomials<T, decltype(degree)::value> M;
    for (int s = 0; s < n; ++s)
      M::values(work.geometry.data() + size_t(first + s) * kGeometry, y + s * M::n);
  });
}

// rho [group][n_b][n_A]: for each element the sum over neighbours of that element.
template <class T>
void grouped_sums(ThreadWorkspace<T>& work, const Model& m, int n_groups) {
  typedef Vec<T> V;
  ScopedTimer timer(work.ticks_of, kSums);
  const int n_b = m.n_b, n_a = m.n_a;
  V* rho = work.rho.zeros(size_t(n_groups) * n_b * n_a);
  V* y = work.y.ensure(size_t(kChunk) * n_a);
  for (int s = 0; s < n_groups; ++s, rho += n_b * n_a)
    for (int first = work.group[s]; first < work.group[s + 1]; first += kChunk) {
      const int rest = work.group[s + 1] - first, n = rest < kChunk ? rest : kChunk;
      monomials_of_slots(work, first, n, m.l_max, y);
      const V* g = work.g.data() + size_t(first) * n_b;
      product<true, V>({g, n_b, 1}, {y, n_a, 1}, {rho, n_a, 1}, n_b, n_a, n);
    }
}

// Sums over the pairs of one receiver, lane by lane.
template <class T>
struct PairSums {
  Vec<T> gradient[3], virial[9];
};

// dE/dd of a slot from dE/dr and dE/du; adds to the block's sums and writes it to its pairs.
template <class T>
inline void finish_slot(ThreadWorkspace<T>& work, int slot, const Vec<T>* du, Vec<T> dr,
                        T* pair_gradient, bool add, PairSums<T>& sums) {
  typedef Vec<T> V;
  constexpr int W = ThreadWorkspace<T>::W;
  const V* geo = work.geometry.data() + size_t(slot) * kGeometry;
  const V inverse = geo[kInverse];
  const V ratio = T(1) + T(kLengthShift) * inverse;  // |d|/r of u to the last digit
  const V along = geo[kUx] * du[0] + geo[kUy] * du[1] + geo[kUz] * du[2];
  const V radial = (dr - along * inverse) * ratio;
  const V length = geo[kR] + T(kLengthShift);
  alignas(64) T out[3][W], rows[W][kRow];
  for (int k = 0; k < 3; ++k) {
    const V gradient = du[k] * inverse + radial * geo[kUx + k];
    sums.gradient[k] += gradient;
    for (int l = 0; l < 3; ++l) sums.virial[3 * l + k] += geo[kUx + l] * length * gradient;
    *reinterpret_cast<V*>(out[k]) = gradient;
  }
  for (int lane = 0; lane < W; ++lane) {
    for (int k = 0; k < 3; ++k) rows[lane][k] = out[k][lane];
    rows[lane][3] = T(0);
  }
  const int* pair = work.pair.data() + size_t(slot) * W;
  for (int lane = 0; lane < W; ++lane) {
    // padding writes to a row that nobody reads: no branch to guess wrong
    T* to = pair[lane] < 0 ? work.nowhere : pair_gradient + kRow * ptrdiff_t(pair[lane]);
    for (int k = 0; k < kRow; ++k) to[k] = add ? to[k] + rows[lane][k] : rows[lane][k];
  }
}

// From dE/dg and dE/dY of a chunk of slots to dE/dd of its pairs.
template <class T>
void finish_slots(ThreadWorkspace<T>& work, const Model& m, int first, int n, const Vec<T>* more_dr,
                  T* pair_gradient, bool add, PairSums<T>& sums) {
  typedef Vec<T> V;
  with_degree(m.l_max, [&](auto degree) {
    typedef Monomials<T, decltype(degree)::value> M;
    for (int s = 0; s < n; ++s) {
      const int slot = first + s;
      V du[3], dr = more_dr ? more_dr[slot] : V{};
      const V *grad_g = work.grad_g.data() + s * m.n_b, *dg = work.dg.data() + size_t(slot) * m.n_b;
      for (int k = 0; k < m.n_b; ++k) dr += grad_g[k] * dg[k];
      M::gradient(work.geometry.data() + size_t(slot) * kGeometry, work.y.data() + s * M::n,
                  work.grad_y.data() + s * M::n, du);
      finish_slot(work, slot, du, dr, pair_gradient, add, sums);
    }
  });
}

// Backward of grouped_sums, from grad_rho [group][n_b][n_A] to the pairs.
template <class T>
void grouped_gradient(ThreadWorkspace<T>& work, const Model& m, int n_groups, const Vec<T>* more_dr,
                      T* pair_gradient, bool add, PairSums<T>& sums) {
  typedef Vec<T> V;
  ScopedTimer timer(work.ticks_of, kEdges);
  const int n_b = m.n_b, n_a = m.n_a;
  const V* grad_rho = work.grad_rho.data();
  V* y = work.y.ensure(size_t(kChunk) * n_a);
  V* grad_y = work.grad_y.ensure(size_t(kChunk) * n_a);
  V* grad_g = work.grad_g.ensure(size_t(kChunk) * n_b);
  for (int s = 0; s < n_groups; ++s, grad_rho += n_b * n_a)
    for (int first = work.group[s]; first < work.group[s + 1]; first += kChunk) {
      const int rest = work.group[s + 1] - first, n = rest < kChunk ? rest : kChunk;
      const V* g = work.g.data() + size_t(first) * n_b;
      monomials_of_slots(work, first, n, m.l_max, y);
      product<false, V>({grad_rho, 1, n_a}, {y, 1, n_a}, {grad_g, 1, n_b}, n_b, n, n_a);
      product<false, V>({grad_rho, n_a, 1}, {g, 1, n_b}, {grad_y, 1, n_a}, n_a, n, n_b);
      finish_slots<T>(work, m, first, n, more_dr, pair_gradient, add, sums);
    }
}

// Where there is no sum of products: dE/dr alone.
template <class T>
void distance_gradient(ThreadWorkspace<T>& work, const Vec<T>* dr, T* pair_gradient,
                       PairSums<T>& sums) {
  const Vec<T> du[3] = {};
  for (int slot = 0; slot < work.n_slots; ++slot)
    finish_slot(work, slot, du, dr[slot], pair_gradient, true, sums);
}

// rho_a = sum_s h_s[s, a] rho_s, and its gradient.
template <class T>
void mix_groups(const Model& m, const T* h_s, const Vec<T>* rho, Vec<T>* rho_a) {
  const int size = m.n_b * m.n_a;
  for (int a = 0; a < m.k; ++a)
    for (int i = 0; i < size; ++i) {
      Vec<T> sum = {};
      for (int s = 0; s < m.n_z; ++s) sum += h_s[s * m.k + a] * rho[s * size + i];
      rho_a[a * size + i] = sum;
    }
}
template <class T>
void unmix_groups(const Model& m, const T* h_s, const Vec<T>* grad_a, Vec<T>* grad_rho) {
  const int size = m.n_b * m.n_a;
  for (int s = 0; s < m.n_z; ++s)
    for (int i = 0; i < size; ++i) {
      Vec<T> sum = {};
      for (int a = 0; a < m.k; ++a) sum += h_s[s * m.k + a] * grad_a[a * size + i];
      grad_rho[s * size + i] = sum;
    }
}

// A[q][c][m] = h_r[b] sum_n rho[x][n][m] W_l[n][q][c].
template <class T, int L = 0>
void mix(int l_max, const Mixing<T>& mixing, const RhoLayout& layout, const Vec<T>* h_r,
         const Vec<T>* rho, Vec<T>* a) {
  typedef Vec<T> V;
  constexpr int NJ = degree_columns(L), first = degree_offset(L);
  for (int x = 0; x < mixing.n_x; ++x) {
    const int* target = mixing.target.data() + x * mixing.n_rows;
    const int* receiver = mixing.receiver.data() + x * mixing.n_rows;
    for (int j = 0; j < degree_size(L); j += NJ)
      weighted_rows<T, NJ>(mixing.forward[L * mixing.n_x + x], &layout.source[L * layout.n_b],
                           rho + layout.of(L, x, mixing.n_x) + j, [&](int row, const V* sum) {
                             V* to = a + target[row] + first + j;
                             const V h = h_r[receiver[row]];
                             CF_UNROLL
                             for (int k = 0; k < NJ; ++k) to[k] = h * sum[k];
                           });
  }
  if constexpr (L < kMaxDegree)
    if (L < l_max) mix<T, L + 1>(l_max, mixing, layout, h_r, rho, a);
}

// grad_rho[x][n][m] = sum over (q, b) of W_l[n][q][c] grad_a[q][c][m], grad_a times h_r already.
template <class T, int L = 0>
void unmix(int l_max, const Mixing<T>& mixing, const RhoLayout& layout, const Vec<T>* grad_a,
           Vec<T>* grad_rho) {
  typedef Vec<T> V;
  constexpr int NJ = degree_columns(L), first = degree_offset(L);
  const int* source = &layout.source[L * layout.n_b];
  for (int x = 0; x < mixing.n_x; ++x)
    for (int j = 0; j < degree_size(L); j += NJ)
      weighted_rows<T, NJ>(mixing.backward[L * mixing.n_x + x],
                           mixing.target.data() + x * mixing.n_rows, grad_a + first + j,
                           [&](int n, const V* sum) {
                             V* to = grad_rho + layout.of(L, x, mixing.n_x) + source[n] + j;
                             CF_UNROLL
                             for (int k = 0; k < NJ; ++k) to[k] = sum[k];
                           });
  if constexpr (L < kMaxDegree)
    if (L < l_max) unmix<T, L + 1>(l_max, mixing, layout, grad_a, grad_rho);
}

}  // namespace CF_ISA
}  // namespace cace_fast
