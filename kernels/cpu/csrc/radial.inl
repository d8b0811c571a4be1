// Radial functions g_n = R_n f_c of a slot and their derivatives: the formulas of
// formulas_generated.h, which are those of cace_fast/kernels/formulas.py.
#pragma once

#include "formulas_generated.h"
#include "model.h"
#include "scalar_math.h"
#include "simd.inl"
#include "vmath.inl"

namespace cace_fast {
namespace CF_ISA {

template <class T>
struct Cutoff {
  int kind;
  double radius, p, extra;

  explicit Cutoff(const Model& m)
      : kind(m.cutoff_kind), radius(m.cutoff_radius), p(m.p), extra(m.cutoff_extra) {}

  void operator()(Vec<T> r, Vec<T>& f, Vec<T>& df) const {
    if (kind == kPolynomial) {
      // 1/r_c in two parts: its rounding alone would be an error of the same sign for all pairs
      const T scale = T(1.0 / radius), rest = T(1.0 / radius - scale);
      const auto found =
          polynomial<VectorMath<T>>(r, r * scale + r * rest, scale, T(radius), T(extra), T(p));
      f = found.f;
      df = found.f_r;
      return;
    }
    for (int i = 0; i < Simd<T>::width; ++i) {  // the others are rare: one lane at a time
      const double d = r[i], scale = 1.0 / radius;
      const auto found = cutoff_function<ScalarMath>(kind, d, d * scale, scale, radius, extra, p);
      f[i] = T(found.f);
      df[i] = T(found.f_r);
    }
  }
};

template <class T>
struct Radial {
  int kind, n_b;
  T prefactor, scale;
  Buffer<T> a, b;
  Cutoff<T> cutoff;

  explicit Radial(const Model& m)
      : kind(m.radial_kind), n_b(m.n_b), prefactor(T(m.radial_prefactor)),
        scale(T(1.0 / m.cutoff_radius)), cutoff(m) {
    a.ensure(n_b);
    b.ensure(n_b);
    for (int n = 0; n < n_b; ++n) {
      a[n] = T(m.radial_a[n]);
      b[n] = T(m.radial_b[n]);
    }
  }

  // g [n_b] and dg/dr [n_b] at distance r, given f_c and its slope.
  void operator()(Vec<T> r, Vec<T> f, Vec<T> df, Vec<T>* g, Vec<T>* dg) const {
    const Vec<T> inverse = T(1) / r;
    for (int n = 0; n < n_b; ++n) {
      const auto found =
          radial_function<VectorMath<T>>(kind, n, r, inverse, scale, a[n], b[n], prefactor);
      g[n] = found.f * f;
      dg[n] = found.f_r * f + found.f * df;
    }
  }
};

}  // namespace CF_ISA
}  // namespace cace_fast
