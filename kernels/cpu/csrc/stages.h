// The stages of a block that follow the radial functions.

template <class T>
void EngineOf<T>::make_moments(Work<T>& work, const Block& block, int) {
  static const double no_shift[3] = {0.0, 0.0, 0.0};
  const bool shifted = list_.shift && frame_.shift_vectors;
  find_slots(work, block, list_, sites_.data(), shifted ? frame_.shift_vectors : no_shift,
             m_.cutoff, n_groups_);
  radial_of_slots(work, radial_);
  grouped_sums(work, m_, n_groups_);
  Section timer(work.seconds, kMix);
  V* rho = work.rho_mixed.need(size_t(m_.k) * m_.n_b * m_.n_a);
  mix_groups<T>(m_, h_s_.data(), work.rho.data(), rho);
  V* h_r = work.scratch.need(m_.k);
  receivers(block, h_r);
  mix<T, false>(m_, by_embedding_, h_r, rho, work.a.need(size_t(m_.r) * m_.c * m_.n_a));
}

// What the first layers of the read-outs start from: biases, and further inputs of the atoms.
template <class T>
void EngineOf<T>::start_rows(Work<T>&, const Block& block, V* rows) const {
  int row = 0;
  for (size_t h = 0; h < m_.heads.size(); ++h) {
    const Head& head = m_.heads[h];
    for (const Affine& root : head.net.roots)
      for (int i = 0; i < root.out; ++i, ++row) {
        rows[row] = spread<T>(T(root.b[i]));
        for (int x = 0; x < head.n_extra; ++x) {
          const int before = head.info.extra_before;
          const int column = x < before ? x : root.in - head.n_extra + x;
          const T w = T(root.w[size_t(i) * root.in + column]);
          for (int lane = 0; lane < block.n_lanes; ++lane)
            rows[row][lane] += w * T(frame_.extras[h][(block.first + lane) * head.n_extra + x]);
        }
      }
  }
}

// B of A, and its part in the first layers of all networks.
template <class T>
void EngineOf<T>::invariants(Work<T>& work, const Block& block, int t, double* features) {
  const int n_lanes_of_features = m_.r * m_.c;
  V* b = work.b.need(size_t(m_.n_features()));
  {
    Section timer(work.seconds, kContract);
    V* scratch = work.scratch.need(contraction_.scratch() + m_.k);
    for (int i = 0; i < n_lanes_of_features; ++i)
      contraction_.values(work.a.data() + size_t(i) * m_.n_a, b + size_t(i) * m_.n_inv, scratch);
  }
  if (features) {
    for (int f = 0; f < m_.n_features(); ++f)
      for (int lane = 0; lane < block.n_lanes; ++lane)
        features[(size_t(block.first + lane) * m_.n_features() + Stack<T>::feature(m_, f)) *
                     m_.stages + t] = b[f][lane];
  }
  Section timer(work.seconds, kReadout);
  const Stack<T>& stack = stacks_[t];
  if (!stack.rows()) return;
  V* rows = work.rows.need(stack.rows() + 1);
  V* kept = rows_.data() + size_t(block.number) * stack.n_readout;
  if (t == 0) {
    start_rows(work, block, rows);
  } else {
    for (int i = 0; i < stack.n_readout; ++i) rows[i] = kept[i];
  }
  weighted_rows<T, 1>(stack.forward, counting_.offsets.data(), b,
                      [&](int row, const V* sum) { rows[row] += sum[0]; });
  for (int i = 0; i < stack.n_readout; ++i) kept[i] = rows[i];
}

// Energies and charges from the rows; with `backward_too` also dE/drows.
template <class T>
void EngineOf<T>::read_out(Work<T>& work, const Block& block, bool backward_too) {
  Section timer(work.seconds, kReadout);
  V* values = work.values.need(largest_tape_);
  V* slopes = work.slopes.need(largest_tape_);
  V* gradients = work.gradients.need(largest_tape_);
  V* grad_rows = work.grad_rows.need(stacks_[m_.stages - 1].rows() + 1);
  double energy[W] = {}, bad[W] = {};
  for (size_t h = 0, row = 0; h < m_.heads.size(); row += tapes_[h].n_roots(), ++h) {
    const Tape<T>& tape = tapes_[h];
    const cf_head& info = m_.heads[h].info;
    const V* rows = work.rows.data() + row;
    for (int i = 0; i < tape.n_roots(); ++i) values[i] = rows[i];
    tape.forward(values, slopes);
    for (int i = 0; i < tape.size(); ++i) gradients[i] = V{};
    for (int lane = 0; lane < block.n_lanes; ++lane) {
      const int64_t atom = block.first + lane;
      for (int k = 0; k < tape.n_out(); ++k) {
        const double y = values[tape.output() + k][lane];
        double slope = 0.0;
        bad[lane] += y - y;  // NaN when y is not finite
        if (info.charges) {
          const size_t at = size_t(atom) * m_.n_charges + m_.heads[h].first_charge + k;
          charges_[at] = y;
          slope += charge_gradient_[at];
        }
        if (k == info.energy_column) {
          const double size = info.average ? system_size_[frame_.system ? frame_.system[atom] : 0] : 1;
          energy[lane] += info.energy_weight / size * y;
          slope += info.energy_weight / size;
        }
        gradients[tape.output() + k][lane] = T(slope);
      }
    }
    if (!backward_too) continue;
    tape.backward(slopes, gradients);
    for (int i = 0; i < tape.n_roots(); ++i) grad_rows[row + i] = gradients[i];
  }
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    energies_[block.first + lane] = energy[lane];
    if (bad[lane] != 0.0 && block.first + lane < work.bad_atom) work.bad_atom = block.first + lane;
  }
}

