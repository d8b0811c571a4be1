// The engine in one precision: its buffers, and how threads share blocks of atoms.  The files that
// include this one have the work on a block and its order.
#pragma once

#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <new>

#include "block.inl"
#include "cace_fast.h"
#include "contraction.inl"
#include "engine.h"
#include "error.h"
#include "messages.inl"
#include "mlp_program.inl"
#include "model.h"
#include "moments.inl"
#include "params.inl"
#include "radial.inl"
#include "sender_weighted_sums.inl"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

template <class T>
class EngineOf final : public Engine {
  typedef Vec<T> V;
  static constexpr int W = Simd<T>::width;

 public:
  explicit EngineOf(const Model& model)
      : m_(model), radial_(model), contraction_(model.l_max, model.nu_max),
        stacks_(new Stack<T>[model.stages]), steps_(new StepData<T>[model.stages]),
        kept_a_(new Buffer<V>[model.stages]), programs_(new MlpProgram<T>[model.heads.size() + 1]) {
    h_s_.ensure(model.h_s.size());
    h_r_.ensure(model.h_r.size());
    for (size_t i = 0; i < model.h_s.size(); ++i) h_s_[i] = T(model.h_s[i]);
    for (size_t i = 0; i < model.h_r.size(); ++i) h_r_[i] = T(model.h_r[i]);
    n_groups_ = model.grouped() ? model.n_z : 1;
    by_embedding_.prepare(model, false);
    degrees_together_.prepare(model, false);
    degrees_apart_.prepare(model, true);
    for (int t = 0; t < model.stages; ++t) {
      stacks_[t].prepare(model, t);
      most_rows_ = larger(most_rows_, stacks_[t].rows());
    }
    for (int t = 0; t < model.stages - 1; ++t) {
      steps_[t].prepare(model, model.steps[t]);
      const bool by_channel = model.steps[t].bchi && !model.steps[t].shared_channels;
      if (by_channel && !by_channel_.n_x) by_channel_.prepare(model, true);
      largest_program_ = larger(largest_program_, model.steps[t].bchi ? steps_[t].mlp.size() : 0);
    }
    for (size_t h = 0; h < model.heads.size(); ++h) {
      programs_[h].prepare(model.heads[h].net);
      largest_program_ = larger(largest_program_, programs_[h].size());
    }
    threads(1);
  }
  ~EngineOf() override {
    delete[] stacks_;
    delete[] steps_;
    delete[] kept_a_;
    delete[] programs_;
    delete[] works_;
  }

  void threads(int n) override {
    if (n == n_works_) return;
    delete[] works_;
    works_ = new ThreadWorkspace<T>[n];
    n_works_ = n;
    forget_slots();
  }

  void begin(const cf_frame& frame) override;

  void forward(int t, bool backward_too, double* features) override;
  void backward(int t) override;
  void finish(const cf_result& result) override;

  void charges(double* q) const override {
    ::memcpy(q, charges_.data(), sizeof(double) * size_t(frame_.n_owned) * m_.n_charges);
  }
  void set_charge_gradient(const double* de_dq) override {
    ::memcpy(charge_gradient_.data(), de_dq,
             sizeof(double) * size_t(frame_.n_owned) * m_.n_charges);
  }
  void energies_count(bool too) override { energies_too_ = too; }
  void energy_weights(const double* weights) override {
    weighted_ = weights;
    if (!weighted_) return;
    double* to = energy_weights_.reserve_slack(size_t(frame_.n_owned) + 1);
    ::memcpy(to, weights, sizeof(double) * size_t(frame_.n_owned));
  }
  void exchange(int t, Crossing what, const cf_atoms& atoms, int precision, void* rows) override;

  void op_moments(double* a) override;
  void op_moments_gradient(const double* grad_out, double* grad_vectors) override;
  void op_messages(const cf_message& in, double* out) override;
  void op_messages_gradient(const cf_message& in, const double* grad_out, double* grad_a,
                            double* grad_b, double* grad_vectors) override;

  int64_t bytes() const override;
  double seconds(int part) const override {
    uint64_t sum = part == kForces ? forces_ticks_ : 0;
    for (int i = 0; i < n_works_; ++i) sum += works_[i].ticks_of[part];
    return seconds_of(sum);
  }

