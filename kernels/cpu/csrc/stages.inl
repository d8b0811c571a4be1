// Forward stages of a block, and the begin of a step.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

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

template <class T>
void EngineOf<T>::begin(const cf_frame& frame) {
  frame_ = frame;
  given_species_ = frame.species;
  list_ = *frame.list;
  frame_.list = &list_;
  energies_too_ = true;
  energies_made_ = weighted_ = false;
  const size_t n = frame.n_owned, n_all = frame.n_all, n_pairs = list_.n_pairs;
  n_blocks_ = (int64_t(n) + W - 1) / W;
  forget_slots();
  AtomRecord* sites = sites_.reserve_slack(n_all + 1);
  int32_t* species = species_.reserve_slack(n_all + 1);
  frame_.species = species;
  for (size_t i = 0; i < n_all; ++i) {
    const double* r = frame.positions + 3 * i;
    if (!(::fabs(r[0]) < HUGE_VAL && ::fabs(r[1]) < HUGE_VAL && ::fabs(r[2]) < HUGE_VAL))
      throw NotFinite("positions: not finite", int64_t(i));
    species[i] = frame.species[i] < 0 ? 0 : frame.species[i];
    sites[i] = {r[0], r[1], r[2], species[i]};
  }
  pair_gradient_.reserve_slack(kRow * n_pairs + 1);
  own_.reserve_slack(12 * n + 1);
  energies_.reserve_slack(n + 1);
  charges_.reserve_slack(n * m_.n_charges + 1);
  charge_gradient_.zeros(n * m_.n_charges + 1);
  rows_.reserve_slack(size_t(n_blocks_) * stacks_[0].n_readout + 1);
  count_systems();
  if (m_.stages == 1) return;
  grad_rows_.reserve_slack(size_t(n_blocks_) * stacks_[0].n_readout + 1);
  for (int t = 0; t < m_.stages; ++t) kept_a_[t].reserve_slack(size_t(n_blocks_) * a_size() + 1);
  for (int t = 0; t < m_.stages - 1; ++t) {
    steps_[t].begin(n_all, size_t(n_blocks_) + 1);
    if (m_.steps[t].memory) kept_grad_.reserve_slack(size_t(n_blocks_) * a_size() + 1);
  }
  if (!any_ar()) return;
  distance_.reserve_slack(n_pairs + 1);
  pair_dr_.reserve_slack(n_pairs + 1);
  int32_t* receiver = receiver_.reserve_slack(n_pairs + 1);
  for (size_t i = 0; i < n; ++i)
    for (int64_t e = list_.first[i]; e < list_.first[i + 1]; ++e) receiver[e] = int32_t(i);
}

template <class T>
void EngineOf<T>::forget_slots() {
  for (Buffer<KeptSlots<T>>& blocks : kept_slots_) {
    KeptSlots<T>* kept = blocks.reserve_slack(size_t(n_blocks_) + 1);
    for (int64_t block = 0; block < n_blocks_; ++block) kept[block].n_slots = -1;
  }
  for (int i = 0; i < n_works_; ++i) works_[i].kept_slots.reset();
}

template <class T>
void EngineOf<T>::count_systems() {
  double* size = system_size_.reserve_slack(size_t(frame_.n_systems) + 1);
  for (int s = 0; s < frame_.n_systems; ++s)
    size[s] = frame_.system_size ? frame_.system_size[s] : 0;
  if (frame_.system_size) return;
  for (int i = 0; i < frame_.n_owned; ++i)
    size[frame_.system ? frame_.system[i] : 0] += given_species_[i] >= 0;
}

template <class T>
void EngineOf<T>::find_neighbors(ThreadWorkspace<T>& work, const Block& block, int t, bool keep) {
  static const double no_shift[3] = {0.0, 0.0, 0.0};
  const bool shifted = list_.shift && frame_.shift_vectors;
  const int n_groups = grouped(t) ? n_groups_ : 1;
  KeptSlots<T>& kept = kept_slots_[grouped(t) ? 1 : 0][block.number];
  if (kept.n_slots >= 0) {
    take_slots(work, n_groups, kept);
  } else {
    find_slots(work, block, list_, sites_.data(), shifted ? frame_.shift_vectors : no_shift,
               m_.cutoff, n_groups);
    if (keep) keep_slots(work, n_groups, kept);
  }
  radial_of_slots(work, block, radial_);
  if (!any_ar()) return;
  const int64_t base = list_.first[block.first], end = list_.first[block.first + block.n_lanes];
  for (int64_t e = base; e < end; ++e) distance_[e] = T(-1);
  for (int slot = 0; slot < work.n_slots; ++slot)
    for (int lane = 0; lane < W; ++lane) {
      const int pair = work.pair[size_t(slot) * W + lane];
      if (pair >= 0) distance_[base + pair] = work.geometry[size_t(slot) * kGeometry + kR][lane];
    }
}

