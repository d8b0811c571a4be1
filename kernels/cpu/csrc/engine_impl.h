// The engine in one precision: the order of work over blocks of atoms.
//
// forward(t):  pairs -> radial -> moments or messages -> A -> B -> first layers of all networks
// backward(t): gradients of those rows -> dE/dB -> dE/dA -> dE/drho -> dE/dd of every pair
// Only numbers of first layers are kept for each atom between phases (and A, where there are
// message steps); forward and backward of the last generation run together where they can.

template <class T>
class EngineOf final : public Engine {
  typedef Vec<T> V;
  static constexpr int W = Simd<T>::width;

 public:
  explicit EngineOf(const Model& model)
      : m_(model), radial_(model), contraction_(model), stacks_(new Stack<T>[model.stages]),
        tapes_(new Tape<T>[model.heads.size() + 1]) {
    h_s_.need(model.h_s.size());
    h_r_.need(model.h_r.size());
    for (size_t i = 0; i < model.h_s.size(); ++i) h_s_[i] = T(model.h_s[i]);
    for (size_t i = 0; i < model.h_r.size(); ++i) h_r_[i] = T(model.h_r[i]);
    by_embedding_.prepare(model, false);
    for (int t = 0; t < model.stages; ++t) stacks_[t].prepare(model, t);
    for (size_t h = 0; h < model.heads.size(); ++h) {
      tapes_[h].prepare(model.heads[h].net);
      largest_tape_ = tapes_[h].size() > largest_tape_ ? tapes_[h].size() : largest_tape_;
    }
    counting_.prepare(model.n_features() + stacks_[0].rows() + 1);
    n_groups_ = model.grouped() ? model.n_z : 1;
    threads(1);
  }
  ~EngineOf() override {
    delete[] stacks_;
    delete[] tapes_;
    delete[] works_;
  }

  void threads(int n) override {
    if (n == n_works_) return;
    delete[] works_;
    works_ = new Work<T>[n];
    n_works_ = n;
  }

  void begin(const cf_frame& frame) override {
    frame_ = frame;
    list_ = *frame.list;
    frame_.list = &list_;
    const size_t n = frame.n_owned, n_all = frame.n_all;
    n_blocks_ = (int64_t(n) + W - 1) / W;
    Site* sites = sites_.roomy(n_all + 1);
    for (size_t i = 0; i < n_all; ++i) {
      const double* r = frame.positions + 3 * i;
      if (!(::fabs(r[0]) < HUGE_VAL && ::fabs(r[1]) < HUGE_VAL && ::fabs(r[2]) < HUGE_VAL))
        throw NotFinite("positions: not finite", int64_t(i));
      sites[i] = {r[0], r[1], r[2], frame.species[i]};
    }
    pair_gradient_.roomy(3 * size_t(list_.n_pairs) + 1);
    own_.roomy(12 * n + 1);
    energies_.roomy(n + 1);
    charges_.roomy(n * m_.n_charges + 1);
    charge_gradient_.zeros(n * m_.n_charges + 1);
    rows_.roomy(size_t(n_blocks_) * stacks_[0].n_readout + 1);
    grad_rows_.roomy(size_t(n_blocks_) * stacks_[0].n_readout + 1);
    count_systems();
  }

  void forward(int t, bool backward_too, double* features) override {
    over_blocks([&](Work<T>& work, const Block& block) {
      make_moments(work, block, t);
      invariants(work, block, t, features);
      if (t < m_.stages - 1) return;
      if (m_.heads.empty()) return;
      read_out(work, block, backward_too);
      if (backward_too) backward_block(work, block, t);
    });
  }

  void backward(int t) override {
    over_blocks([&](Work<T>& work, const Block& block) {
      make_moments(work, block, t);
      const int n = stacks_[t].n_readout;
      const V* from = rows_.data() + size_t(block.number) * n;
      V* rows = work.rows.need(n + 1);
      for (int i = 0; i < n; ++i) rows[i] = from[i];
      read_out(work, block, true);
      backward_block(work, block, t);
    });
  }

  void finish(const cf_result& result) override;

