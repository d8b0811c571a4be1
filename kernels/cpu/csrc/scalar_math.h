// The elementary functions that formulas of formulas_generated.h are made of, for single numbers.
#pragma once
#include <cmath>

#include "formulas_generated.h"

namespace cace_fast {
namespace {  // as there: each unit has its own

struct ScalarMath {
  typedef double V;
  typedef double S;
  struct SinCos {
    double s, c;
  };
  static double exp(double x) { return ::exp(x); }
  static double sqrt(double x) { return ::sqrt(x); }
  static double erfc(double x) { return ::erfc(x); }
  static double log(double x) { return ::log(x); }
  static double abs(double x) { return ::fabs(x); }
  static double minimum(double x, double y) { return x < y ? x : y; }
  static double where(bool condition, double x, double y) { return condition ? x : y; }
  static SinCos sincospi(double x) { return {::sin(M_PI * x), ::cos(M_PI * x)}; }
  static SinCos sincos_product(double w, double r) { return {::sin(w * r), ::cos(w * r)}; }
};

}  // namespace
}  // namespace cace_fast
