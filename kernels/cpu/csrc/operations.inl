// Single operations on plain double arrays, for tests and for the operators of the Python package.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "block.inl"
#include "engine_impl.inl"
#include "model.h"
#include "moments.inl"
#include "packed.inl"
#include "params.inl"
#include "simd.inl"
#include "tape.inl"

namespace cace_fast {
namespace CF_ISA {

// [n][R][n_middle][C] in double <-> [R][C][n_middle] in lanes.
template <class T>
inline void load_lanes(const Model& m, const double* from, int n_middle, const Block& block,
                       Vec<T>* to) {
  for (int q = 0; q < m.r; ++q)
    for (int c = 0; c < m.c; ++c)
      for (int k = 0; k < n_middle; ++k, ++to) {
        *to = Vec<T>{};
        for (int lane = 0; lane < block.n_lanes; ++lane)
          (*to)[lane] = T(from[(((block.first + lane) * m.r + q) * n_middle + k) * m.c + c]);
      }
}
template <class T>
inline void store_lanes(const Model& m, const Vec<T>* from, int n_middle, const Block& block,
                        double* to) {
  for (int q = 0; q < m.r; ++q)
    for (int c = 0; c < m.c; ++c)
      for (int k = 0; k < n_middle; ++k, ++from)
        for (int lane = 0; lane < block.n_lanes; ++lane)
          to[(((block.first + lane) * m.r + q) * n_middle + k) * m.c + c] = (*from)[lane];
}

template <class T>
void EngineOf<T>::copy_pair_gradients(double* to) const {
  for (int64_t e = 0; e < list_.n_pairs; ++e)
    for (int k = 0; k < 3; ++k) to[3 * e + k] = pair_gradient_[kRow * e + k];
}

template <class T>
void EngineOf<T>::op_moments(double* a) {
  over_blocks([&](Work<T>& work, const Block& block) {
    find_neighbors(work, block, 0);
    V* lanes = work.a.need(a_size());
    make_moments(work, block, 0, lanes);
    store_lanes<T>(m_, lanes, m_.n_a, block, a);
  });
}

template <class T>
void EngineOf<T>::op_moments_gradient(const double* grad_out, double* grad_vectors) {
  over_blocks([&](Work<T>& work, const Block& block) {
    find_neighbors(work, block, 0);
    V* grad_a = work.grad_a.need(a_size());
    load_lanes<T>(m_, grad_out, m_.n_a, block, grad_a);
    pass_to_previous(work, block, 0, grad_a);
    PairSums<T> sums = {};
    for (int64_t e = list_.first[block.first];
         m_.stages > 1 && m_.steps[0].ar && e < list_.first[block.first + block.n_lanes]; ++e)
      pair_dr_[e] = T(0);  // no message follows here
    pairs_gradient(work, block, 0, grad_a, true, sums);
  });
  copy_pair_gradients(grad_vectors);
}

template <class T>
void EngineOf<T>::op_contraction(int64_t n, const double* a, double* b) {
  over_blocks_of(n, (n + W - 1) / W, [&](Work<T>& work, const Block& block) {
    V* from = work.a.need(a_size());
    V* to = work.b.need(m_.n_features());
    V* scratch = work.scratch.need(contraction_.scratch() + 1);
    load_lanes<T>(m_, a, m_.n_a, block, from);
    for (int q = 0; q < m_.r * m_.c; ++q)
      contraction_.values(from + size_t(q) * m_.n_a, to + size_t(q) * m_.n_inv, scratch);
    store_lanes<T>(m_, to, m_.n_inv, block, b);
  });
}

template <class T>
void EngineOf<T>::op_contraction_gradient(int64_t n, const double* a, const double* grad_out,
                                          double* grad_a) {
  over_blocks_of(n, (n + W - 1) / W, [&](Work<T>& work, const Block& block) {
    V* from = work.a.need(a_size());
    V* gradient = work.grad_b.need(m_.n_features());
    V* to = work.grad_a.need(a_size());
    V* scratch = work.scratch.need(contraction_.scratch() + 1);
    load_lanes<T>(m_, a, m_.n_a, block, from);
    load_lanes<T>(m_, grad_out, m_.n_inv, block, gradient);
    for (int q = 0; q < m_.r * m_.c; ++q)
      contraction_.gradient(from + size_t(q) * m_.n_a, gradient + size_t(q) * m_.n_inv,
                            to + size_t(q) * m_.n_a, scratch);
    store_lanes<T>(m_, to, m_.n_a, block, grad_a);
  });
}

// A and B of the generation before `step`, and what senders make of them.
template <class T>
void EngineOf<T>::take_op_inputs(int step, const double* a, const double* b) {
  over_blocks([&](Work<T>& work, const Block& block) {
    V* kept = kept_a_[step].data() + block.number * a_size();
    load_lanes<T>(m_, a, m_.n_a, block, kept);
    load_lanes<T>(m_, b, m_.n_inv, block, work.b.need(m_.n_features()));
    first_layers(work, block, step);
    make_message(work, block, step, kept);
  });
}

template <class T>
void EngineOf<T>::op_messages(int step, const double* a, const double* b, double* out) {
  take_op_inputs(step, a, b);
  over_blocks([&](Work<T>& work, const Block& block) {
    find_neighbors(work, block, step + 1);
    V* lanes = work.a.need(a_size());
    make_moments(work, block, step + 1, lanes);
    store_lanes<T>(m_, lanes, m_.n_a, block, out);
  });
}

template <class T>
void EngineOf<T>::op_messages_gradient(int step, const double* a, const double* b,
                                       const double* grad_out, double* grad_a, double* grad_b,
                                       double* grad_vectors) {
  take_op_inputs(step, a, b);
  over_receivers(step + 1, [&](Work<T>& work, const Block& block) {
    find_neighbors(work, block, step + 1);
    V* gradient = work.grad_a.need(a_size());
    load_lanes<T>(m_, grad_out, m_.n_a, block, gradient);
    pass_to_previous(work, block, step + 1, gradient);
    PairSums<T> sums = {};
    for (int64_t e = list_.first[block.first]; step + 1 < m_.stages - 1 && m_.steps[step + 1].ar &&
                                               e < list_.first[block.first + block.n_lanes];
         ++e)
      pair_dr_[e] = T(0);  // no further message follows here
    pairs_gradient(work, block, step + 1, gradient, true, sums);
  });
  gather_at_senders(step + 1);
  const Stack<T>& stack = stacks_[step];
  over_blocks([&](Work<T>& work, const Block& block) {
    V* gradient = work.grad_a.need(a_size());
    for (size_t i = 0; i < a_size(); ++i) gradient[i] = V{};
    add_later_gradients(block, step, gradient);
    store_lanes<T>(m_, gradient, m_.n_a, block, grad_a);
    V* kept = grad_rows_.data() + size_t(block.number) * stack.n_readout;
    for (int i = 0; i < stack.n_readout; ++i) kept[i] = V{};  // read-outs are not asked here
    message_rows_gradient(work, block, step);
    V* to = work.grad_b.need(m_.n_features());
    for (int f = 0; f < m_.n_features(); ++f) to[f] = V{};
    if (stack.n_message) add_weighted(stack.backward, work.grad_rows.data(), to);
    store_lanes<T>(m_, to, m_.n_inv, block, grad_b);
    find_neighbors(work, block, step + 1);
    PairSums<T> sums = {};
    if (const V* dr = distance_gradients(work, block, step))
      distance_gradient(work, dr, pair_gradient_.data() + kRow * list_.first[block.first], sums);
  });
  copy_pair_gradients(grad_vectors);
}

// Values of the first layers of one network, from inputs in the order of its file.
template <class T>
inline void root_values(const Net& net, const Tape<T>& tape, const double* x, const Block& block,
                        Vec<T>* values) {
  for (int i = 0; i < tape.n_roots(); ++i) values[i] = Vec<T>{};
  Vec<T> columns[kPart];
  for (int first = 0; first < net.n_in; first += kPart) {
    const int n = int(part_end(first, net.n_in)) - first;
    for (int j = 0; j < n; ++j) {
      columns[j] = Vec<T>{};
      for (int lane = 0; lane < block.n_lanes; ++lane)
        columns[j][lane] = T(x[(block.first + lane) * net.n_in + first + j]);
    }
    Vec<T>* to = values;
    for (const Affine& root : net.roots)
      for (int i = 0; i < root.out; ++i, ++to) {
        const double* w = root.w.data() + size_t(i) * net.n_in + first;
        Vec<T> sum = {};
        for (int j = 0; j < n; ++j) sum += T(w[j]) * columns[j];
        *to += sum;
      }
  }
  tape.begin(values, values);
}

template <class T>
void EngineOf<T>::op_readout(int h, int64_t n, const double* x, double* y) {
  const Net& net = m_.heads[h].net;
  const Tape<T>& tape = tapes_[h];
  over_blocks_of(n, (n + W - 1) / W, [&](Work<T>& work, const Block& block) {
    V* values = work.values.need(largest_tape_);
    root_values<T>(net, tape, x, block, values);
    tape.forward(values, work.slopes.need(largest_tape_));
    for (int lane = 0; lane < block.n_lanes; ++lane)
      for (int k = 0; k < tape.n_out(); ++k)
        y[(block.first + lane) * tape.n_out() + k] = values[tape.output() + k][lane];
  });
}

template <class T>
void EngineOf<T>::op_readout_gradient(int h, int64_t n, const double* x, const double* grad_out,
                                      double* grad_x) {
  const Net& net = m_.heads[h].net;
  const Tape<T>& tape = tapes_[h];
  over_blocks_of(n, (n + W - 1) / W, [&](Work<T>& work, const Block& block) {
    V* values = work.values.need(largest_tape_);
    V* slopes = work.slopes.need(largest_tape_);
    V* gradients = work.gradients.need(largest_tape_);
    root_values<T>(net, tape, x, block, values);
    tape.forward(values, slopes);
    for (int i = 0; i < tape.size(); ++i) gradients[i] = V{};
    for (int lane = 0; lane < block.n_lanes; ++lane)
      for (int k = 0; k < tape.n_out(); ++k)
        gradients[tape.output() + k][lane] = T(grad_out[(block.first + lane) * tape.n_out() + k]);
    tape.backward(slopes, gradients);
    for (int j = 0; j < net.n_in; ++j) {
      V sum = {};
      int row = 0;
      for (const Affine& root : net.roots)
        for (int i = 0; i < root.out; ++i, ++row)
          sum += T(root.w[size_t(i) * net.n_in + j]) * gradients[row];
      for (int lane = 0; lane < block.n_lanes; ++lane)
        grad_x[(block.first + lane) * net.n_in + j] = sum[lane];
    }
  });
}

}  // namespace CF_ISA
}  // namespace cace_fast
