// Single operations on plain double arrays.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "block.inl"
#include "cace_fast.h"
#include "contraction.inl"
#include "engine.h"
#include "engine_impl.inl"
#include "mlp_program.inl"
#include "model.h"
#include "moments.inl"
#include "packed.inl"
#include "params.inl"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

// [n][r][n_middle][c] in double <-> [r][c][n_middle] in lanes.
template <class T>
inline void load_lanes(int r, int64_t c, const double* from, int n_middle, const Block& block,
                       Vec<T>* to) {
  for (int q = 0; q < r; ++q)
    for (int64_t x = 0; x < c; ++x)
      for (int k = 0; k < n_middle; ++k, ++to) {
        *to = Vec<T>{};
        for (int lane = 0; lane < block.n_lanes; ++lane)
          (*to)[lane] = T(from[(((block.first + lane) * r + q) * n_middle + k) * c + x]);
      }
}
template <class T>
inline void store_lanes(int r, int64_t c, const Vec<T>* from, int n_middle, const Block& block,
                        double* to) {
  for (int q = 0; q < r; ++q)
    for (int64_t x = 0; x < c; ++x)
      for (int k = 0; k < n_middle; ++k, ++from)
        for (int lane = 0; lane < block.n_lanes; ++lane)
          to[(((block.first + lane) * r + q) * n_middle + k) * c + x] = (*from)[lane];
}

// f(block) for all blocks of n atoms, in this thread.
template <class T, class F>
inline void each_block(int64_t n, const F& f) {
  constexpr int W = Simd<T>::width;
  for (int64_t first = 0; first < n; first += W)
    f(Block{first / W, first, int(n - first < W ? n - first : W), 0});
}

template <class T>
inline void contract_lanes(const ContractionCall& call) {
  const Contraction<T> contraction(call.l_max, call.nu_max);
  const int n_a = n_monomials(call.l_max), n_b = n_invariants(call.l_max, call.nu_max);
  const int64_t c = call.n_channels;
  Buffer<Vec<T>> buffer;
  Vec<T>* scratch = buffer.ensure(contraction.scratch() + c * (2 * n_a + n_b) + 1);
  Vec<T>*a = scratch + contraction.scratch(), *grad_a = a + c * n_a, *b = grad_a + c * n_a;
  each_block<T>(call.n, [&](const Block& block) {
    load_lanes<T>(1, c, call.a, n_a, block, a);
    if (call.grad_out) {
      load_lanes<T>(1, c, call.grad_out, n_b, block, b);
      for (int64_t x = 0; x < c; ++x)
        contraction.gradient(a + x * n_a, b + x * n_b, grad_a + x * n_a, scratch);
      store_lanes<T>(1, c, grad_a, n_a, block, call.out);
    } else {
      for (int64_t x = 0; x < c; ++x) contraction.values(a + x * n_a, b + x * n_b, scratch);
      store_lanes<T>(1, c, b, n_b, block, call.out);
    }
  });
}

// Gradients of the edges in the order of the caller.
template <class T>
void EngineOf<T>::copy_edge_gradients(double* to) const {
  for (int64_t e = 0; e < list_.n_pairs; ++e)
    for (int k = 0; k < 3; ++k) to[3 * int64_t(list_.shift[e]) + k] = pair_gradient_[kRow * e + k];
}

template <class T>
void EngineOf<T>::op_moments(double* a) {
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, 0);
    V* lanes = work.a.ensure(a_size());
    make_moments(work, block, 0, lanes);
    store_lanes<T>(m_.r, m_.c, lanes, m_.n_a, block, a);
  });
}

template <class T>
void EngineOf<T>::op_moments_gradient(const double* grad_out, double* grad_vectors) {
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, 0);
    V* grad_a = work.grad_a.ensure(a_size());
    load_lanes<T>(m_.r, m_.c, grad_out, m_.n_a, block, grad_a);
    pass_to_previous(work, block, 0, grad_a);
    PairSums<T> sums = {};
    for (int64_t e = list_.first[block.first];
         m_.stages > 1 && m_.steps[0].ar && e < list_.first[block.first + block.n_lanes]; ++e)
      pair_dr_[e] = T(0);  // no message follows here
    pairs_gradient(work, block, 0, grad_a, true, sums);
  });
  copy_edge_gradients(grad_vectors);
}

// A and B of the generation before the step, and the arrays of senders made of them.
template <class T>
void EngineOf<T>::take_message(const cf_message& in) {
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    V* kept = kept_a_[in.step].data() + block.number * a_size();
    load_lanes<T>(m_.r, m_.c, in.a, m_.n_a, block, kept);
    load_lanes<T>(m_.r, m_.c, in.b, m_.n_inv, block, work.b.ensure(m_.n_features()));
    first_layers(work, block, in.step);
    make_message(work, block, in.step, kept);
  });
}

template <class T>
void EngineOf<T>::op_messages(const cf_message& in, double* out) {
  take_message(in);
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, in.step + 1);
    V* lanes = work.a.ensure(a_size());
    make_moments(work, block, in.step + 1, lanes);
    store_lanes<T>(m_.r, m_.c, lanes, m_.n_a, block, out);
  });
}

