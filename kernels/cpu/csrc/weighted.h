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

template <class T>
void weighted_sums(Work<T>& work, const Model& m, const Factors<T>& factors, const cf_list& list,
                   int64_t base, const int32_t* species) {
  typedef Vec<T> V;
  Section timer(work.seconds, kSums);
  const int n_b = m.n_b, n_a = m.n_a, x_size = n_b * n_a;
  V* rho = work.rho.zeros(size_t(factors.n_x) * x_size);
  V* y = work.y.need(size_t(kChunk) * n_a);
  V* left = work.left.need(size_t(kChunk) * n_b);
  const V* factor = work.factor.need(size_t(kChunk) * factors.size());
  for (int first = 0; first < work.n_slots; first += kChunk) {
    const int rest = work.n_slots - first, n = rest < kChunk ? rest : kChunk;
    const V* g = work.g.data() + size_t(first) * n_b;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    for (int l = 0; l < factors.n_l; ++l) {
      const Range range = monomials_of(factors.n_l, l, n_a);
      for (int x = 0; x < factors.n_x; ++x) {
        for (int s = 0; s < n; ++s)
          for (int k = 0; k < n_b; ++k)
            left[s * n_b + k] = g[s * n_b + k] * factor[s * factors.size() + l * factors.n_x + x];
        product<true, V>({left, n_b, 1}, {y + range.first, n_a, 1},
                         {rho + x * x_size + range.first, n_a, 1}, n_b, range.n, n);
      }
    }
  }
}

// Backward of weighted_sums, from grad_rho [x][n_b][n_A].
template <class T>
void weighted_gradient(Work<T>& work, const Model& m, const Factors<T>& factors,
                       const cf_list& list, int64_t base, const int32_t* species,
                       const Vec<T>* more_dr, T* pair_gradient, PairSums<T>& sums) {
  typedef Vec<T> V;
  Section timer(work.seconds, kEdges);
  const int n_b = m.n_b, n_a = m.n_a, x_size = n_b * n_a, size = factors.size();
  V* y = work.y.need(size_t(kChunk) * n_a);
  V* left = work.left.need(size_t(2) * kChunk * n_b);
  V* along = left + kChunk * n_b;
  V* grad_y = work.grad_y.need(size_t(kChunk) * n_a);
  V* grad_g = work.grad_g.need(size_t(kChunk) * n_b);
  const V* factor = work.factor.need(size_t(kChunk) * size);
  V* grad_factor = work.grad_factor.need(size_t(kChunk) * size);
  for (int first = 0; first < work.n_slots; first += kChunk) {
    const int rest = work.n_slots - first, n = rest < kChunk ? rest : kChunk;
    const V* g = work.g.data() + size_t(first) * n_b;
    monomials_of_slots(work, first, n, m.l_max, y);
    factors_of_slots(work, factors, list, base, species, first, n);
    for (int i = 0; i < n * n_b; ++i) grad_g[i] = V{};
    for (int i = 0; i < n * n_a; ++i) grad_y[i] = V{};
    for (int l = 0; l < factors.n_l; ++l) {
      const Range range = monomials_of(factors.n_l, l, n_a);
      for (int x = 0; x < factors.n_x; ++x) {
        const V* grad_rho = work.grad_rho.data() + x * x_size + range.first;
        product<false, V>({grad_rho, 1, n_a}, {y + range.first, 1, n_a}, {along, 1, n_b}, n_b, n,
                          range.n);
        for (int s = 0; s < n; ++s) {
          const V f = factor[s * size + l * factors.n_x + x];
          V sum = {};
          for (int k = 0; k < n_b; ++k) {
            const int i = s * n_b + k;
            sum += g[i] * along[i];
            grad_g[i] += f * along[i];
            left[i] = f * g[i];
          }
          grad_factor[s * size + l * factors.n_x + x] = sum;
        }
        product<true, V>({grad_rho, n_a, 1}, {left, 1, n_b}, {grad_y + range.first, 1, n_a},
                         range.n, n, n_b);
      }
    }
    if (factors.gradients) factor_gradients_to_pairs(work, factors, first, n);
    finish_slots<T>(work, m, first, n, more_dr, pair_gradient, true, sums);
  }
}