  void charges(double* q) const override {
    ::memcpy(q, charges_.data(), sizeof(double) * size_t(frame_.n_owned) * m_.n_charges);
  }
  void set_charge_gradient(const double* de_dq) override {
    ::memcpy(charge_gradient_.data(), de_dq,
             sizeof(double) * size_t(frame_.n_owned) * m_.n_charges);
  }
  void get_messages(int, double*, double*) const override {}
  void set_messages(int, const double*, const double*) override {}
  void get_gradients(int, double*, double*) const override {}
  void add_gradients(int, const double*, const double*) override {}

  int64_t bytes() const override {
    int64_t sum = int64_t(pair_gradient_.bytes() + own_.bytes() + energies_.bytes() +
                          charges_.bytes() + charge_gradient_.bytes() + rows_.bytes() +
                          grad_rows_.bytes() + sites_.bytes());
    for (int i = 0; i < n_works_; ++i) sum += works_[i].bytes();
    return sum;
  }
  double seconds(int part) const override {
    double sum = part == kForces ? forces_seconds_ : 0.0;
    for (int i = 0; i < n_works_; ++i) sum += works_[i].seconds[part];
    return sum;
  }

 private:
  // f(work, block) for every block, in parallel; what a block computes depends on it alone.
  template <class F>
  void over_blocks(const F& f) {
    bool failed = false;
    for (int i = 0; i < n_works_; ++i) works_[i].bad_atom = INT64_MAX, works_[i].unsorted = false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_works_) if (n_works_ > 1)
    for (int64_t k = 0; k < n_blocks_; ++k) {
      const int64_t first = k * W, rest = frame_.n_owned - first;
      try {
        f(works_[omp_get_thread_num()], Block{k, first, int(rest < W ? rest : W)});
      } catch (const std::bad_alloc&) {  // must not leave the parallel region
#pragma omp atomic write
        failed = true;
      }
    }
    if (failed) throw OutOfMemory();
    int64_t bad = INT64_MAX;
    for (int i = 0; i < n_works_; ++i) {
      if (works_[i].unsorted)
        throw JsonError("list: expected pairs sorted by receiver and sender's species");
      bad = works_[i].bad_atom < bad ? works_[i].bad_atom : bad;
    }
    if (bad != INT64_MAX)
      throw NotFinite("energy or charge: not finite (atoms on top of each other?)", bad);
  }

  void make_moments(Work<T>& work, const Block& block, int t);
  void invariants(Work<T>& work, const Block& block, int t, double* features);
  void read_out(Work<T>& work, const Block& block, bool backward_too);
  void backward_block(Work<T>& work, const Block& block, int t);
  void start_rows(Work<T>& work, const Block& block, V* rows) const;
  void count_systems();

  // h_r [K] of the lanes' atoms; zero in lanes without an atom.
  void receivers(const Block& block, V* h) const {
    for (int b = 0; b < m_.k; ++b) h[b] = V{};
    for (int lane = 0; lane < block.n_lanes; ++lane)
      for (int b = 0; b < m_.k; ++b)
        h[b][lane] = h_r_[size_t(frame_.species[block.first + lane]) * m_.k + b];
  }

  T* block_gradients(const Block& block) {
    return pair_gradient_.data() + 3 * list_.first[block.first];
  }

  const Model& m_;
  const Radial<T> radial_;
  const Contraction<T> contraction_;
  Mixing<T> by_embedding_;
  Stack<T>* const stacks_;
  Tape<T>* const tapes_;
  int largest_tape_ = 1, n_groups_ = 1;
  Counting counting_;
  Buffer<T> h_s_, h_r_;

  cf_frame frame_{};
  cf_list list_{};
  int64_t n_blocks_ = 0;
  Buffer<Site> sites_;
  Buffer<T> pair_gradient_;                                   // [n_pairs][3] dE/dd
  Buffer<double> own_, energies_, charges_, charge_gradient_;  // own: gradient, d (x) gradient
  Buffer<double> system_size_;
  Buffer<V> rows_, grad_rows_;  // [block][rows] of the read-outs
  Work<T>* works_ = nullptr;
  int n_works_ = 0;
  double forces_seconds_ = 0.0;
};
