// Sums over neighbours with a factor of the sender: its embedding (many elements), or its embedding
// times the weights of a Bchi message.  rho_x[n][m] = sum over slots of g_n Y_m f[l(m)][x].

// Rows of numbers of the senders, one for each pair of a slot, and where their gradients go.
template <class T>
struct Factors {
  const T* rows;    // [sender or species][n_l * n_x]
  int n_l, n_x;     // n_l is 1 where all degrees share their factors
  bool by_species;  // rows belong to elements, not to atoms
  T* gradients;     // [pair][n_l * n_x] of this block, or null

  int size() const { return n_l * n_x; }
};

// out[f][lane] = rows[lane][f]
template <class T>
inline void to_lanes(const T* const (&rows)[Simd<T>::width], int n, T* out) {
  constexpr int W = Simd<T>::width;
  int f = 0;
  for (; f + 8 <= n; f += 8)  // a block of eight stays in the first cache
    for (int lane = 0; lane < W; ++lane)
      for (int k = 0; k < 8; ++k) out[(f + k) * W + lane] = rows[lane][f + k];
  for (; f < n; ++f)
    for (int lane = 0; lane < W; ++lane) out[f * W + lane] = rows[lane][f];
}

template <class T>
void factors_of_slots(Work<T>& work, const Factors<T>& factors, const cf_list& list, int64_t base,
                      const int32_t* species, int first, int n) {
  constexpr int W = Work<T>::W;
  const int size = factors.size();
  for (int s = 0; s < n; ++s) {
    const int* pair = work.pair.data() + size_t(first + s) * W;
    const T* rows[W];
    for (int lane = 0; lane < W; ++lane) {
      const int64_t sender = pair[lane] < 0 ? 0 : list.sender[base + pair[lane]];
      rows[lane] = factors.rows + size * (factors.by_species ? species[sender] : sender);
    }
    to_lanes<T>(rows, size, reinterpret_cast<T*>(work.factor.data() + size_t(s) * size));
  }
}

template <class T>
inline void factor_gradients_to_pairs(Work<T>& work, const Factors<T>& factors, int first, int n) {
  constexpr int W = Work<T>::W;
  const int size = factors.size();
  for (int s = 0; s < n; ++s) {
    const int* pair = work.pair.data() + size_t(first + s) * W;
    const T* from = reinterpret_cast<const T*>(work.grad_factor.data() + size_t(s) * size);
    for (int lane = 0; lane < W; ++lane) {
      if (pair[lane] < 0) continue;
      T* to = factors.gradients + ptrdiff_t(pair[lane]) * size;
      for (int f = 0; f < size; ++f) to[f] = from[f * W + lane];
    }
  }
}

// Monomials that share the factors of group l: those of one degree, or all.
struct Range {
  int first, n;
};
inline Range monomials_of(int n_l, int l, int n_a) {
  return n_l == 1 ? Range{0, n_a} : Range{degree_offset(l), degree_size(l)};
}

constexpr int kWeightedChunk = 8;  // slots whose products g_n Y_m stay in the first caches

// z[slot][n][m] = g_n Y_m of a range of monomials.
template <class T>
inline void outer_products(const Vec<T>* g, const Vec<T>* y, const Model& m, Range range, int n,
                           Vec<T>* z) {
  for (int s = 0; s < n; ++s, g += m.n_b, y += m.n_a)
    for (int k = 0; k < m.n_b; ++k)
      for (int i = 0; i < range.n; ++i) *z++ = g[k] * y[range.first + i];
}