 private:
  // f(work, block) for every block, in parallel; the result of a block depends on it alone.
  template <class F>
  void over_blocks(const F& f) {
    over_blocks_of(frame_.n_owned, n_blocks_, f);
  }
  // The same for a backward pass of generation t, which may add up gradients of senders.
  template <class F>
  void over_receivers(int t, const F& f) {
    if (t == 0 || !m_.steps[t - 1].bchi) return over_blocks(f);
    const size_t size = size_t(frame_.n_all) * steps_[t - 1].n_l * steps_[t - 1].n_x;
    n_segments_ = n_blocks_ < kSegments ? int(n_blocks_) : kSegments;
    T* sums = segment_sums_.reserve_slack(n_segments_ * size + 1);
    over_blocks_of(frame_.n_owned, n_segments_, [&](ThreadWorkspace<T>& work, const Block& block) {
      if (block.number == block.segment * n_blocks_ / n_segments_)  // the segment's first block
        ::memset(sums + block.segment * size, 0, size * sizeof(T));
      f(work, block);
    });
  }
  template <class F>
  void over_blocks_of(int64_t n, int64_t n_segments, const F& f) {
    const int64_t n_blocks = (n + W - 1) / W;
    bool failed = false;
    for (int i = 0; i < n_works_; ++i) works_[i].bad_atom = INT64_MAX, works_[i].unsorted = false;
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(n_works_) if (n_works_ > 1 && n_segments > 1)
    for (int64_t s = 0; s < n_segments; ++s) {
      const int64_t end = (s + 1) * n_blocks / n_segments;
      for (int64_t k = s * n_blocks / n_segments; k < end; ++k) {
        const int64_t first = k * W, rest = n - first;
        try {
          f(works_[omp_get_thread_num()], Block{k, first, int(rest < W ? rest : W), int(s)});
        } catch (const std::bad_alloc&) {  // must not leave the parallel region
#pragma omp atomic write
          failed = true;
        }
      }
    }
    if (failed) throw OutOfMemory();
    int64_t bad = INT64_MAX;
    for (int i = 0; i < n_works_; ++i) {
      if (works_[i].unsorted) unsorted();
      bad = works_[i].bad_atom < bad ? works_[i].bad_atom : bad;
    }
    if (bad != INT64_MAX)
      throw NotFinite("energy or charge: not finite (atoms on top of each other?)", bad);
  }

  // `keep`: a later pass of this step will ask again.
  void find_neighbors(ThreadWorkspace<T>& work, const Block& block, int t, bool keep = false);
  void forget_slots();
  void make_moments(ThreadWorkspace<T>& work, const Block& block, int t, V* a);
  void invariants(ThreadWorkspace<T>& work, const Block& block, int t, const V* a,
                  double* features);
  void first_layers(ThreadWorkspace<T>& work, const Block& block, int t);
  void make_message(ThreadWorkspace<T>& work, const Block& block, int t, const V* a);
  enum class Values { kCharges, kEnergies, kBackward };
  void read_out(ThreadWorkspace<T>& work, const Block& block, Values wanted);
  void make_energies();
  // First layers of the read-outs, as the last generation left them.
  void take_rows(ThreadWorkspace<T>& work, const Block& block) const {
    const int n = stacks_[0].n_readout;
    ::memcpy(work.rows.ensure(n + 1), rows_.data() + size_t(block.number) * n, n * sizeof(V));
  }
  void message_rows_gradient(ThreadWorkspace<T>& work, const Block& block, int t);
  void add_later_gradients(const Block& block, int t, V* grad_a);
  void moments_gradient(ThreadWorkspace<T>& work, const Block& block, int t, const V* a, V* grad_a);
  void pass_to_previous(ThreadWorkspace<T>& work, const Block& block, int t, V* grad_a);
  void pairs_gradient(ThreadWorkspace<T>& work, const Block& block, int t, const V* grad_a,
                      bool first, PairSums<T>& sums);
  const V* distance_gradients(ThreadWorkspace<T>& work, const Block& block, int t);
  void take_message(const cf_message& in);
  void copy_edge_gradients(double* to) const;
  void backward_block(ThreadWorkspace<T>& work, const Block& block, int t, const V* a);
  void gather_at_senders(int t);
  void virials_of_senders(double* virials);
  void start_rows(const Block& block, V* rows) const;
  template <class Row>
  void cross(int t, Crossing what, const cf_atoms& atoms, Row* rows);
  void count_systems();

