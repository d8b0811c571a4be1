// Message passing (docs/theory.md section 6): what senders export, and the sums over it.

// One step in the working precision: its weights, and its arrays of all atoms.
template <class T>
struct StepData {
  typedef Vec<T> V;
  static constexpr int W = Simd<T>::width;

  const Step* step = nullptr;
  int n_l = 0, n_x = 0, n_w = 0;  // factors of the Bchi message, and numbers that its network gives
  int n_q = 0, n_a = 0;           // R C rounded up to whole vectors; n_A
  Tape<T> tape;
  Buffer<T> memory, prefactor, inverse_range;  // [l][R C], [l][n_q], [l][n_q]

  Buffer<V> rows;                 // [block] first layer of the Bchi network
  Buffer<T> w, factors, grad_w;   // [n_all][n_w], [n_all][n_l n_x], [n_all][n_w]
  Buffer<T> a, grad_a, grad_sum;  // [n_all][n_A][n_q] A, dE/dA by Ar, P dE/d(ar)

  void prepare(const Model& m, const Step& s) {
    step = &s;
    const int rc = m.r * m.c;
    n_q = (rc + W - 1) / W * W;
    n_a = m.n_a;
    if (s.bchi) {
      tape.prepare(s.net);
      n_l = s.shared_l ? 1 : m.l_max + 1;
      n_x = s.shared_channels ? m.k : m.c;
      n_w = s.net.n_out();
    }
    spread_out(memory, s.memory_weight, rc, rc);
    spread_out(prefactor, s.ar_prefactor, rc, n_q);
    spread_out(inverse_range, s.ar_inverse_range, rc, n_q);
  }