// rho: for each group of degrees l [x][n_b][monomials of l], see RhoLayout.
template <class T>
void weighted_sums(Work<T>& work, const Model& m, const Factors<T>& factors, const cf_list& list,
                   int64_t base, const int32_t* species) {
  typedef Vec<T> V;
  Section timer(work.seconds, kSums);
  const int n_a = m.n_a, n_x = factors.n_x, size = factors.size();
  V* rho = work.rho.zeros(size_t(n_x) * m.n_b * n_a);
  V* y = work.y.need(size_t(kChunk) * n_a);
  V* z = work.outer.need(size_t(2) * kWeightedChunk * m.n_b * n_a);
  const V* factor = work.factor.need(size_t(kWeightedChunk) * size);
  for (int first = 0; first < work.n_slots; first += kWeightedChunk) {
    const int rest = work.n_slots - first, n = rest < kWeightedChunk ? rest : kWeightedChunk;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    for (int l = 0; l < factors.n_l; ++l) {
      const Range range = monomials_of(factors.n_l, l, n_a);
      const int n_z = m.n_b * range.n;
      outer_products<T>(work.g.data() + size_t(first) * m.n_b, y, m, range, n, z);
      product<true, V>({factor + l * n_x, size, 1}, {z, n_z, 1},
                       {rho + size_t(n_x) * m.n_b * range.first, n_z, 1}, n_x, n_z, n);
    }
  }
}

// grad_g[n] += sum_m h[n][m] y[m], grad_y[m] = sum_n h[n][m] g[n]
template <class T>
inline void split_gradient(const Vec<T>* h, const Vec<T>* g, const Vec<T>* y, int n_b, int n_m,
                           Vec<T>* grad_g, Vec<T>* grad_y) {
  for (int i = 0; i < n_m; ++i) grad_y[i] = h[i] * g[0];
  for (int k = 1; k < n_b; ++k)
    for (int i = 0; i < n_m; ++i) grad_y[i] += h[k * n_m + i] * g[k];
  for (int k = 0; k < n_b; ++k) {
    Vec<T> sum = grad_g[k];
    for (int i = 0; i < n_m; ++i) sum += h[k * n_m + i] * y[i];
    grad_g[k] = sum;
  }
}

// Backward of weighted_sums, from grad_rho of the same layout.  With H = sum_x f_x dE/drho_x, what
// is left for g and Y is small.
template <class T>
void weighted_gradient(Work<T>& work, const Model& m, const Factors<T>& factors,
                       const cf_list& list, int64_t base, const int32_t* species,
                       const Vec<T>* more_dr, T* pair_gradient, PairSums<T>& sums) {
  typedef Vec<T> V;
  Section timer(work.seconds, kEdges);
  const int n_b = m.n_b, n_a = m.n_a, n_x = factors.n_x, size = factors.size();
  V* y = work.y.need(size_t(kChunk) * n_a);
  V* grad_y = work.grad_y.need(size_t(kChunk) * n_a);
  V* grad_g = work.grad_g.need(size_t(kChunk) * n_b);
  V* z = work.outer.need(size_t(2) * kWeightedChunk * n_b * n_a);
  V* h = z + kWeightedChunk * n_b * n_a;
  const V* factor = work.factor.need(size_t(kWeightedChunk) * size);
  V* grad_factor = work.grad_factor.need(size_t(kWeightedChunk) * size);
  for (int first = 0; first < work.n_slots; first += kWeightedChunk) {
    const int rest = work.n_slots - first, n = rest < kWeightedChunk ? rest : kWeightedChunk;
    const V* g = work.g.data() + size_t(first) * n_b;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    for (int i = 0; i < n * n_b; ++i) grad_g[i] = V{};
    for (int l = 0; l < factors.n_l; ++l) {
      const Range range = monomials_of(factors.n_l, l, n_a);
      const int n_z = n_b * range.n;
      const V* grad_rho = work.grad_rho.data() + size_t(n_x) * n_b * range.first;
      if (factors.gradients) {
        outer_products<T>(g, y, m, range, n, z);
        product<false, V>({grad_rho, 1, n_z}, {z, 1, n_z}, {grad_factor + l * n_x, 1, size}, n_x, n,
                          n_z);
      }
      product<false, V>({grad_rho, n_z, 1}, {factor + l * n_x, 1, size}, {h, 1, n_z}, n_z, n, n_x);
      for (int s = 0; s < n; ++s)
        split_gradient<T>(h + s * n_z, g + s * n_b, y + s * n_a + range.first, n_b, range.n,
                          grad_g + s * n_b, grad_y + s * n_a + range.first);
    }
    if (factors.gradients) factor_gradients_to_pairs(work, factors, first, n);
    finish_slots<T>(work, m, first, n, more_dr, pair_gradient, true, sums);
  }
}