// From dE/drows to the pairs of the block.
template <class T>
void EngineOf<T>::backward_block(Work<T>& work, const Block& block, int t) {
  V* grad_b = work.grad_b.need(m_.n_features());
  {
    Section timer(work.seconds, kReadout);
    weighted_rows<T, 1>(stacks_[t].backward, counting_.offsets.data(), work.grad_rows.data(),
                        [&](int f, const V* sum) { grad_b[f] = sum[0]; });
  }
  V* grad_a = work.grad_a.need(size_t(m_.r) * m_.c * m_.n_a);
  {
    Section timer(work.seconds, kContract);
    V* scratch = work.scratch.need(contraction_.scratch() + m_.k);
    V* h_r = scratch + contraction_.scratch();
    receivers(block, h_r);
    V g[kMaxInvariants];
    for (int i = 0; i < m_.r * m_.c; ++i) {
      const V h = h_r[i % m_.k];  // channel (a, b): what leaves A towards rho is times h_r[b]
      for (int k = 0; k < m_.n_inv; ++k) g[k] = h * grad_b[size_t(i) * m_.n_inv + k];
      contraction_.gradient(work.a.data() + size_t(i) * m_.n_a, g, grad_a + size_t(i) * m_.n_a,
                            scratch);
    }
  }
  {
    Section timer(work.seconds, kMix);
    const size_t size = size_t(m_.n_b) * m_.n_a;
    V* grad_mixed = work.rho_mixed.need(m_.k * size);
    unmix<T>(m_, by_embedding_, grad_a, grad_mixed);
    unmix_groups<T>(m_, h_s_.data(), grad_mixed, work.grad_rho.need(n_groups_ * size));
  }
  PairSums<T> sums = {};
  T* gradients = block_gradients(block);
  const int64_t* first = list_.first + block.first;
  ::memset(gradients, 0, sizeof(T) * 3 * size_t(first[block.n_lanes] - first[0]));
  grouped_gradient(work, m_, n_groups_, gradients, false, sums);
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    double* own = own_.data() + 12 * (block.first + lane);
    for (int k = 0; k < 3; ++k) own[k] = sums.gradient[k][lane];
    for (int k = 0; k < 9; ++k) own[3 + k] = sums.virial[k][lane];
  }
}

template <class T>
void EngineOf<T>::count_systems() {
  double* size = system_size_.roomy(size_t(frame_.n_systems) + 1);
  for (int s = 0; s < frame_.n_systems; ++s) size[s] = frame_.system_size ? frame_.system_size[s] : 0;
  if (frame_.system_size) return;
  for (int i = 0; i < frame_.n_owned; ++i) size[frame_.system ? frame_.system[i] : 0] += 1;
}

// Forces: what an atom's own pairs give, less what the pairs it sends give, in the order of the
// list; virials: atoms in order.  No atomics, so the same bits for any number of threads.
template <class T>
void EngineOf<T>::finish(const cf_result& result) {
  const int n_all = frame_.n_all, n = frame_.n_owned;
#ifdef CF_PROFILE
  const double start = omp_get_wtime();
#endif
  int64_t bad = INT64_MAX;
  if (result.forces) {
#pragma omp parallel for schedule(static) num_threads(n_works_) if (n_works_ > 1) reduction(min : bad)
    for (int i = 0; i < n_all; ++i) {
      T sum[3] = {};
      for (int64_t e = list_.sent_first[i]; e < list_.sent_first[i + 1]; ++e) {
        const T* g = pair_gradient_.data() + 3 * int64_t(list_.sent[e]);
        for (int k = 0; k < 3; ++k) sum[k] += g[k];
      }
      for (int k = 0; k < 3; ++k) {
        const double f = double(sum[k]) - (i < n ? own_[12 * int64_t(i) + k] : 0.0);
        result.forces[3 * int64_t(i) + k] = f;
        if (!(::fabs(f) < HUGE_VAL)) bad = i < bad ? i : bad;
      }
    }
  }
  if (result.energies) ::memcpy(result.energies, energies_.data(), sizeof(double) * size_t(n));
  if (result.virials) {
    for (int i = 0; i < 9 * frame_.n_systems; ++i) result.virials[i] = 0.0;
    for (int i = 0; i < n; ++i) {
      double* to = result.virials + 9 * (frame_.system ? frame_.system[i] : 0);
      for (int k = 0; k < 9; ++k) to[k] -= own_[12 * int64_t(i) + 3 + k];
    }
  }
#ifdef CF_PROFILE
  forces_seconds_ += omp_get_wtime() - start;
#endif
  if (bad != INT64_MAX) throw NotFinite("forces: not finite", bad);
}
