// B of A and dE/dA of dE/dB for one radial and edge channel (docs/theory.md, section 5): generated
// straight-line code where it exists, otherwise a loop over tables of the same partial sums
// u_(l,d)[s] = sum_a M(a) A_a A_(a+s).
#pragma once

#include <stddef.h>

#include "contraction_generated.inl"
#include "packed.inl"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

constexpr int kMaxMonomials = 84;

struct MonomialTable {
  int x[kMaxMonomials], y[kMaxMonomials], z[kMaxMonomials];
  int parent[kMaxMonomials], axis[kMaxMonomials];  // Y_m = Y_parent u_axis

  static constexpr int index(int lx, int ly, int lz) {
    const int degree = lx + ly + lz;
    return degree_offset(degree) + (degree - lx) * (degree - lx + 1) / 2 + lz;
  }
  constexpr MonomialTable() : x(), y(), z(), parent(), axis() {
    int m = 0;
    for (int degree = 0; degree <= kMaxDegree; ++degree)
      for (int lx = degree; lx >= 0; --lx)
        for (int ly = degree - lx; ly >= 0; --ly, ++m) {
          const int lz = degree - lx - ly;
          x[m] = lx, y[m] = ly, z[m] = lz;
          axis[m] = lx ? 0 : ly ? 1 : 2;
          if (m) parent[m] = index(lx - (axis[m] == 0), ly - (axis[m] == 1), lz - (axis[m] == 2));
        }
  }
};
constexpr MonomialTable kMonomials;

template <class T>
class Contraction {
  typedef Vec<T> V;

 public:
  Contraction(int l_max, int nu_max) : n_a_(degree_offset(l_max + 1)) {
#define CF_CHOOSE(l, nu)                             \
  if (l_max == l && nu_max == nu) {                  \
    values_ = &contract_##l##_##nu<T, V>;            \
    gradient_ = &contract_gradient_##l##_##nu<T, V>; \
  }
    CF_UNROLLED(CF_CHOOSE)
#undef CF_CHOOSE
    if (!unrolled()) make_tables(l_max, nu_max);
  }

  bool unrolled() const { return values_ != nullptr; }
  size_t scratch() const { return size_t(2) * n_u_ + 2 * n_a_; }

  void values(const V* a, V* b, V* scratch) const {
    if (values_) return values_(a, b);
    V *w = scratch, *u = scratch + n_a_;
    partial_sums(a, w, u);
    for (int i = 0; i < n_features_; ++i) {
      const Feature& f = features_[i];
      V sum = {};
      if (f.nu == 1) sum = a[0];
      if (f.nu == 2)
        for (int v = begin(f.l1); v < begin(f.l1 + 1); ++v) sum += w[v] * a[v];
      if (f.nu == 3)
        for (int s = 0; s < degree_size(f.l1); ++s) sum += w[begin(f.l1) + s] * u[f.u1 + s];
      if (f.nu == 4)
        for (int s = 0; s < degree_size(f.d); ++s)
          sum += T(count_[begin(f.d) + s]) * u[f.u1 + s] * u[f.u2 + s];
      b[i] = sum;
    }
  }

  // d = dE/dA for g = dE/dB.
  void gradient(const V* a, const V* g, V* d, V* scratch) const {
    if (gradient_) return gradient_(a, g, d);
    V *w = scratch, *u = w + n_a_, *e = u + n_u_, *du = e + n_a_;
    partial_sums(a, w, u);
    for (int m = 0; m < n_a_; ++m) d[m] = e[m] = V{};
    for (int i = 0; i < n_u_; ++i) du[i] = V{};
    for (int i = 0; i < n_features_; ++i) feature_gradient(features_[i], g[i], w, u, d, e, du);
    for (int p = 0; p < n_partials_; ++p) {
      const Partial& q = partials_[p];
      for (int s = 0; s < degree_size(q.d); ++s)
        for (int v = begin(q.l); v < begin(q.l + 1); ++v) {
          const int both = product_of(v, begin(q.d) + s);
          e[v] += du[q.u + s] * a[both];
          d[both] += du[q.u + s] * w[v];
        }
    }
    for (int m = 0; m < n_a_; ++m) d[m] += T(count_[m]) * e[m];
  }

