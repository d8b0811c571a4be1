#include "mesh_sum.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "constants_generated.h"
#include "engine.h"
#include "formulas_generated.h"
#include "scalar_math.h"
#include "windows_generated.h"

namespace cace_fast {
namespace {

// A host that an interrupt keeps from its work, and that does not say so, must not pass.
constexpr double kUntouched = -1.2345678912345678e300;
constexpr double PI = 3.14159265358979323846;

// 1 / transform of the window at modes 0 .. m, then -m .. -1.
std::vector<double> inverse_transform(const MeshWindow& window, int64_t m, int64_t size) {
  std::vector<double> found(2 * m + 1);
  for (int64_t n = 0; n <= m; ++n) {
    double sum = 0.0;
    for (int i = 0; i < window.n_nodes; ++i)
      sum += window.weights[i] * std::cos(2.0 * PI * double(n) / double(size) * window.nodes[i]);
    found[n] = 1.0 / sum;
    if (n > 0) found[2 * m + 1 - n] = found[n];
  }
  return found;
}

double mode_of(int64_t i, int64_t m) { return double(i <= m ? i : i - 2 * m - 1); }

// Rows of modes, in parallel: f(i, j, factors of row (i, j), slopes) for all that the sphere may meet.
template <class T>
void fill_factors(const EwaldSpec& spec, const MeshPlan& plan, int n_threads, std::vector<T>* out) {
  const int64_t *m = plan.modes, n0 = 2 * m[0] + 1, n1 = 2 * m[1] + 1, n2 = m[2] + 1;
  double chosen[9], ignored;
  if (spec.frozen)
    ewald_invert(spec.reference, chosen, ignored);
  else
    std::copy(plan.inverse, plan.inverse + 9, chosen);
  const double top = 4.0 * PI * PI / (spec.dl * spec.dl) * kSphere;
  std::vector<double> window[3];
  for (int a = 0; a < 3; ++a) window[a] = inverse_transform(*plan.window, m[a], plan.size[a]);
  for (int k = 0; k < 2; ++k) out[k].assign(n0 * n1 * n2, T(0));
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t row = 0; row < n0 * n1; ++row) {
    const double i = mode_of(row / n1, m[0]), j = mode_of(row % n1, m[1]);
    for (int64_t k = 0; k < n2; ++k) {
      if (i == 0 && j == 0 && k == 0) continue;
      const double n[3] = {i, j, double(k)};
      if (!(ewald_norm2(chosen, n) < top)) continue;
      const auto found = k_kernel<ScalarMath>(spec.exponent, ewald_norm2(plan.inverse, n), spec.sigma);
      const double w = window[0][row / n1] * window[1][row % n1] * window[2][k];
      const double scale = 2.0 * w * w / plan.volume;
      out[0][row * n2 + k] = T(scale * found.g);
      out[1][row * n2 + k] = T(scale * found.slope);
    }
  }
}

}  // namespace

void MeshSum::select(const EwaldSpec& spec, const MeshPlan& plan) {
  if (mesh_ == nullptr || plan_.window != plan.window || plan_.precision != plan.precision)
    mesh_ = std::make_unique<Mesh>(*plan.window, plan.precision);
  else if (std::equal(plan.inverse, plan.inverse + 9, plan_.inverse) &&
           std::equal(plan.modes, plan.modes + 3, plan_.modes) && spec.dl == spec_.dl &&
           spec.sigma == spec_.sigma && spec.exponent == spec_.exponent &&
           spec.frozen == spec_.frozen &&
           std::equal(spec.reference, spec.reference + 9, spec_.reference))
    return;
  plan_ = plan;
  spec_ = spec;
  if (plan.precision == 32)
    fill_factors(spec, plan, n_threads_, single_);
  else
    fill_factors(spec, plan, n_threads_, double_);
}