  void begin(size_t n_all, size_t n_blocks) {
    if (step->bchi) {
      rows.roomy(n_blocks * tape.n_roots());
      w.roomy(n_all * n_w);
      factors.roomy(n_all * n_l * n_x + 1);
      grad_w.roomy(n_all * n_w + 1);
    }
    if (!step->ar) return;
    for (Buffer<T>* list : {&a, &grad_a, &grad_sum}) {
      list->roomy(n_all * n_a * n_q);
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
  void take_factor_gradients(const Model& m, const T* h_s, const T* from, size_t atom) {
    T* to = grad_w.data() + atom * n_w;
    for (int i = 0; i < n_w; ++i) to[i] = T(0);
    for (int l = 0; l < n_l; ++l)
      for (int x = 0; x < n_x; ++x, ++from)
        to[step->shared_channels ? l : l * n_x + x] +=
            *from * h_s[step->shared_channels ? x : x / m.k];
  }

 private:
  static void spread_out(Buffer<T>& to, const std::vector<Numbers>& from, int n, int padded) {
    T* out = to.zeros(from.size() * padded + 1);
    for (size_t l = 0; l < from.size(); ++l)
      for (int i = 0; i < n; ++i) out[l * padded + i] = T(from[l][i]);
  }
};

// [R C][n_A] in lanes -> [n_A][n_q] of each atom of a block; atoms of dead lanes are not written.
template <class T>
inline void lanes_to_atoms(const Vec<T>* lanes, const Block& block, const Model& m,
                           const StepData<T>& s, Vec<T>* nowhere, T* atoms) {
  constexpr int W = Simd<T>::width;
  const int rc = m.r * m.c;
  T* rows[W];
  for (int k = 0; k < m.n_a; ++k) {
    for (int lane = 0; lane < W; ++lane)
      rows[lane] = lane < block.n_lanes
                       ? atoms + (size_t(block.first + lane) * s.n_a + k) * s.n_q
                       : reinterpret_cast<T*>(nowhere);
    from_lanes<T>(lanes + k, rc, rows, m.n_a);
    for (int lane = 0; lane < W; ++lane)
      for (int q = rc; q < s.n_q; ++q) rows[lane][q] = T(0);
  }
}

// Adds [n_A][n_q] of each atom of a block to [R C][n_A] in lanes.
template <class T>
inline void add_atoms_to_lanes(const T* atoms, const Block& block, const Model& m,
                               const StepData<T>& s, Vec<T>* scratch, Vec<T>* lanes) {
  constexpr int W = Simd<T>::width;
  const int rc = m.r * m.c;
  const T* rows[W];
  for (int k = 0; k < m.n_a; ++k) {
    for (int lane = 0; lane < W; ++lane) {  // dead lanes read the first atom: nobody reads them
      const int alive = lane < block.n_lanes ? lane : 0;
      rows[lane] = atoms + (size_t(alive) * s.n_a + k) * s.n_q;
    }
    to_lanes<T>(rows, rc, scratch);
    for (int q = 0; q < rc; ++q) lanes[q * m.n_a + k] += scratch[q];
  }
}

// exp(-r V_l) f for every degree, and the derivative of exp(-r V_l) f_c where asked.
template <class T>
inline void ar_decay(const StepData<T>& s, int l_max, T r, T f, T df, Vec<T>* decay,
                     Vec<T>* slope) {
  typedef Vec<T> V;
  const int n = (l_max + 1) * s.n_q / Simd<T>::width;
  const V* v = reinterpret_cast<const V*>(s.inverse_range.data());
  for (int i = 0; i < n; ++i) {
    const V e = exponential<T>(-r * v[i]);
    decay[i] = e * f;
    if (slope) slope[i] = e * (df - v[i] * f);
  }
}

// sum[m][q] += from[m][q] decay[l(m)][q]
template <class T>
inline void ar_add(const StepData<T>& s, int l_max, const Vec<T>* from, const Vec<T>* decay,
                   Vec<T>* sum) {
  const int n = s.n_q / Simd<T>::width;
  for (int l = 0; l <= l_max; ++l, decay += n)
    for (int m = degree_offset(l); m < degree_offset(l + 1); ++m)
      for (int i = 0; i < n; ++i) sum[m * n + i] += from[m * n + i] * decay[i];
}

// Adds s Ar to A of the block, receiver by receiver (vectors run over R C here).
template <class T>
void ar_sums(Work<T>& work, const Model& m, const StepData<T>& s, const Block& block,
             const cf_list& list, Vec<T>* a) {
  typedef Vec<T> V;
  constexpr int W = Simd<T>::width;
  Section timer(work.seconds, kMessages);
  const int n = s.n_q / W, size = s.n_a * n, n_decay = (m.l_max + 1) * n;
  V* sums = work.ar.need(size_t(size) * W + n_decay + s.n_q);
  V *decay = sums + size_t(size) * W, *scratch = decay + n_decay;
  const int64_t base = list.first[block.first];
  const V* prefactor = reinterpret_cast<const V*>(s.prefactor.data());
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    V* sum = sums + size_t(size) * lane;
    for (int i = 0; i < size; ++i) sum[i] = V{};
    for (int slot = 0; slot < work.n_slots; ++slot) {
      const int pair = work.pair[size_t(slot) * W + lane];
      if (pair < 0) continue;
      const V* geo = work.geometry.data() + size_t(slot) * kGeometry;
      ar_decay<T>(s, m.l_max, geo[kR][lane], geo[kFc][lane], T(0), decay, nullptr);
      const T* from = s.a.data() + size_t(list.sender[base + pair]) * s.n_a * s.n_q;
      ar_add<T>(s, m.l_max, reinterpret_cast<const V*>(from), decay, sum);
    }
    for (int l = 0; l <= m.l_max; ++l)
      for (int k = degree_offset(l); k < degree_offset(l + 1); ++k)
        for (int i = 0; i < n; ++i) sum[k * n + i] *= prefactor[l * n + i] * T(m.mp_norm);
  }
  add_atoms_to_lanes<T>(reinterpret_cast<const T*>(sums), block, m, s, scratch, a);
}

// What a sender gets back through Ar: dE/dA of it, and dE/dr of each pair it sends.
template <class T>
void ar_sender_gradient(Work<T>& work, const Model& m, StepData<T>& s, const Cutoff<T>& cutoff,
                        int64_t sender, const int32_t* sent, int64_t n_sent,
                        const int32_t* receiver, const T* distance, T* pair_dr) {
  typedef Vec<T> V;
  const int n = s.n_q / Simd<T>::width, size = s.n_a * n, n_decay = (m.l_max + 1) * n;
  V* sum = work.ar.need(size_t(size) + 2 * n_decay);
  V *decay = sum + size, *slope = decay + n_decay;
  const V* a = reinterpret_cast<const V*>(s.a.data()) + size_t(sender) * size;
  for (int i = 0; i < size; ++i) sum[i] = V{};
  for (int64_t k = 0; k < n_sent; ++k) {
    const int64_t e = sent[k];
    if (!(distance[e] >= T(0))) continue;  // beyond the cutoff
    V f, df, dr = {};
    cutoff(spread<T>(distance[e]), f, df);
    ar_decay<T>(s, m.l_max, distance[e], f[0], df[0], decay, slope);
    const V* from = reinterpret_cast<const V*>(s.grad_sum.data()) + size_t(receiver[e]) * size;
    ar_add<T>(s, m.l_max, from, decay, sum);
    for (int l = 0; l <= m.l_max; ++l)
      for (int i = 0; i < n; ++i) {
        V both = {};
        for (int j = degree_offset(l); j < degree_offset(l + 1); ++j)
          both += from[j * n + i] * a[j * n + i];
        dr += both * slope[l * n + i];
      }
    T total = T(0);
    for (int i = 0; i < Simd<T>::width; ++i) total += dr[i];
    pair_dr[e] = total;
  }
  ::memcpy(s.grad_a.data() + size_t(sender) * s.n_a * s.n_q, sum, sizeof(V) * size);
}