// A of generation t: moments, or messages.
template <class T>
void EngineOf<T>::make_moments(ThreadWorkspace<T>& work, const Block& block, int t, V* a) {
  const size_t size = size_t(m_.n_b) * m_.n_a;
  const Step* step = t > 0 ? &m_.steps[t - 1] : nullptr;
  V h_r[kMaxEmbedding];
  receivers(block, step ? m_.mp_norm : 1.0, h_r);
  if (step && !step->bchi) {
    for (size_t i = 0; i < a_size(); ++i) a[i] = V{};
  } else {
    if (grouped(t)) {
      grouped_sums(work, m_, n_groups_);
    } else {
      weighted_sums(work, m_, factors(block, t), list_, list_.first[block.first], frame_.species);
    }
    ScopedTimer timer(work.ticks_of, kMix);
    const V* rho = work.rho.data();
    if (grouped(t)) {
      V* mixed = work.rho_mixed.ensure(m_.k * size);
      mix_groups<T>(m_, h_s_.data(), rho, mixed);
      rho = mixed;
    }
    mix<T>(m_.l_max, mixing(t), layout(t), h_r, rho, a);
  }
  if (!step) return;
  const StepData<T>& s = steps_[t - 1];
  if (step->memory) {
    const V* before = kept_a_[t - 1].data() + block.number * a_size();
    for (int q = 0; q < m_.r * m_.c; ++q)
      for (int l = 0; l <= m_.l_max; ++l) {
        const T w = s.memory[size_t(l) * m_.r * m_.c + q];
        for (int i = degree_offset(l); i < degree_offset(l + 1); ++i)
          a[q * m_.n_a + i] += w * before[q * m_.n_a + i];
      }
  }
  if (step->ar) ar_sums(work, m_, s, block, list_, a);
}

// Starts the first layers of the read-outs with the further inputs of the atoms, without biases.
template <class T>
void EngineOf<T>::start_rows(const Block& block, V* rows) const {
  int row = 0;
  for (size_t h = 0; h < m_.heads.size(); ++h) {
    const Head& head = m_.heads[h];
    for (const Affine& layer : head.net.first_layers)
      for (int i = 0; i < layer.out; ++i, ++row) {
        rows[row] = V{};
        for (int x = 0; x < head.n_extra; ++x) {
          const T w = T(layer.w[size_t(i) * layer.in + layer.in - head.n_extra + x]);
          for (int lane = 0; lane < block.n_lanes; ++lane)
            rows[row][lane] += w * T(frame_.extras[h][(block.first + lane) * head.n_extra + x]);
        }
      }
  }
}

// B of A, and its part in the first layers of all networks.
template <class T>
void EngineOf<T>::invariants(ThreadWorkspace<T>& work, const Block& block, int t, const V* a,
                             double* features) {
  V* b = work.b.ensure(size_t(m_.n_features()));
  {
    ScopedTimer timer(work.ticks_of, kContract);
    V* scratch = work.scratch.ensure(contraction_.scratch() + 1);
    for (int i = 0; i < m_.r * m_.c; ++i)
      contraction_.values(a + size_t(i) * m_.n_a, b + size_t(i) * m_.n_inv, scratch);
  }
  if (features) {
    for (int f = 0; f < m_.n_features(); ++f)
      for (int lane = 0; lane < block.n_lanes; ++lane)
        features[(size_t(block.first + lane) * m_.n_features() + Stack<T>::feature(m_, f)) *
                     m_.stages +
                 t] = b[f][lane];
  }
  first_layers(work, block, t);
}