// Modes times factors; and the sums that the virial is made of, plane by plane.
template <class T>
void MeshSum::multiply(int n_q, double weight, double* virial) {
  const std::vector<T>* factors;
  if constexpr (sizeof(T) == 4)
    factors = single_;
  else
    factors = double_;
  const int64_t *m = plan_.modes, n0 = 2 * m[0] + 1, n1 = 2 * m[1] + 1, n2 = m[2] + 1;
  T* modes = reinterpret_cast<T*>(modes_.data());
  std::vector<double> planes(virial == nullptr ? 0 : 7 * n0);
#pragma omp parallel for schedule(static) num_threads(n_threads_)
  for (int64_t plane = 0; plane < n0; ++plane) {
    double sums[7] = {0.0};  // energy; n0 n0, n1 n1, n2 n2, n0 n1, n0 n2, n1 n2
    for (int64_t j = 0; j < n1; ++j) {
      const T* factor = factors[0].data() + (plane * n1 + j) * n2;
      const T* slope = factors[1].data() + (plane * n1 + j) * n2;
      double energy = 0.0, flat = 0.0, once = 0.0, twice = 0.0;
      for (int c = 0; c < n_q; ++c) {
        T* row = modes + 2 * (((c * n0 + plane) * n1 + j) * n2);
        if (virial != nullptr) {
          T e = 0, s = 0, s1 = 0, s2 = 0;
          for (int64_t k = 0; k < n2; ++k) {
            const T power = (row[2 * k] * row[2 * k] + row[2 * k + 1] * row[2 * k + 1]) *
                            (k == 0 ? T(0.5) : T(1));
            const T steep = power * slope[k], z = T(k);
            e += power * factor[k];
            s += steep;
            s1 += steep * z;
            s2 += steep * z * z;
          }
          energy += e, flat += s, once += s1, twice += s2;
        }
        for (int64_t k = 0; k < n2; ++k) {
          row[2 * k] *= factor[k];
          row[2 * k + 1] *= factor[k];
        }
      }
      const double y = mode_of(j, m[1]);
      sums[0] += energy;
      sums[1] += flat;
      sums[2] += y * y * flat;
      sums[3] += twice;
      sums[4] += y * flat;
      sums[5] += once;
      sums[6] += y * once;
    }
    if (virial == nullptr) continue;
    const double x = mode_of(plane, m[0]);
    const double by_x[7] = {1.0, x * x, 1.0, 1.0, x, x, 1.0};
    for (int i = 0; i < 7; ++i) planes[7 * plane + i] = by_x[i] * sums[i];
  }
  if (virial == nullptr) return;
  double total[7] = {0.0};
  for (int64_t plane = 0; plane < n0; ++plane)
    for (int i = 0; i < 7; ++i) total[i] += planes[7 * plane + i];
  // a row counts for its conjugate too: twice half of factor |S|^2, and twice the slope of k^2
  const double moments[9] = {total[1], total[4], total[5], total[4], total[2],
                             total[6], total[5], total[6], total[3]};
  for (int x = 0; x < 3; ++x)
    for (int y = 0; y < 3; ++y) {
      double sum = x == y ? total[0] : 0.0;
      for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
          sum += 8.0 * PI * PI * plan_.inverse[3 * x + a] * moments[3 * a + b] *
                 plan_.inverse[3 * y + b];
      virial[3 * x + y] += weight * sum;
    }
}

int MeshSum::evaluate(const EwaldSpec& spec, const MeshPlan& plan, int n_threads,
                      const EwaldSystem& in, double weight, double* potential, double* forces,
                      double* virial) {
  n_threads_ = team_size(n_threads);
  select(spec, plan);
  const int64_t *size = plan.size, *m = plan.modes;
  const MeshBrick whole = {{size[0], size[1], size[2]}, {0, 0, 0}, {size[0], size[1], size[2]}};
  mesh_->locate(whole, plan.inverse, in.n, in.r, n_threads_);
  const auto ensure = [&](std::vector<double>& v, int64_t numbers) {
    const int64_t doubles = (numbers * plan.precision + 63) / 64;
    if (static_cast<int64_t>(v.size()) < doubles) v.resize(doubles);
  };
  ensure(halo_, in.n_q * mesh_->layout().channel);
  ensure(grid_, in.n_q * size[0] * size[1] * size[2]);
  ensure(modes_, in.n_q * 2 * (2 * m[0] + 1) * (2 * m[1] + 1) * (m[2] + 1));
  const cf_transform& transform = spec.transform;
  const cf_grids grids = {
      in.n_q, plan.precision, {size[0], size[1], size[2]}, {m[0], m[1], m[2]}};
  mesh_->spread(in.n_q, in.q, halo_.data());
  mesh_->fold(in.n_q, halo_.data(), grid_.data());
  modes_[0] = kUntouched;
  int code = transform.run(transform.context, &grids, 1, grid_.data(), modes_.data());
  if (code != CF_OK || modes_[0] == kUntouched) return code == CF_OK ? CF_INVALID : code;
  if (plan.precision == 32)
    multiply<float>(in.n_q, weight, virial);
  else
    multiply<double>(in.n_q, weight, virial);
  grid_[0] = kUntouched;
  code = transform.run(transform.context, &grids, 0, grid_.data(), modes_.data());
  if (code != CF_OK || grid_[0] == kUntouched) return code == CF_OK ? CF_INVALID : code;
  mesh_->unfold(in.n_q, grid_.data(), halo_.data());
  mesh_->gather(in.n_q, in.q, halo_.data(), weight, potential, forces);
  return CF_OK;
}

}  // namespace cace_fast