  static int larger(int a, int b) { return a > b ? a : b; }
  bool any_ar() const {
    for (const Step& step : m_.steps)
      if (step.ar) return true;
    return false;
  }
  bool grouped(int t) const { return t == 0 && m_.grouped(); }
  size_t a_size() const { return size_t(m_.r) * m_.c * m_.n_a; }

  // Place of A of a block: message steps store all of them, unless backward follows at once.
  V* moments_of(ThreadWorkspace<T>& work, const Block& block, bool keep, int t) {
    if (m_.stages == 1 || (t == m_.stages - 1 && !keep)) return work.a.ensure(a_size());
    return kept_a_[t].data() + block.number * a_size();
  }

  // Factors of a slot's pairs in the sums of generation t.
  Factors<T> factors(const Block& block, int t) {
    if (t == 0) return {h_s_.data(), 1, m_.k, true, nullptr};
    const StepData<T>& s = steps_[t - 1];
    return {s.factors.data(), s.n_l, s.n_x, false,
            segment_sums_.data() + size_t(block.segment) * frame_.n_all * s.n_l * s.n_x};
  }
  const RhoLayout& layout(int t) const {
    return t > 0 && steps_[t - 1].n_l > 1 ? degrees_apart_ : degrees_together_;
  }
  const Mixing<T>& mixing(int t) const {
    return t > 0 && !m_.steps[t - 1].shared_channels ? by_channel_ : by_embedding_;
  }

  // h_r [K] of the lanes' atoms times a factor; zero in lanes without an atom.
  void receivers(const Block& block, double factor, V* h) const {
    for (int b = 0; b < m_.k; ++b) h[b] = V{};
    for (int lane = 0; lane < block.n_lanes; ++lane)
      for (int b = 0; b < m_.k; ++b)
        h[b][lane] = T(factor) * h_r_[size_t(frame_.species[block.first + lane]) * m_.k + b];
  }

  const Model& m_;
  const Radial<T> radial_;
  const Contraction<T> contraction_;
  Mixing<T> by_embedding_, by_channel_;
  RhoLayout degrees_together_, degrees_apart_;
  Stack<T>* const stacks_;
  StepData<T>* const steps_;  // [stages - 1]
  Buffer<V>* const kept_a_;   // [stages] -> [block][R][C][n_A]
  MlpProgram<T>* const programs_;
  int largest_program_ = 1, most_rows_ = 1, n_groups_ = 1;
  Buffer<T> h_s_, h_r_;

  cf_frame frame_{};
  cf_list list_{};
  int64_t n_blocks_ = 0;
  Buffer<AtomRecord> sites_;
  const int32_t* given_species_ = nullptr;
  Buffer<int32_t> species_;             // those that were given, 0 in the place of -1
  Buffer<KeptSlots<T>> kept_slots_[2];  // [block] ungrouped, grouped by species
  Buffer<T> pair_gradient_;             // [n_pairs][kRow] dE/dd
  Buffer<double> own_, energies_, charges_, charge_gradient_;  // own: gradient, d (x) gradient
  Buffer<double> system_size_;
  Buffer<V> rows_, grad_rows_;  // [block][rows] of the read-outs
  Buffer<V> kept_grad_;         // [block][R][C][n_A] dE/dA of the generation after, for memory
  Buffer<T> segment_sums_;      // [segment][n_all][n_l n_x] dE/d(factors)
  int n_segments_ = 0;
  Buffer<double> energy_weights_;  // in backward passes, where weighted_
  bool energies_too_ = true, energies_made_ = false, weighted_ = false;
  // With Ar, of every pair: r (-1 beyond the cutoff), dE/dr by Ar.
  Buffer<T> distance_, pair_dr_;
  Buffer<int32_t> receiver_;
  ThreadWorkspace<T>* works_ = nullptr;
  int n_works_ = 0;
  uint64_t forces_ticks_ = 0;
};

}  // namespace CF_ISA
}  // namespace cace_fast
