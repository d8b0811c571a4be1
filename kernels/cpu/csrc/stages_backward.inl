// Backward stages of a block, gradients of senders, and forces.
#pragma once

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <new>

#include "ar.inl"
#include "block.inl"
#include "cace_fast.h"
#include "engine.h"
#include "engine_impl.inl"
#include "messages.inl"
#include "mlp_program.inl"
#include "model.h"
#include "moments.inl"
#include "packed.inl"
#include "params.inl"
#include "sender_weighted_sums.inl"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

constexpr int kMaxInvariants = 40;  // 36 for l_max 6, nu_max 4

// dE/drows of generation t into work.grad_rows: those of the read-outs were made at the last
// generation, those of the Bchi network come from dE/dw.
template <class T>
void EngineOf<T>::message_rows_gradient(ThreadWorkspace<T>& work, const Block& block, int t) {
  ScopedTimer timer(work.ticks_of, kReadout);
  const Stack<T>& stack = stacks_[t];
  V* grad_rows = work.grad_rows.ensure(most_rows_);
  if (m_.stages == 1) return;
  V* kept = grad_rows_.data() + size_t(block.number) * stack.n_readout;
  if (t == m_.stages - 1) {
    for (int i = 0; i < stack.n_readout; ++i) kept[i] = grad_rows[i];
    return;
  }
  for (int i = 0; i < stack.n_readout; ++i) grad_rows[i] = kept[i];
  if (!stack.n_message) return;
  const StepData<T>& s = steps_[t];
  const MlpProgram<T>& mlp = s.mlp;
  V* values = work.values.ensure(largest_program_);
  V* slopes = work.slopes.ensure(largest_program_);
  V* gradients = work.gradients.ensure(largest_program_);
  mlp.begin(s.rows.data() + size_t(block.number) * mlp.n_first_rows(), values);
  mlp.forward(values, slopes);
  for (int i = 0; i < mlp.size(); ++i) gradients[i] = V{};
  for (int lane = 0; lane < block.n_lanes; ++lane)
    for (int i = 0; i < s.n_w; ++i)
      gradients[mlp.output() + i][lane] = s.grad_w[size_t(block.first + lane) * s.n_w + i];
  mlp.backward(slopes, gradients);
  for (int i = 0; i < mlp.n_first_rows(); ++i) grad_rows[stack.n_readout + i] = gradients[i];
}

// grad_a = dE/dA_t: through B, and for earlier generations through memory and Ar of the next step.
template <class T>
void EngineOf<T>::moments_gradient(ThreadWorkspace<T>& work, const Block& block, int t, const V* a,
                                   V* grad_a) {
  V* grad_b = work.grad_b.ensure(m_.n_features());
  {
    ScopedTimer timer(work.ticks_of, kReadout);
    for (int f = 0; f < m_.n_features(); ++f) grad_b[f] = V{};
    add_weighted(stacks_[t].backward, work.grad_rows.data(), grad_b);
  }
  ScopedTimer timer(work.ticks_of, kContract);
  V* scratch = work.scratch.ensure(contraction_.scratch() + 1);
  V h_r[kMaxEmbedding], g[kMaxInvariants];
  receivers(block, 1.0, h_r);
  for (int q = 0; q < m_.r * m_.c; ++q) {
    const V* from = grad_b + size_t(q) * m_.n_inv;
    if (m_.stages == 1) {  // nothing else enters: scale the few dE/dB by h_r instead of all dE/dA
      for (int k = 0; k < m_.n_inv; ++k) g[k] = from[k] * h_r[q % m_.k];
      from = g;
    }
    contraction_.gradient(a + size_t(q) * m_.n_a, from, grad_a + size_t(q) * m_.n_a, scratch);
  }
  if (t < m_.stages - 1) add_later_gradients(block, t, grad_a);
}

// The parts of dE/dA_t through memory and Ar of the step after generation t.
template <class T>
void EngineOf<T>::add_later_gradients(const Block& block, int t, V* grad_a) {
  const StepData<T>& s = steps_[t];
  const int rc = m_.r * m_.c;
  if (s.step->memory) {
    const V* from = kept_grad_.data() + block.number * a_size();
    for (int q = 0; q < rc; ++q)
      for (int l = 0; l <= m_.l_max; ++l)
        for (int i = degree_offset(l); i < degree_offset(l + 1); ++i)
          grad_a[q * m_.n_a + i] += s.memory[size_t(l) * rc + q] * from[q * m_.n_a + i];
  }
  if (!s.step->ar) return;
  add_atoms_to_lanes<T>(s.grad_a.data() + size_t(block.first) * s.size(), block, m_, s, false,
                        grad_a);
}