template <class T>
void EngineOf<T>::op_messages_gradient(const cf_message& in, const double* grad_out, double* grad_a,
                                       double* grad_b, double* grad_vectors) {
  take_message(in);
  const int step = in.step;
  over_receivers(step + 1, [&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, step + 1);
    V* gradient = work.grad_a.ensure(a_size());
    load_lanes<T>(m_.r, m_.c, grad_out, m_.n_a, block, gradient);
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
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    V* gradient = work.grad_a.ensure(a_size());
    for (size_t i = 0; i < a_size(); ++i) gradient[i] = V{};
    add_later_gradients(block, step, gradient);
    store_lanes<T>(m_.r, m_.c, gradient, m_.n_a, block, grad_a);
    V* kept = grad_rows_.data() + size_t(block.number) * stack.n_readout;
    for (int i = 0; i < stack.n_readout; ++i) kept[i] = V{};  // read-outs are not asked here
    message_rows_gradient(work, block, step);
    V* to = work.grad_b.ensure(m_.n_features());
    for (int f = 0; f < m_.n_features(); ++f) to[f] = V{};
    if (stack.n_message) add_weighted(stack.backward, work.grad_rows.data(), to);
    store_lanes<T>(m_.r, m_.c, to, m_.n_inv, block, grad_b);
    find_neighbors(work, block, step + 1);
    PairSums<T> sums = {};
    if (const V* dr = distance_gradients(work, block, step))
      distance_gradient(work, dr, pair_gradient_.data() + kRow * list_.first[block.first], sums);
  });
  copy_edge_gradients(grad_vectors);
}

// Values of the first layers of one network, from inputs in the order of its file.
template <class T>
inline void first_layer_values(const Net& net, const MlpProgram<T>& mlp, const double* x,
                               const Block& block, Vec<T>* values) {
  for (int i = 0; i < mlp.n_first_rows(); ++i) values[i] = Vec<T>{};
  Vec<T> columns[kPart];
  for (int first = 0; first < net.n_in; first += kPart) {
    const int n = int(part_end(first, net.n_in)) - first;
    for (int j = 0; j < n; ++j) {
      columns[j] = Vec<T>{};
      for (int lane = 0; lane < block.n_lanes; ++lane)
        columns[j][lane] = T(x[(block.first + lane) * net.n_in + first + j]);
    }
    Vec<T>* to = values;
    for (const Affine& layer : net.first_layers)
      for (int i = 0; i < layer.out; ++i, ++to) {
        const double* w = layer.w.data() + size_t(i) * net.n_in + first;
        Vec<T> sum = {};
        for (int j = 0; j < n; ++j) sum += T(w[j]) * columns[j];
        *to += sum;
      }
  }
  mlp.begin(values, values);
}

template <class T>
class NetworkOf final : public Network {
  typedef Vec<T> V;

 public:
  explicit NetworkOf(const Net& net) : net_(net) { tape_.prepare(net); }

  void run(int64_t n, const double* x, double* y) const override {
    const int n_out = tape_.n_out();
    Buffer<V> buffer;
    V *values = buffer.ensure(2 * size_t(tape_.size())), *slopes = values + tape_.size();
    each_block<T>(n, [&](const Block& block) {
      first_layer_values<T>(net_, tape_, x, block, values);
      tape_.forward(values, slopes);
      for (int lane = 0; lane < block.n_lanes; ++lane)
        for (int k = 0; k < n_out; ++k)
          y[(block.first + lane) * n_out + k] = values[tape_.output() + k][lane];
    });
  }

  void gradient(int64_t n, const double* x, const double* grad_out, double* grad_x) const override {
    const int size = tape_.size(), n_out = tape_.n_out();
    Buffer<V> buffer;
    V *values = buffer.ensure(3 * size_t(size)), *slopes = values + size,
      *gradients = slopes + size;
    each_block<T>(n, [&](const Block& block) {
      first_layer_values<T>(net_, tape_, x, block, values);
      tape_.forward(values, slopes);
      for (int i = 0; i < size; ++i) gradients[i] = V{};
      for (int lane = 0; lane < block.n_lanes; ++lane)
        for (int k = 0; k < n_out; ++k)
          gradients[tape_.output() + k][lane] = T(grad_out[(block.first + lane) * n_out + k]);
      tape_.backward(slopes, gradients);
      root_gradients(block, gradients, grad_x);
    });
  }

 private:
  void root_gradients(const Block& block, const V* gradients, double* grad_x) const {
    for (int j = 0; j < net_.n_in; ++j) {
      V sum = {};
      int row = 0;
      for (const Affine& layer : net_.first_layers)
        for (int i = 0; i < layer.out; ++i, ++row)
          sum += T(layer.w[size_t(i) * net_.n_in + j]) * gradients[row];
      for (int lane = 0; lane < block.n_lanes; ++lane)
        grad_x[(block.first + lane) * net_.n_in + j] = sum[lane];
    }
  }

  const Net& net_;
  MlpProgram<T> tape_;
};

}  // namespace CF_ISA
}  // namespace cace_fast
