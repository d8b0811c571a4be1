// Ar (docs/theory.md, equation 18): moments of neighbours times a decay that differs by degree and
// channel. Vectors run over the channels (q, c) here, not over atoms.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "block.inl"
#include "cace_fast.h"
#include "engine.h"
#include "messages.inl"
#include "model.h"
#include "packed.inl"
#include "radial.inl"
#include "simd.inl"
#include "tiles.inl"
#include "transpose.inl"
#include "vmath.inl"

namespace cace_fast {
namespace CF_ISA {

// sum[m] = sum_p from_p[m] exp(-r_p V) f_p for the monomials of degree L and W of the (q, c), kept
// in registers over kPart pairs of one atom.
template <class T, int L>
inline void ar_degree(const StepData<T>& s, ArPairs<T>& pairs, int i, Vec<T>* sum) {
  typedef Vec<T> V;
  constexpr int begin = degree_offset(L), size = degree_size(L);
  const V v = load(s.inverse_range.data() + size_t(L) * s.n_q + i * Simd<T>::width);
  V* to = sum + i * s.n_a + begin;
  for (int k = 0; k < size; ++k) to[k] = V{};
  for (int64_t first = 0; first < pairs.n; first += kPart) {
    V own[size] = {};
    for (int64_t p = first; p < part_end(first, pairs.n); ++p) {
      const V decay = exponential<T>(-pairs.r[p] * v) * pairs.f[p];
      const V* from = pairs.from[p] + i * s.n_a + begin;
      CF_UNROLL
      for (int k = 0; k < size; ++k) own[k] += from[k] * decay;
    }
    for (int k = 0; k < size; ++k) to[k] += own[k];
  }
}

// The same for the gradient of a sender, and dr_p += (sum_m from_p[m] a[m]) d/dr of that decay.
template <class T, int L>
inline void ar_degree_gradient(const StepData<T>& s, ArPairs<T>& pairs, int i, const Vec<T>* a,
                               Vec<T>* sum) {
  typedef Vec<T> V;
  constexpr int begin = degree_offset(L), size = degree_size(L);
  const V v = load(s.inverse_range.data() + size_t(L) * s.n_q + i * Simd<T>::width);
  a += i * s.n_a + begin;
  V* to = sum + i * s.n_a + begin;
  for (int k = 0; k < size; ++k) to[k] = V{};
  for (int64_t first = 0; first < pairs.n; first += kPart) {
    V own[size] = {};
    for (int64_t p = first; p < part_end(first, pairs.n); ++p) {
      const V e = exponential<T>(-pairs.r[p] * v);
      const V decay = e * pairs.f[p];
      const V* from = pairs.from[p] + i * s.n_a + begin;
      V both = {};
      CF_UNROLL
      for (int k = 0; k < size; ++k) {
        own[k] += from[k] * decay;
        both += from[k] * a[k];
      }
      pairs.dr[p] += both * e * (pairs.df[p] - v * pairs.f[p]);
    }
    for (int k = 0; k < size; ++k) to[k] += own[k];
  }
}

template <class T, int L = 0>
inline void ar_degrees(const StepData<T>& s, int l_max, ArPairs<T>& pairs, int i, const Vec<T>* a,
                       Vec<T>* sum) {
  a ? ar_degree_gradient<T, L>(s, pairs, i, a, sum) : ar_degree<T, L>(s, pairs, i, sum);
  if constexpr (L < kMaxDegree)
    if (L < l_max) ar_degrees<T, L + 1>(s, l_max, pairs, i, a, sum);
}

// All degrees and (q, c) of one atom's pairs; with A of the atom also dr of each pair.
template <class T>
inline void ar_sum(const StepData<T>& s, int l_max, ArPairs<T>& pairs, const Vec<T>* a,
                   Vec<T>* sum) {
  for (int i = 0; i < s.n_q / Simd<T>::width; ++i) ar_degrees<T>(s, l_max, pairs, i, a, sum);
}

// Adds s Ar to A of the block, receiver by receiver.
template <class T>
void ar_sums(ThreadWorkspace<T>& work, const Model& m, const StepData<T>& s, const Block& block,
             const cf_list& list, Vec<T>* a) {
  typedef Vec<T> V;
  constexpr int W = Simd<T>::width;
  ScopedTimer timer(work.ticks_of, kMessages);
  const size_t size = s.size() / W;
  V* sums = work.ar.ensure(size * W);
  ArPairs<T>& pairs = work.ar_pairs;
  const int64_t base = list.first[block.first];
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    pairs.begin(work.n_slots);
    for (int slot = 0; slot < work.n_slots; ++slot) {
      const int pair = work.pair[size_t(slot) * W + lane];
      if (pair < 0) continue;
      const V* geo = work.geometry.data() + size_t(slot) * kGeometry;
      pairs.f[pairs.n] = geo[kFc][lane];
      pairs.add(geo[kR][lane], s.atom(s.a, list.sender[base + pair]));
    }
    ar_sum<T>(s, m.l_max, pairs, nullptr, sums + size * lane);
  }
  add_atoms_to_lanes<T>(reinterpret_cast<const T*>(sums), block, m, s, true, a);
}

// Gradients of a sender through Ar: its dE/dA, and dE/dr of each pair it sends.
template <class T>
void ar_sender_gradient(ThreadWorkspace<T>& work, const Model& m, StepData<T>& s,
                        const Cutoff<T>& cutoff, int64_t sender, const int32_t* sent,
                        int64_t n_sent, const int32_t* receiver, const T* distance, T* pair_dr) {
  typedef Vec<T> V;
  constexpr int W = Simd<T>::width;
  ArPairs<T>& pairs = work.ar_pairs;
  pairs.begin(n_sent);
  for (int64_t k = 0; k < n_sent; ++k) {
    if (!(distance[sent[k]] >= T(0))) continue;  // beyond the cutoff
    pairs.pair[pairs.n] = sent[k];
    pairs.dr[pairs.n] = V{};
    pairs.add(distance[sent[k]], s.atom(s.grad_sum, receiver[sent[k]]));
  }
  for (int64_t p = 0; p < pairs.n; p += W) {  // r, f and df have room for whole vectors
    V f, df;
    cutoff(load(pairs.r.data() + p), f, df);
    ::memcpy(pairs.f.data() + p, &f, sizeof f);
    ::memcpy(pairs.df.data() + p, &df, sizeof df);
  }
  V* sum = work.ar.ensure(s.size() / W);
  ar_sum<T>(s, m.l_max, pairs, s.atom(s.a, sender), sum);
  for (int64_t p = 0; p < pairs.n; ++p) {
    T total = T(0);
    for (int i = 0; i < W; ++i) total += pairs.dr[p][i];
    pair_dr[pairs.pair[p]] = total;
  }
  ::memcpy(s.grad_a.data() + sender * s.size(), sum, sizeof(T) * s.size());
}

}  // namespace CF_ISA
}  // namespace cace_fast
