// Sums R_n f_c Y_m over segments of edges with the derivatives that training needs.  There is one
// text: on numbers that carry a derivative along it gives the next one (docs/kernels.md).
#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "cace_fast.h"

namespace {

// x + d e with e e = 0
template <class S>
struct Dual {
  S x, d;
  Dual(S x = S(), S d = S()) : x(x), d(d) {}
};
template <class S> Dual<S> operator+(Dual<S> a, Dual<S> b) { return {a.x + b.x, a.d + b.d}; }
template <class S> Dual<S> operator-(Dual<S> a, Dual<S> b) { return {a.x - b.x, a.d - b.d}; }
template <class S> Dual<S> operator*(Dual<S> a, Dual<S> b) {
  return {a.x * b.x, a.d * b.x + a.x * b.d};
}
template <class S> Dual<S> operator/(Dual<S> a, Dual<S> b) {
  const S q = a.x / b.x;
  return {q, (a.d - q * b.d) / b.x};
}

template <class S> struct Number {
  static S of(double x) { return x; }
};
template <class S> struct Number<Dual<S>> {
  static Dual<S> of(double x) { return {Number<S>::of(x), Number<S>::of(0.0)}; }
};
inline double value(double x) { return x; }
template <class S> double value(Dual<S> a) { return value(a.x); }

using std::cos;
using std::exp;
using std::sin;
using std::sqrt;
template <class S> Dual<S> sqrt(Dual<S> a) {
  const S root = sqrt(a.x);
  return {root, a.d / (root + root)};
}
template <class S> Dual<S> exp(Dual<S> a) {
  const S e = exp(a.x);
  return {e, e * a.d};
}
template <class S> Dual<S> cos(Dual<S> a);
template <class S> Dual<S> sin(Dual<S> a) { return {sin(a.x), cos(a.x) * a.d}; }
template <class S> Dual<S> cos(Dual<S> a) {
  return {cos(a.x), Number<S>::of(-1.0) * sin(a.x) * a.d};
}
inline double power(double x, double p) { return std::pow(x, p); }
template <class S> Dual<S> power(Dual<S> a, double p) {
  return {power(a.x, p), Number<S>::of(p) * power(a.x, p - 1.0) * a.d};
}

// docs/theory.md, equations 6 to 9
template <class S>
S cutoff(const cf_edge_functions& f, S r) {
  const auto c = [](double x) { return Number<S>::of(x); };
  const double radius = f.table[2 * f.n_b + 1], extra = f.table[2 * f.n_b + 3], p = f.p;
  if (!(value(r) < radius)) return c(0.0);
  const S x = r / c(radius), one = c(1.0);
  if (f.cutoff == 0) {  // a polynomial of integer p, in the form that loses no digits
    S series = c(p * (p + 1.0) / 2.0);
    for (int k = int(p) - 2; k >= 0; --k) series = series * x + c((k + 1.0) * (k + 2.0) / 2.0);
    return (one - x) * (one - x) * (one - x) * series;
  }
  if (f.cutoff == 1) return c(0.5) * (one + cos(c(M_PI) * x));
  if (f.cutoff == 2) {
    if (!(value(r) + extra < radius)) return c(0.0);
    return exp(one - one / (one - x * x));
  }
  if (f.cutoff == 3) {
    const S y = (r - c(extra)) / c(radius - extra);
    if (!(value(y) > 0.0)) return one;
    const S z = one / (one - y) - one / y;
    if (std::fabs(value(z)) > 600.0) return c(value(z) < 0.0);  // flat to the last digit
    return one / (one + exp(z));
  }
  const S high = c(p * (p + 2.0)) * power(x, p + 1.0) - c(p * (p + 1.0) / 2.0) * power(x, p + 2.0);
  return one - c((p + 1.0) * (p + 2.0) / 2.0) * power(x, p) + high;
}

// docs/theory.md, equations 3 to 5; a and b as the table of radial functions has them
template <class S>
S radial(const cf_edge_functions& f, S r, S a, S b) {
  const auto c = [](double x) { return Number<S>::of(x); };
  const S prefactor = c(f.table[2 * f.n_b]);
  if (f.kind == 0) return prefactor * sin(c(M_PI) * a * r) / r;
  if (f.kind == 1) return exp(c(-0.5) * ((r - a) * b) * ((r - a) * b));
  return prefactor * exp(c(-1.0) * a * r);
}

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
    shorter = Number<S>::of(1.0) / (r + Number<S>::of(1e-9));  // 1e-9 as in the trained models
    for (int k = 0; k < 3; ++k) u[k] = d[k] * shorter;
    y[0] = Number<S>::of(1.0);
    for (int m = 1; m < f.n_a; ++m) y[m] = y[f.parent[m]] * u[f.axis[m]];
    const S one = Number<S>::of(1.0), zero = Number<S>::of(0.0);
    const Dual<S> fc = cutoff(f, Dual<S>(r, one));
    for (int n = 0; n < f.n_b; ++n) {
      const S a = Number<S>::of(f.table[n]), b = Number<S>::of(f.table[f.n_b + n]);
      const Dual<S> R = radial(f, Dual<S>(r, one), Dual<S>(a, zero), Dual<S>(b, zero));
      g[n] = R.x * fc.x;
      if (!slopes) continue;
      by_r[n] = R.d * fc.x + R.x * fc.d;
      by_a[n] = radial(f, Dual<S>(r, zero), Dual<S>(a, one), Dual<S>(b, zero)).d * fc.x;
      by_b[n] = radial(f, Dual<S>(r, zero), Dual<S>(a, zero), Dual<S>(b, one)).d * fc.x;
    }
  }

  // dE/dd of dE/d(sum), and dE/da, dE/db added to `table` [2 n_b]
  void gradient(const double* grad, S* by_d, S* table) {
    const S zero = Number<S>::of(0.0);
    S along = zero, du[3] = {zero, zero, zero};
    for (int m = 0; m < f.n_a; ++m) dy[m] = zero;
    for (int n = 0; n < f.n_b; ++n) {
      S sum = zero;
      for (int m = 0; m < f.n_a; ++m) {
        const S w = Number<S>::of(grad[n * f.n_a + m]);
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

// What a caller gets: the value, or its derivative along a direction of the vectors.
inline void put(double x, double& to) { to = x; }
inline void put(Dual<double> x, double& to) { to = x.d; }
inline void take(double x, double, double& to) { to = x; }
inline void take(double x, double along, Dual<double>& to) { to = {x, along}; }

template <class S>
void run(const cf_edge_functions& f, const cf_edge_sums& in, int64_t s, S* scratch) {
  const int size = f.n_b * f.n_a;
  Edge<S> edge(f, scratch);
  S* sums = scratch + Edge<S>::size(f);
  const int n_sums = in.grad_sums ? 2 * f.n_b : size;
  for (int i = 0; i < n_sums; ++i) sums[i] = Number<S>::of(0.0);
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
  try {
    if (sums->along) {
      over_segments<Dual<double>>(*functions, *sums, n_threads);
    } else {
      over_segments<double>(*functions, *sums, n_threads);
    }
  } catch (const std::bad_alloc&) {
    return CF_MEMORY;
  }
  return CF_OK;
}