// Stores the parts of grad_a that memory and Ar of the step before need, and scales it for dE/drho.
template <class T>
void EngineOf<T>::pass_to_previous(ThreadWorkspace<T>& work, const Block& block, int t, V* grad_a) {
  ScopedTimer timer(work.ticks_of, kMessages);
  if (t > 0 && m_.steps[t - 1].memory)
    ::memcpy(kept_grad_.data() + block.number * a_size(), grad_a, a_size() * sizeof(V));
  if (t > 0 && m_.steps[t - 1].ar)
    lanes_to_atoms<T>(grad_a, block, m_, steps_[t - 1], true, steps_[t - 1].grad_sum.data());
  V h_r[kMaxEmbedding];
  receivers(block, t > 0 ? m_.mp_norm : 1.0, h_r);
  for (int q = 0; q < m_.r * m_.c; ++q)
    for (int i = 0; i < m_.n_a; ++i) grad_a[q * m_.n_a + i] *= h_r[q % m_.k];
}

// dE/dr of the block's slots through Ar of the step after generation t; null without.
template <class T>
const Vec<T>* EngineOf<T>::distance_gradients(ThreadWorkspace<T>& work, const Block& block, int t) {
  if (t >= m_.stages - 1 || !m_.steps[t].ar) return nullptr;
  const int64_t base = list_.first[block.first];
  V* dr = work.more_dr.reserve_slack(work.n_slots + 1);
  for (int slot = 0; slot < work.n_slots; ++slot)
    for (int lane = 0; lane < W; ++lane) {
      const int pair = work.pair[size_t(slot) * W + lane];
      dr[slot][lane] = pair < 0 ? T(0) : pair_dr_[base + pair];
    }
  return dr;
}

// From dE/dA, scaled for dE/drho, to dE/dd of the block's pairs.
template <class T>
void EngineOf<T>::pairs_gradient(ThreadWorkspace<T>& work, const Block& block, int t,
                                 const V* grad_a, bool first, PairSums<T>& sums) {
  const int64_t base = list_.first[block.first];
  T* to = pair_gradient_.data() + kRow * base;
  if (first)
    ::memset(to, 0, sizeof(T) * kRow * size_t(list_.first[block.first + block.n_lanes] - base));
  const V* more_dr = distance_gradients(work, block, t);
  const size_t size = size_t(m_.n_b) * m_.n_a;
  if (grouped(t)) {
    {
      ScopedTimer timer(work.ticks_of, kMix);
      V* mixed = work.rho_mixed.ensure(m_.k * size);
      unmix<T>(m_.l_max, mixing(t), layout(t), grad_a, mixed);
      unmix_groups<T>(m_, h_s_.data(), mixed, work.grad_rho.ensure(n_groups_ * size));
    }
    grouped_gradient(work, m_, n_groups_, more_dr, to, !first, sums);
  } else if (t == 0 || m_.steps[t - 1].bchi) {
    const Factors<T> f = factors(block, t);
    {
      ScopedTimer timer(work.ticks_of, kMix);
      unmix<T>(m_.l_max, mixing(t), layout(t), grad_a, work.grad_rho.ensure(f.n_x * size));
    }
    weighted_gradient(work, m_, f, list_, base, frame_.species, more_dr, to, sums);
  } else if (more_dr) {
    distance_gradient(work, more_dr, to, sums);
  }
}

// From dE/drows to the pairs of the block.
template <class T>
void EngineOf<T>::backward_block(ThreadWorkspace<T>& work, const Block& block, int t, const V* a) {
  message_rows_gradient(work, block, t);
  V* grad_a = work.grad_a.ensure(a_size());
  moments_gradient(work, block, t, a, grad_a);
  if (m_.stages > 1) pass_to_previous(work, block, t, grad_a);
  const bool first = t == m_.stages - 1;
  PairSums<T> sums = {};
  pairs_gradient(work, block, t, grad_a, first, sums);
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    double* own = own_.data() + 12 * (block.first + lane);
    for (int k = 0; k < 12; ++k) {
      const double sum = k < 3 ? sums.gradient[k][lane] : sums.virial[k - 3][lane];
      own[k] = first ? sum : own[k] + sum;
    }
  }
}

