// Message passing (docs/theory.md, section 6): the arrays of senders, and the sums over them.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#include "block.inl"
#include "mlp_program.inl"
#include "model.h"
#include "packed.inl"
#include "simd.inl"
#include "transpose.inl"

namespace cace_fast {
namespace CF_ISA {

// One step in the working precision: its weights, and its arrays of all atoms.
template <class T>
struct StepData {
  typedef Vec<T> V;
  static constexpr int W = Simd<T>::width;

  const Step* step = nullptr;
  int n_l = 0, n_x = 0, n_w = 0;  // factors of the Bchi message, and numbers that its network gives
  int n_q = 0, n_a = 0;           // R C rounded up to whole vectors; n_A
  MlpProgram<T> mlp;
  Buffer<T> memory, prefactor, inverse_range;  // [l][R C], [l][n_q], [l][n_q]

  Buffer<V> rows;                // [block] first layer of the Bchi network
  Buffer<T> w, factors, grad_w;  // [n_all][n_w], [n_all][n_l n_x], [n_all][n_w]
  // A, dE/dA by Ar, P dE/d(ar) of each atom: [n_q / W][n_A][W]; one decay multiplies W numbers
  Buffer<T> a, grad_a, grad_sum;

  void prepare(const Model& m, const Step& s) {
    step = &s;
    const int rc = m.r * m.c;
    n_q = (rc + W - 1) / W * W;
    n_a = m.n_a;
    if (s.bchi) {
      mlp.prepare(s.net);
      n_l = s.shared_l ? 1 : m.l_max + 1;
      n_x = s.shared_channels ? m.k : m.c;
      n_w = s.net.n_out();
    }
    spread_out(memory, s.memory_weight, rc, rc);
    spread_out(prefactor, s.ar_prefactor, rc, n_q, T(m.mp_norm));  // s P
    spread_out(inverse_range, s.ar_inverse_range, rc, n_q);
  }

  // Numbers of an atom in a, grad_a, grad_sum, and their place.
  size_t size() const { return size_t(n_a) * n_q; }
  const V* atom(const Buffer<T>& of, size_t i) const {
    return reinterpret_cast<const V*>(of.data() + i * size());
  }

  void begin(size_t n_all, size_t n_blocks) {
    if (step->bchi) {
      rows.reserve_slack(n_blocks * mlp.n_first_rows());
      w.reserve_slack(n_all * n_w);
      factors.reserve_slack(n_all * n_l * n_x + 1);
      grad_w.reserve_slack(n_all * n_w + 1);
    }
    if (!step->ar) return;
    for (Buffer<T>* list : {&a, &grad_a, &grad_sum}) {
      list->reserve_slack(n_all * size());
    }
  }

  int64_t bytes() const {
    return int64_t(rows.bytes() + w.bytes() + factors.bytes() + grad_w.bytes() + a.bytes() +
                   grad_a.bytes() + grad_sum.bytes());
  }

  // The sender's factor is h_s[a] w[l, c], so that an edge multiplies once.
  void make_factors(const Model& m, const T* h_s, size_t atom) {
    const T* from = w.data() + atom * n_w;
    T* to = factors.data() + atom * n_l * n_x;
    for (int l = 0; l < n_l; ++l)
      for (int x = 0; x < n_x; ++x)
        *to++ = step->shared_channels ? h_s[x] * from[l] : h_s[x / m.k] * from[l * n_x + x];
  }
  // Of an atom that sends nothing.
  void no_gradients(size_t atom) {
    for (int i = 0; i < n_w && step->bchi; ++i) grad_w[atom * n_w + i] = T(0);
    for (size_t i = 0; i < size() && step->ar; ++i) grad_a[atom * size() + i] = T(0);
  }
  void take_factor_gradients(const Model& m, const T* h_s, const T* from, size_t atom) {
    T* to = grad_w.data() + atom * n_w;
    for (int i = 0; i < n_w; ++i) to[i] = T(0);
    for (int l = 0; l < n_l; ++l)
      for (int x = 0; x < n_x; ++x, ++from)
        to[step->shared_channels ? l : l * n_x + x] +=
            *from * h_s[step->shared_channels ? x : x / m.k];
  }

 private:
  static void spread_out(Buffer<T>& to, const std::vector<Numbers>& from, int n, int padded,
                         T scale = T(1)) {
    T* out = to.zeros(from.size() * padded + 1);
    for (size_t l = 0; l < from.size(); ++l)
      for (int i = 0; i < n; ++i) out[l * padded + i] = scale * T(from[l][i]);
  }
};

// [R C][n_A] in lanes -> the layout of StepData of each atom of a block, times s P where `scaled`;
// dead lanes are not written.
template <class T>
inline void lanes_to_atoms(const Vec<T>* lanes, const Block& block, const Model& m,
                           const StepData<T>& s, bool scaled, T* atoms) {
  constexpr int W = Simd<T>::width;
  const int rc = m.r * m.c;
  for (int first = 0; first < s.n_q; first += W)
    for (int l = 0; l <= m.l_max; ++l)
      for (int k = degree_offset(l); k < degree_offset(l + 1); ++k) {
        const T* p = s.prefactor.data() + size_t(l) * s.n_q + first;
        Vec<T> r[W];
        for (int q = 0; q < W; ++q)
          r[q] = first + q < rc ? lanes[size_t(first + q) * m.n_a + k] * (scaled ? p[q] : T(1))
                                : Vec<T>{};
        transpose<T>(r);
        T* to = atoms + size_t(block.first) * s.size() + size_t(first) * s.n_a + k * W;
        for (int lane = 0; lane < block.n_lanes; ++lane)
          ::memcpy(to + lane * s.size(), &r[lane], sizeof(Vec<T>));
      }
}

// Adds the numbers of the atoms of a block in the layout of StepData, times s P where `scaled`, to
// [R C][n_A] in lanes.
template <class T>
inline void add_atoms_to_lanes(const T* atoms, const Block& block, const Model& m,
                               const StepData<T>& s, bool scaled, Vec<T>* lanes) {
  constexpr int W = Simd<T>::width;
  const int rc = m.r * m.c;
  for (int first = 0; first < s.n_q; first += W)
    for (int l = 0; l <= m.l_max; ++l)
      for (int k = degree_offset(l); k < degree_offset(l + 1); ++k) {
        const T* p = s.prefactor.data() + size_t(l) * s.n_q + first;
        const T* from = atoms + size_t(first) * s.n_a + k * W;
        Vec<T> r[W] = {};
        for (int lane = 0; lane < block.n_lanes; ++lane) r[lane] = load(from + lane * s.size());
        transpose<T>(r);
        for (int q = 0; q < W && first + q < rc; ++q)
          lanes[size_t(first + q) * m.n_a + k] += r[q] * (scaled ? p[q] : T(1));
      }
}

}  // namespace CF_ISA
}  // namespace cace_fast