 private:
  struct Feature {
    int nu, l1, d, u1, u2;
  };
  struct Partial {
    int l, d, u;
  };
  static constexpr int kMaxPartials = 32, kMaxFeatures = 40;

  static constexpr int begin(int degree) { return degree_offset(degree); }
  static int product_of(int m, int n) {
    const MonomialTable& t = kMonomials;
    return MonomialTable::index(t.x[m] + t.x[n], t.y[m] + t.y[n], t.z[m] + t.z[n]);
  }

  void feature_gradient(const Feature& f, V g, const V* w, const V* u, V* d, V* e, V* du) const {
    if (f.nu == 1) d[0] += g;
    if (f.nu == 2)
      for (int v = begin(f.l1); v < begin(f.l1 + 1); ++v) d[v] += T(2) * g * w[v];
    if (f.nu == 3)
      for (int s = 0; s < degree_size(f.l1); ++s) {
        e[begin(f.l1) + s] += g * u[f.u1 + s];
        du[f.u1 + s] += g * w[begin(f.l1) + s];
      }
    if (f.nu == 4)
      for (int s = 0; s < degree_size(f.d); ++s) {
        const V weight = T(count_[begin(f.d) + s]) * g;
        du[f.u1 + s] += weight * u[f.u2 + s];
        du[f.u2 + s] += weight * u[f.u1 + s];
      }
  }

  void partial_sums(const V* a, V* w, V* u) const {
    for (int m = 0; m < n_a_; ++m) w[m] = T(count_[m]) * a[m];
    for (int p = 0; p < n_partials_; ++p) {
      const Partial& q = partials_[p];
      for (int s = 0; s < degree_size(q.d); ++s) {
        V sum = {};
        for (int v = begin(q.l); v < begin(q.l + 1); ++v)
          sum += w[v] * a[product_of(v, begin(q.d) + s)];
        u[q.u + s] = sum;
      }
    }
  }

  int partial(int l, int d) {
    for (int p = 0; p < n_partials_; ++p)
      if (partials_[p].l == l && partials_[p].d == d) return partials_[p].u;
    partials_[n_partials_++] = {l, d, n_u_};
    n_u_ += degree_size(d);
    return partials_[n_partials_ - 1].u;
  }

  void make_tables(int l_max, int nu_max) {
    const double factorial[] = {1, 1, 2, 6, 24, 120, 720};
    for (int i = 0; i < n_a_; ++i) {
      const int x = kMonomials.x[i], y = kMonomials.y[i], z = kMonomials.z[i];
      count_[i] = factorial[x + y + z] / (factorial[x] * factorial[y] * factorial[z]);
    }
    features_[n_features_++] = {1, 0, 0, 0, 0};
    for (int l = 1; nu_max >= 2 && l <= l_max; ++l) features_[n_features_++] = {2, l, 0, 0, 0};
    for (int l1 = 1; nu_max >= 3 && l1 <= l_max; ++l1)
      for (int l2 = l1; l1 + l2 <= l_max; ++l2)
        features_[n_features_++] = {3, l1, 0, partial(l2, l1), 0};
    for (int l1 = 1; nu_max >= 4 && l1 <= l_max; ++l1)
      for (int l2 = l1 + 1; l2 <= l_max; ++l2)
        for (int d = 1; l2 + d <= l_max; ++d)
          features_[n_features_++] = {4, l1, d, partial(l1, d), partial(l2, d)};
  }

  void (*values_)(const V*, V*) = nullptr;
  void (*gradient_)(const V*, const V*, V*) = nullptr;
  int n_a_, n_u_ = 0, n_partials_ = 0, n_features_ = 0;
  Partial partials_[kMaxPartials];
  Feature features_[kMaxFeatures];
  double count_[kMaxMonomials];
};

}  // namespace CF_ISA
}  // namespace cace_fast