// dE/dw and dE/dA of senders, through the messages that receivers of generation t got.
template <class T>
void EngineOf<T>::gather_at_senders(int t) {
  StepData<T>& s = steps_[t - 1];
  if (!s.step->bchi && !s.step->ar) return;
  const int n_all = frame_.n_all, size = s.n_l * s.n_x;
  bool failed = false;
#pragma omp parallel for schedule(dynamic, 16) num_threads(n_works_) if (n_works_ > 1 && n_all > 16)
  for (int i = 0; i < n_all; ++i) {
    ThreadWorkspace<T>& work = works_[omp_get_thread_num()];
    ScopedTimer timer(work.ticks_of, kMessages);
    const int32_t* sent = list_.sent + list_.sent_first[i];
    const int64_t n_sent = list_.sent_first[i + 1] - list_.sent_first[i];
    try {
      if (n_sent == 0) {  // a ghost that no pair uses
        s.no_gradients(i);
        continue;
      }
      if (s.step->bchi) {
        T* sum = reinterpret_cast<T*>(work.ar.ensure(size / W + 1));
        for (int f = 0; f < size; ++f) sum[f] = T(0);
        for (int k = 0; k < n_segments_; ++k) {
          const T* from = segment_sums_.data() + (size_t(k) * n_all + i) * size;
          for (int f = 0; f < size; ++f) sum[f] += from[f];
        }
        s.take_factor_gradients(m_, h_s_.data() + size_t(frame_.species[i]) * m_.k, sum, i);
      }
      if (s.step->ar)
        ar_sender_gradient(work, m_, s, radial_.cutoff, i, sent, n_sent, receiver_.data(),
                           distance_.data(), pair_dr_.data());
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
  }
  if (failed) throw OutOfMemory();
}

// Forces: gradients of the pairs that an atom sends, minus those that it receives, in the order of
// the list; virials: atoms in order.  No atomics, so the same bits for any number of threads.
template <class T>
void EngineOf<T>::finish(const cf_result& result) {
  const int n_all = frame_.n_all, n = frame_.n_owned;
  if (result.energies) make_energies();
  ScopedTimer timer(&forces_ticks_, Part(0));
  int64_t bad = INT64_MAX;
  if (result.forces) {
#pragma omp parallel for schedule(static) num_threads(n_works_) if (n_works_ > 1 && n_all > kFew) \
    reduction(min : bad)
    for (int i = 0; i < n_all; ++i) {
      T sum[kRow] = {};
      for (int64_t e = list_.sent_first[i]; e < list_.sent_first[i + 1]; ++e) {
        const T* g = pair_gradient_.data() + kRow * int64_t(list_.sent[e]);
        for (int k = 0; k < kRow; ++k) sum[k] += g[k];
      }
      for (int k = 0; k < 3; ++k) {
        const double f = double(sum[k]) - (i < n ? own_[12 * int64_t(i) + k] : 0.0);
        result.forces[3 * int64_t(i) + k] = f;
        if (!(::fabs(f) < HUGE_VAL)) bad = i < bad ? i : bad;
      }
    }
  }
  if (result.atom_virials) virials_of_senders(result.atom_virials);
  if (result.energies) ::memcpy(result.energies, energies_.data(), sizeof(double) * size_t(n));
  if (result.virials) {
    for (int i = 0; i < 9 * frame_.n_systems; ++i) result.virials[i] = 0.0;
    for (int i = 0; i < n; ++i) {
      double* to = result.virials + 9 * (frame_.system ? frame_.system[i] : 0);
      for (int k = 0; k < 9; ++k) to[k] -= own_[12 * int64_t(i) + 3 + k];
    }
  }
  if (bad != INT64_MAX) throw NotFinite("forces: not finite", bad);
}

template <class T>
void EngineOf<T>::virials_of_senders(double* virials) {
  int32_t* receiver = receiver_.reserve_slack(size_t(list_.n_pairs) + 1);
  for (int i = 0; i < frame_.n_owned; ++i)
    for (int64_t e = list_.first[i]; e < list_.first[i + 1]; ++e) receiver[e] = int32_t(i);
  const bool shifted = list_.shift && frame_.shift_vectors;
#pragma omp parallel for schedule(static) \
    num_threads(n_works_) if (n_works_ > 1 && frame_.n_all > kFew)
  for (int i = 0; i < frame_.n_all; ++i) {
    double* sum = virials + 9 * int64_t(i);
    for (int k = 0; k < 9; ++k) sum[k] = 0.0;
    const AtomRecord& from = sites_[i];
    for (int64_t s = list_.sent_first[i]; s < list_.sent_first[i + 1]; ++s) {
      const int64_t e = list_.sent[s];
      const T* g = pair_gradient_.data() + kRow * e;
      const AtomRecord& to = sites_[receiver[e]];
      double d[3] = {to.x - from.x, to.y - from.y, to.z - from.z};
      for (int k = 0; shifted && k < 3; ++k)
        d[k] += frame_.shift_vectors[3 * int64_t(list_.shift[e]) + k];
      for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b) sum[3 * a + b] -= d[a] * double(g[b]);
    }
  }
}

}  // namespace CF_ISA
}  // namespace cace_fast
