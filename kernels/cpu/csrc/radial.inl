// Radial functions g_n = R_n f_c of a slot and their derivatives (docs/theory.md section 2).
#pragma once

#include <math.h>

#include "model.h"
#include "simd.inl"
#include "vmath.inl"

namespace cace_fast {
namespace CF_ISA {

template <class T>
struct Cutoff {
  CutoffKind kind;
  double radius, p, eps, on;
  int power;  // p where it is an integer, else 0

  explicit Cutoff(const Model& m)
      : kind(m.cutoff_kind), radius(m.cutoff_radius), p(m.p), eps(m.eps), on(m.switch_on),
        power(m.p == int(m.p) && m.p <= 64 ? int(m.p) : 0) {}

  void operator()(Vec<T> r, Vec<T>& f, Vec<T>& df) const {
    if (kind == CutoffKind::polynomial && power) return polynomial(r, f, df);
    for (int i = 0; i < Simd<T>::width; ++i) {
      double value, slope;
      one(r[i], value, slope);
      f[i] = T(value);
      df[i] = T(slope);
    }
  }

 private:
  // (1-x)^3 sum_k (k+1)(k+2)/2 x^k: the expanded form loses digits in float.  The slope is
  // -p(p+1)(p+2)/2 x^(p-1) (1-x)^2.
  void polynomial(Vec<T> r, Vec<T>& f, Vec<T>& df) const {
    // 1/r_c in two parts: its own rounding would be an error of the same sign for all pairs
    const T inverse = T(1.0 / radius), rest_of_it = T(1.0 / radius - inverse);
    const Vec<T> x = r * inverse + r * rest_of_it;
    const Vec<T> rest = greater(T(1) - x, Vec<T>{});
    Vec<T> series = spread<T>(T(p * (p + 1.0) / 2.0));
    Vec<T> high = spread<T>(T(1));
    for (int k = power - 2; k >= 0; --k) {
      series = series * x + T((k + 1.0) * (k + 2.0) / 2.0);
      high *= x;
    }
    f = rest * rest * rest * series;
    df = rest * rest * high * T(-p * (p + 1.0) * (p + 2.0) / 2.0 / radius);
  }

  // Any other cutoff function: rare, so one lane at a time with the library's functions.
  void one(double r, double& f, double& df) const {
    f = df = 0.0;
    if (!(r < radius)) return;
    const double x = r / radius;
    if (kind == CutoffKind::polynomial) {
      const double a = (p + 1) * (p + 2) / 2, b = p * (p + 2), c = p * (p + 1) / 2;
      f = 1 - a * ::pow(x, p) + b * ::pow(x, p + 1) - c * ::pow(x, p + 2);
      df = (-a * p * ::pow(x, p - 1) + b * (p + 1) * ::pow(x, p) - c * (p + 2) * ::pow(x, p + 1)) /
           radius;
    } else if (kind == CutoffKind::cosine) {
      f = 0.5 * (1 + ::cos(M_PI * x));
      df = -0.5 * M_PI / radius * ::sin(M_PI * x);
    } else if (kind == CutoffKind::mollifier) {
      if (!(r + eps < radius)) return;
      const double rest = 1 - x * x;
      f = ::exp(1 - 1 / rest);
      df = -2 * x / (rest * rest) * f / radius;
    } else {
      const double width = radius - on, y = (r - on) / width;
      f = y <= 0 ? 1.0 : 0.0;
      if (!(y > 0 && y < 1)) return;
      // f = 1/(1 + e^z), z = 1/(1-y) - 1/y; the tails where e^z overflows are flat
      const double z = 1 / (1 - y) - 1 / y, e = ::exp(-::fabs(z));
      f = z > 0 ? e / (1 + e) : 1 / (1 + e);
      df = -f * (1 - f) * (1 / ((1 - y) * (1 - y)) + 1 / (y * y)) / width;
      if (e == 0.0) df = 0.0;
    }
  }
};

template <class T>
struct Radial {
  RadialKind kind;
  int n_b;
  T prefactor;
  Buffer<T> a, b;  // frequencies; offsets and 1/widths; 1/ranges
  Cutoff<T> cutoff;

  explicit Radial(const Model& m)
      : kind(m.radial_kind), n_b(m.n_b), prefactor(T(m.radial_prefactor)), cutoff(m) {
    a.need(n_b);
    b.need(n_b);
    for (int n = 0; n < n_b; ++n) {
      a[n] = T(kind == RadialKind::exponential ? 1.0 / m.radial_a[n] : m.radial_a[n]);
      b[n] = kind == RadialKind::gaussian ? T(1.0 / m.radial_b[n]) : T(0);
    }
  }

  // g [n_b] and dg/dr [n_b] at distance r, given f_c and its slope.
  void operator()(Vec<T> r, Vec<T> f, Vec<T> df, Vec<T>* g, Vec<T>* dg) const {
    const Vec<T> inverse = T(1) / r;
    for (int n = 0; n < n_b; ++n) {
      Vec<T> value, slope;
      if (kind == RadialKind::bessel) {
        Vec<T> s, c;
        sincos<T>(r * a[n], s, c);
        value = s * inverse * prefactor;
        slope = (c * (a[n] * prefactor) - value) * inverse;
      } else if (kind == RadialKind::gaussian) {
        const Vec<T> z = (r - a[n]) * b[n];
        value = exponential<T>(z * z * T(-0.5));
        slope = -value * z * b[n];
      } else {
        value = prefactor * exponential<T>(-r * a[n]);
        slope = -value * a[n];
      }
      g[n] = value * f;
      dg[n] = slope * f + value * df;
    }
  }
};

}  // namespace CF_ISA
}  // namespace cace_fast
