// Elementary functions of vectors.  Polynomials are Taylor series on reduced arguments, long enough
// for 2e-7 in float and 1e-15 in double.
#pragma once

#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

template <class T>
struct Reduce;
template <>
struct Reduce<float> {
  // Adding this pushes the fraction out: rounds, and leaves the integer in the low bits.
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  // pi/2 and ln 2 in parts with few bits, so that k times a part is exact.
  static constexpr float half_pi[3] = {1.5703125f, 4.837512969970703125e-4f,
                                       7.54978995489188216e-8f};
  static constexpr float ln2[2] = {0.693359375f, -2.12194440054690583e-4f};
  static constexpr float exp_low = -87.0f, exp_high = 88.0f;
  static constexpr int sin_terms = 4, cos_terms = 4, exp_terms = 7, exponent_shift = 23, bias = 127;
};
template <>
struct Reduce<double> {
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double half_pi[3] = {1.57079625129699707031, 7.54978941586159635336e-8,
                                        5.39030285815811905290e-15};
  static constexpr double ln2[2] = {6.93145751953125e-1, 1.42860682030941723212e-6};
  static constexpr double exp_low = -708.0, exp_high = 709.0;
  static constexpr int sin_terms = 7, cos_terms = 8, exp_terms = 13, exponent_shift = 52;
  static constexpr int bias = 1023;
};

// 1/n!
// clang-format off
constexpr double kInverseFactorial[] = {
    1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
    1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0,
    1.0 / 87178291200.0, 1.0 / 1307674368000.0, 1.0 / 20922789888000.0};
// clang-format on

template <class V>
struct SinCos {
  V s, c;
};

// sin(w r) and cos(w r).
template <class T>
inline SinCos<Vec<T>> sincos_product(T w, Vec<T> r) {
  typedef Reduce<T> P;
  typedef IntVec<T> I;
  const Vec<T> shifted = r * (w * T(0.63661977236758134308)) + P::magic;
  const Vec<T> k = shifted - P::magic;
  const I quadrant = (I)shifted;
  const Vec<T> y = ((r * w - k * P::half_pi[0]) - k * P::half_pi[1]) - k * P::half_pi[2];
  const Vec<T> z = -(y * y);
  Vec<T> ps = splat<T>(T(kInverseFactorial[2 * P::sin_terms + 1]));
  for (int i = P::sin_terms - 1; i >= 1; --i) ps = ps * z + T(kInverseFactorial[2 * i + 1]);
  ps = ps * z * y + y;
  Vec<T> pc = splat<T>(T(kInverseFactorial[2 * P::cos_terms]));
  for (int i = P::cos_terms - 1; i >= 0; --i) pc = pc * z + T(kInverseFactorial[2 * i]);
  const I odd = (quadrant & 1) != 0;
  constexpr int sign_bit = int(sizeof(T)) * 8 - 1;
  const I one = I{} + 1;
  const I flip_s = ((quadrant >> 1) & one) << sign_bit;
  const I flip_c = (((quadrant + 1) >> 1) & one) << sign_bit;
  return {(Vec<T>)((I)(odd ? pc : ps) ^ flip_s), (Vec<T>)((I)(odd ? ps : pc) ^ flip_c)};
}

template <class T>
inline Vec<T> exponential(Vec<T> x) {
  typedef Reduce<T> P;
  typedef IntVec<T> I;
  x = max(min(x, splat<T>(P::exp_high)), splat<T>(P::exp_low));  // NaN stays NaN
  const Vec<T> shifted = x * T(1.44269504088896340736) + P::magic;
  const Vec<T> k = shifted - P::magic;
  const Vec<T> y = (x - k * P::ln2[0]) - k * P::ln2[1];
  Vec<T> p = splat<T>(T(kInverseFactorial[P::exp_terms]));
  for (int i = P::exp_terms - 1; i >= 0; --i) p = p * y + T(kInverseFactorial[i]);
  const I magic_bits = (I)splat<T>(P::magic);
  const I power = (((I)shifted - magic_bits) + P::bias) << P::exponent_shift;
  return p * (Vec<T>)power;
}

// Elementary functions for the formulas of the generated header; scalar_math.h has those of numbers.
template <class T>
struct VectorMath {
  typedef Vec<T> V;
  typedef T S;
  static V exp(V x) { return exponential<T>(x); }
  static SinCos<V> sincos_product(S w, V r) { return cace_fast::CF_ISA::sincos_product<T>(w, r); }
  static V minimum(V x, S most) { return min(x, splat<T>(most)); }
};

}  // namespace CF_ISA
}  // namespace cace_fast
