// How the sum over k of a system is made: directly or by a mesh, with which window and grid. The same
// rule as kernels/ewald_method.py, whose numbers it takes (windows_generated.h).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iterator>

#include "cace_fast_step.h"
#include "error.h"
#include "ewald.h"
#include "mesh.h"
#include "mesh_sum.h"
#include "windows_generated.h"

namespace cace_fast {
namespace {

constexpr double PI = 3.14159265358979323846;

// The smallest number from `least` on whose prime factors are 2, 3, 5 and 7.
int64_t smooth(int64_t least) {
  for (;; ++least) {
    int64_t rest = least;
    for (int prime : {2, 3, 5, 7})
      while (rest % prime == 0) rest /= prime;
    if (rest == 1) return least;
  }
}

// How many times errors of a mesh are those of a usual box: by its window, by rounding.
struct Growth {
  double window, rounding;
};

// By the longest waves of charges without correlation.
Growth growth(const EwaldSpec& spec, const MeshPlan& plan, int64_t n) {
  const int most = static_cast<int>(kWaves);
  double sum = 0.0;
  for (int i = 0; i <= most; ++i)
    for (int j = -most; j <= most; ++j)
      for (int k = -most; k <= most; ++k) {
        if (i == 0 && (j < 0 || (j == 0 && k <= 0))) continue;
        const double mode[3] = {double(i), double(j), double(k)};
        const double k2 = ewald_norm2(plan.inverse, mode);
        sum += 2.0 / (k2 * k2);
      }
  const double waves = std::pow(2.0 * PI, 4) * sum / plan.volume;
  const double elongation = std::sqrt(waves / (kCubeWaves * std::cbrt(plan.volume)));
  const double amplitude =
      2.0 * PI / spec.dl * spec.sigma * spec.sigma * std::sqrt(double(n) / plan.volume * waves);
  return {std::min(kMostGrowth, std::max(1.0, elongation / kUsualElongation)),
          std::max(1.0, amplitude / kUsualAmplitude)};
}

// The box of modes that the sphere lies within; false if it has too many to be counted.
bool choose_modes(MeshPlan& plan, const EwaldSpec& spec, const double* cell) {
  const double* of = spec.frozen ? spec.reference : cell;
  for (int a = 0; a < 3; ++a) {
    const double* h = of + 3 * a;
    const double most = std::sqrt(h[0] * h[0] + h[1] * h[1] + h[2] * h[2]) / spec.dl;
    if (!(most < 1e6)) return false;
    plan.modes[a] = std::max<int64_t>(1, static_cast<int64_t>(most));
  }
  return true;
}

// Takes the cheapest window that keeps the tolerance for n atoms, and its grid. Returns how many points
// that has, 0 if no window does; then it throws if a mesh was asked for.
double choose_window(MeshPlan& plan, const EwaldSpec& spec, int64_t n) {
  const Growth grown = growth(spec, plan, n);
  const MeshWindow* window = std::begin(kWindows);
  while (window != std::end(kWindows) && window->error * grown.window > spec.tolerance) ++window;
  if (window == std::end(kWindows)) {
    if (spec.method != CF_EWALD_MESH) return 0.0;
    char least[100], got[40];
    std::snprintf(least, sizeof least, "at least %.2g for a mesh in this box",
                  (window - 1)->error * grown.window);
    std::snprintf(got, sizeof got, "%g", spec.tolerance);
    throw Invalid("long_range_tolerance", least, got);
  }
  plan.window = window;
  plan.precision = kSingleError * grown.rounding <= spec.tolerance ? 32 : 64;
  double points = 1.0;
  for (int a = 0; a < 3; ++a) {
    const double least = std::ceil(plan.window->oversampling * double(2 * plan.modes[a] + 1));
    plan.size[a] = smooth(std::max<int64_t>(static_cast<int64_t>(least), plan.window->width));
    points *= double(plan.size[a]);
  }
  return points;
}

void require_size(double bytes, double seconds, int64_t n) {
  const double most_bytes = std::max(kMostBytes, kAtomBytes * double(n));
  const double most_seconds = std::max(kMostSeconds, kAtomSeconds * double(n));
  if (bytes <= most_bytes && seconds <= most_seconds) return;
  char most[100], got[100];
  std::snprintf(most, sizeof most, "a box whose long range takes at most %.3g GB and %.3g s",
                1e-9 * most_bytes, most_seconds);
  std::snprintf(got, sizeof got, "about %.3g GB and %.3g s", 1e-9 * bytes, seconds);
  throw Invalid("cell", most, got);
}

}  // namespace

EwaldStatus ewald_choose(MeshPlan& plan, const EwaldSpec& spec, int64_t n, int n_q,
                         const double* cell) {
  double chosen[9], volume;
  if (!ewald_invert(cell, plan.inverse, plan.volume) ||
      !ewald_invert(spec.frozen ? spec.reference : cell, chosen, volume))
    return EWALD_SINGULAR_CELL;
  const double vectors = 2.0 * PI / 3.0 * volume / (spec.dl * spec.dl * spec.dl);
  const double direct =
      double(n) * (kDirectAtom + (kDirectPair[0] + kDirectPair[1] * n_q) * vectors);
  plan.window = nullptr;
  const bool may = spec.transform.run != nullptr && spec.method != CF_EWALD_DIRECT;
  if (may && (spec.method == CF_EWALD_MESH || direct > kMeshCall) &&
      choose_modes(plan, spec, cell)) {
    const double points = choose_window(plan, spec, n) * n_q;
    const int which = plan.precision == 32 ? 0 : 1, width = points > 0.0 ? plan.window->width : 0;
    const double cost = kMeshCall + kMeshPoint[which] * points +
                        double(n) * (kMeshAtom + kMeshStencil[which] * n_q * width * width);
    if (points > 0.0 && (spec.method == CF_EWALD_MESH || cost < direct)) {
      require_size(kMeshPointBytes[which] * points, 1e-6 * cost, n);
      return EWALD_OK;
    }
    plan.window = nullptr;
  }
  require_size(vectors * (kDirectVector[0] + kDirectVector[1] * n_q), 1e-6 * direct, n);
  return EWALD_OK;
}

}  // namespace cace_fast
