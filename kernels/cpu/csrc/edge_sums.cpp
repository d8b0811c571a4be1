// Sums R_n f_c Y_m over segments of edges with the derivatives that training needs.  Dual numbers,
// which carry a tangent, give the second derivatives by the same code (docs/developer/kernels.md).
#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "cace_fast.h"
#include "constants_generated.h"
#include "scalar_math.h"

namespace {

using cace_fast::cutoff_function;
using cace_fast::radial_function;
using cace_fast::ScalarMath;

// Dual number x + d e with e e = 0
struct Dual {
  double x, d;
  Dual(double x = 0.0, double d = 0.0) : x(x), d(d) {}
};
inline Dual operator+(Dual a, Dual b) { return {a.x + b.x, a.d + b.d}; }
inline Dual operator-(Dual a, Dual b) { return {a.x - b.x, a.d - b.d}; }
inline Dual operator*(Dual a, Dual b) { return {a.x * b.x, a.d * b.x + a.x * b.d}; }
inline Dual operator/(Dual a, Dual b) {
  const double q = a.x / b.x;
  return {q, (a.d - q * b.d) / b.x};
}
using std::sqrt;
inline Dual sqrt(Dual a) {
  const double root = sqrt(a.x);
  return {root, a.d / (root + root)};
}
inline double value(double x) { return x; }
inline double value(Dual a) { return a.x; }

// A function of r with its slope, at a number or a dual number r.
inline double at(double f, double, double) { return f; }
inline Dual at(double f, double f_r, Dual r) { return {f, f_r * r.d}; }

// One edge: d, its length and direction, R_n f_c and its slopes by r, a and b, and all Y_m.
template <class S>
struct Edge {
  const cf_edge_functions& f;
  S d[3], r, shorter, u[3];
  S *g, *by_r, *by_a, *by_b, *y, *dy;

  static size_t size(const cf_edge_functions& f) { return 4 * size_t(f.n_b) + 2 * f.n_a; }

  Edge(const cf_edge_functions& f, S* scratch)
      : f(f), g(scratch), by_r(g + f.n_b), by_a(by_r + f.n_b), by_b(by_a + f.n_b), y(by_b + f.n_b),
        dy(y + f.n_a) {}

  void set(bool slopes) {
    r = sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    shorter = S(1.0) / (r + S(cace_fast::kLengthShift));
    for (int k = 0; k < 3; ++k) u[k] = d[k] * shorter;
    y[0] = 1.0;
    for (int m = 1; m < f.n_a; ++m) y[m] = y[f.parent[m]] * u[f.axis[m]];
    const double *rest = f.table + 2 * f.n_b, x = value(r), scale = rest[2];
    const auto c =
        cutoff_function<ScalarMath>(f.cutoff, x, x * scale, scale, rest[1], rest[3], f.p);
    for (int n = 0; n < f.n_b; ++n) {
      const auto R = radial_function<ScalarMath>(f.kind, n, x, 1.0 / x, scale, f.table[n],
                                                 f.table[f.n_b + n], rest[0]);
      const double slope = R.f_r * c.f + R.f * c.f_r;
      g[n] = at(R.f * c.f, slope, r);
      if (!slopes) continue;
      by_r[n] = at(slope, R.f_rr * c.f + 2.0 * R.f_r * c.f_r + R.f * c.f_rr, r);
      by_a[n] = at(R.f_a * c.f, R.f_ar * c.f + R.f_a * c.f_r, r);
      by_b[n] = at(R.f_b * c.f, R.f_br * c.f + R.f_b * c.f_r, r);
    }
  }

  // dE/dd of dE/d(sum), and dE/da, dE/db added to `table` [2 n_b]
  void gradient(const double* grad, S* by_d, S* table) {
    const S zero(0.0);
    S along = zero, du[3] = {zero, zero, zero};
    for (int m = 0; m < f.n_a; ++m) dy[m] = zero;
    for (int n = 0; n < f.n_b; ++n) {
      S sum = zero;
      for (int m = 0; m < f.n_a; ++m) {
        const S w(grad[n * f.n_a + m]);
        sum = sum + w * y[m];
        dy[m] = dy[m] + w * g[n];
      }
      along = along + sum * by_r[n];
      table[n] = table[n] + sum * by_a[n];
      table[f.n_b + n] = table[f.n_b + n] + sum * by_b[n];
    }
    for (int m = f.n_a - 1; m >= 1; --m) {
      du[f.axis[m]] = du[f.axis[m]] + dy[m] * y[f.parent[m]];
      dy[f.parent[m]] = dy[f.parent[m]] + dy[m] * u[f.axis[m]];
    }
    const S radially = along - (du[0] * u[0] + du[1] * u[1] + du[2] * u[2]) * shorter;
    for (int k = 0; k < 3; ++k) by_d[k] = radially * d[k] / r + du[k] * shorter;
  }
};

// The result for the caller: the value, or its derivative along a tangent of the vectors.
inline void put(double x, double& to) { to = x; }
inline void put(Dual x, double& to) { to = x.d; }
inline void take(double x, double, double& to) { to = x; }
inline void take(double x, double along, Dual& to) { to = {x, along}; }

template <class S>
void run(const cf_edge_functions& f, const cf_edge_sums& in, int64_t s, S* scratch) {
  const int size = f.n_b * f.n_a;
  Edge<S> edge(f, scratch);
  S* sums = scratch + Edge<S>::size(f);
  const int n_sums = in.grad_sums ? 2 * f.n_b : size;
  for (int i = 0; i < n_sums; ++i) sums[i] = 0.0;
  for (int64_t e = in.first[s]; e < in.first[s + 1]; ++e) {
    for (int k = 0; k < 3; ++k)
      take(in.vectors[3 * e + k], in.along ? in.along[3 * e + k] : 0.0, edge.d[k]);
    edge.set(in.grad_sums != nullptr);
    if (in.grad_sums) {
      S by_d[3];
      edge.gradient(in.grad_sums + s * size, by_d, sums);
      for (int k = 0; k < 3; ++k) put(by_d[k], in.grad_vectors[3 * e + k]);
      continue;
    }
    for (int n = 0; n < f.n_b; ++n)
      for (int m = 0; m < f.n_a; ++m)
        sums[n * f.n_a + m] = sums[n * f.n_a + m] + edge.g[n] * edge.y[m];
  }
  double* to = in.grad_sums ? in.grad_table : in.sums;
  for (int i = 0; i < n_sums; ++i) put(sums[i], to[s * n_sums + i]);
}

template <class S>
void over_segments(const cf_edge_functions& f, const cf_edge_sums& in, int n_threads) {
  const size_t size = Edge<S>::size(f) + size_t(f.n_b) * (f.n_a + 2);
  const int threads = n_threads > 1 ? n_threads : 1;
  std::vector<S> scratch(size * threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    const int64_t n = in.n_segments;
    for (int64_t s = n * part / threads; s < n * (part + 1) / threads; ++s)
      run(f, in, s, scratch.data() + size * part);
  }
}

}  // namespace

extern "C" int cf_edge_sums_run(const cf_edge_functions* functions, const cf_edge_sums* sums,
                                int32_t n_threads) {
  if (functions == nullptr || sums == nullptr) return CF_INVALID;
  try {
    if (sums->along) {
      over_segments<Dual>(*functions, *sums, n_threads);
    } else {
      over_segments<double>(*functions, *sums, n_threads);
    }
  } catch (const std::bad_alloc&) {
    return CF_MEMORY;
  }
  return CF_OK;
}