// The part of the invariants work.b of generation t in the first layers of all networks.
template <class T>
void EngineOf<T>::first_layers(ThreadWorkspace<T>& work, const Block& block, int t) {
  ScopedTimer timer(work.ticks_of, kReadout);
  const Stack<T>& stack = stacks_[t];
  if (!stack.rows()) return;
  V* rows = work.rows.ensure(stack.rows());
  V* kept = rows_.data() + size_t(block.number) * stack.n_readout;
  if (t == 0) {
    start_rows(block, rows);
  } else {
    for (int i = 0; i < stack.n_readout; ++i) rows[i] = kept[i];
  }
  for (int i = stack.n_readout; i < stack.rows(); ++i) rows[i] = V{};
  add_weighted(stack.forward, work.b.data(), rows);
  for (int i = 0; i < stack.n_readout; ++i) kept[i] = rows[i];
}

// Arrays of senders after generation t.
template <class T>
void EngineOf<T>::make_message(ThreadWorkspace<T>& work, const Block& block, int t, const V* a) {
  StepData<T>& s = steps_[t];
  if (s.step->bchi) {
    ScopedTimer timer(work.ticks_of, kReadout);
    V* values = work.values.ensure(largest_program_);
    V* kept = s.rows.data() + size_t(block.number) * s.mlp.n_first_rows();
    for (int i = 0; i < s.mlp.n_first_rows(); ++i) kept[i] = work.rows[stacks_[t].n_readout + i];
    s.mlp.begin(kept, values);
    s.mlp.forward(values, work.slopes.ensure(largest_program_));
    for (int lane = 0; lane < block.n_lanes; ++lane) {
      const size_t atom = block.first + lane;
      for (int i = 0; i < s.n_w; ++i) s.w[atom * s.n_w + i] = values[s.mlp.output() + i][lane];
      s.make_factors(m_, h_s_.data() + size_t(frame_.species[atom]) * m_.k, atom);
    }
  }
  if (!s.step->ar) return;
  ScopedTimer timer(work.ticks_of, kMessages);
  lanes_to_atoms<T>(a, block, m_, s, false, s.a.data());
}

// Charges from the rows, or with them energies, or dE/drows as well.
template <class T>
void EngineOf<T>::read_out(ThreadWorkspace<T>& work, const Block& block, Values wanted) {
  ScopedTimer timer(work.ticks_of, kReadout);
  V* values = work.values.ensure(largest_program_);
  V* slopes = work.slopes.ensure(largest_program_);
  V* gradients = work.gradients.ensure(largest_program_);
  V* grad_rows = work.grad_rows.ensure(most_rows_);
  double energy[W] = {}, bad[W] = {};
  for (size_t h = 0, row = 0; h < m_.heads.size(); row += programs_[h].n_first_rows(), ++h) {
    const MlpProgram<T>& mlp = programs_[h];
    const cf_head& info = m_.heads[h].info;
    if (wanted == Values::kCharges && !info.charges) continue;
    mlp.begin(work.rows.data() + row, values);
    mlp.forward(values, slopes);
    for (int i = 0; i < mlp.size(); ++i) gradients[i] = V{};
    for (int lane = 0; lane < block.n_lanes; ++lane) {
      const int64_t atom = block.first + lane;
      const double size = info.average ? system_size_[frame_.system ? frame_.system[atom] : 0] : 1;
      for (int k = 0; k < mlp.n_out(); ++k) {
        const bool present = given_species_[atom] >= 0;
        const double y = present ? double(values[mlp.output() + k][lane]) : 0.0;
        double slope = 0.0;
        bad[lane] += y - y;  // NaN when y is not finite
        if (info.charges) {
          const size_t at = size_t(atom) * m_.n_charges + m_.heads[h].first_charge + k;
          charges_[at] = y;
          slope += charge_gradient_[at];
        }
        if (k == info.energy_column) {
          energy[lane] += info.energy_weight / size * y;
          if (energies_too_)
            slope += info.energy_weight / size * (weighted_ ? energy_weights_[atom] : 1.0);
        }
        gradients[mlp.output() + k][lane] = present ? T(slope) : T(0);
      }
    }
    if (wanted != Values::kBackward) continue;
    mlp.backward(slopes, gradients);
    for (int i = 0; i < mlp.n_first_rows(); ++i) grad_rows[row + i] = gradients[i];
  }
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    energies_[block.first + lane] = energy[lane];
    if (bad[lane] != 0.0 && block.first + lane < work.bad_atom) work.bad_atom = block.first + lane;
  }
}

}  // namespace CF_ISA
}  // namespace cace_fast
