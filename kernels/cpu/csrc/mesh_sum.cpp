#include "mesh_sum.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cace_fast.h"
#include "cace_fast_step.h"
#include "constants_generated.h"
#include "engine.h"
#include "ewald.h"
#include "formulas_generated.h"
#include "mesh.h"
#include "scalar_math.h"

namespace cace_fast {
namespace {

constexpr double PI = 3.14159265358979323846;
// A host that an interrupt keeps from its work, and that does not say so, must not pass.
constexpr double kUntouched = -1.2345678912345678e300;

// 1 / transform of the window at modes 0 .. m.
std::vector<double> inverse_transform(const MeshWindow& window, int64_t m, int64_t size) {
  std::vector<double> found(m + 1);
  for (int64_t n = 0; n <= m; ++n) {
    double sum = 0.0;
    for (int i = 0; i < window.n_nodes; ++i)
      sum += window.weights[i] * std::cos(2.0 * PI * double(n) / double(size) * window.nodes[i]);
    found[n] = 1.0 / sum;
  }
  return found;
}

void ensure(std::vector<double>& v, int64_t numbers, int precision) {
  const int64_t doubles = (numbers * precision + 63) / 64;
  if (static_cast<int64_t>(v.size()) < doubles) v.resize(doubles);
}

MeshBrick whole(const MeshPlan& plan) {
  const int64_t* n = plan.size;
  return {{n[0], n[1], n[2]}, {0, 0, 0}, {n[0], n[1], n[2]}};
}

// The modes 0 .. m, -m .. -1 of two axes, and 0 .. m of the last.
MeshModes inner_modes(const MeshPlan& plan) {
  MeshModes found;
  for (int a = 0; a < 3; ++a) {
    for (int64_t n = 0; n <= plan.modes[a]; ++n) found.axis[a].push_back(n);
    for (int64_t n = -plan.modes[a]; n < 0 && a < 2; ++n) found.axis[a].push_back(n);
  }
  return found;
}

bool same_sphere(const EwaldSpec& a, const EwaldSpec& b) {
  return a.dl == b.dl && a.sigma == b.sigma && a.exponent == b.exponent && a.frozen == b.frozen &&
         std::equal(a.reference, a.reference + 9, b.reference);
}

}  // namespace

void MeshSum::begin(const EwaldSpec& spec, const MeshPlan& plan, int n_threads) {
  n_threads_ = team_size(n_threads);
  const bool same_mesh =
      mesh_ != nullptr && plan_.window == plan.window && plan_.precision == plan.precision;
  if (!same_mesh) mesh_ = std::make_unique<Mesh>(*plan.window, plan.precision);
  const bool same = same_mesh && std::equal(plan.inverse, plan.inverse + 9, plan_.inverse) &&
                    std::equal(plan.modes, plan.modes + 3, plan_.modes) && same_sphere(spec, spec_);
  plan_ = plan;
  spec_ = spec;
  if (same) return;
  modes_ = {};
  inner_ = inner_modes(plan);
}

// Fills the factors of modes_.
template <class T>
void MeshSum::fill() {
  std::vector<T>* out;
  if constexpr (sizeof(T) == 4) out = single_;
  else out = double_;
  const int64_t n1 = modes_.axis[1].size(), n2 = modes_.axis[2].size(),
                rows = modes_.axis[0].size() * n1;
  double chosen[9], ignored;
  if (spec_.frozen) ewald_invert(spec_.reference, chosen, ignored);
  else std::copy(plan_.inverse, plan_.inverse + 9, chosen);
  const double top = 4.0 * PI * PI / (spec_.dl * spec_.dl) * kSphere;
  std::vector<double> window[3];
  for (int a = 0; a < 3; ++a)
    window[a] = inverse_transform(*plan_.window, plan_.modes[a], plan_.size[a]);
  for (int k = 0; k < 2; ++k) out[k].assign(rows * n2, T(0));
  const auto inside = [&](int a, int64_t n) { return std::abs(n) <= plan_.modes[a]; };
#pragma omp parallel for schedule(static) num_threads(n_threads_)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t i = modes_.axis[0][row / n1], j = modes_.axis[1][row % n1];
    if (!inside(0, i) || !inside(1, j)) continue;
    for (int64_t at = 0; at < n2; ++at) {
      const int64_t k = modes_.axis[2][at];
      if (!inside(2, k) || (i == 0 && j == 0 && k == 0)) continue;
      const double n[3] = {double(i), double(j), double(k)};
      if (!(ewald_norm2(chosen, n) < top)) continue;
      const auto found =
          k_kernel<ScalarMath>(spec_.exponent, ewald_norm2(plan_.inverse, n), spec_.sigma);
      const double w = window[0][std::abs(i)] * window[1][std::abs(j)] * window[2][std::abs(k)];
      const double scale = 2.0 * w * w / plan_.volume;
      out[0][row * n2 + at] = T(scale * found.g);
      out[1][row * n2 + at] = T(scale * found.slope);
    }
  }
}

void MeshSum::choose(const MeshModes& modes) {
  if (modes.half == modes_.half && std::equal(modes.axis, modes.axis + 3, modes_.axis)) return;
  modes_ = modes;
  plan_.precision == 32 ? fill<float>() : fill<double>();
}

void MeshSum::multiply(const MeshModes& modes, int n_q, void* values, double weight,
                       double* virial) {
  choose(modes);
  if (plan_.precision == 32) multiply<float>(n_q, values, weight, virial);
  else multiply<double>(n_q, values, weight, virial);
}

// Values times factors; and the sums that the virial is made of, plane by plane.
template <class T>
void MeshSum::multiply(int n_q, void* values, double weight, double* virial) {
  const std::vector<T>* factors;
  if constexpr (sizeof(T) == 4) factors = single_;
  else factors = double_;
  const int64_t n0 = modes_.axis[0].size(), n1 = modes_.axis[1].size(), n2 = modes_.axis[2].size();
  // how often a mode counts along the last axis: half of what it does, as energies have a half
  std::vector<T> count(n2), z(n2);
  for (int64_t k = 0; k < n2; ++k) {
    z[k] = T(modes_.axis[2][k]);
    count[k] = T(modes_.half && modes_.axis[2][k] != 0 ? 1.0 : 0.5);
  }
  std::vector<double> planes(virial == nullptr ? 0 : 7 * n0);
#pragma omp parallel for schedule(static) num_threads(n_threads_)
  for (int64_t plane = 0; plane < n0; ++plane) {
    double sums[7] = {0.0};  // energy; n0 n0, n1 n1, n2 n2, n0 n1, n0 n2, n1 n2
    for (int64_t j = 0; j < n1; ++j) {
      const T* factor = factors[0].data() + (plane * n1 + j) * n2;
      const T* slope = factors[1].data() + (plane * n1 + j) * n2;
      double energy = 0.0, flat = 0.0, once = 0.0, twice = 0.0;
      for (int c = 0; c < n_q; ++c) {
        T* row = static_cast<T*>(values) + 2 * (((c * n0 + plane) * n1 + j) * n2);
        if (virial != nullptr) {
          T e = 0, s = 0, s1 = 0, s2 = 0;
          for (int64_t k = 0; k < n2; ++k) {
            const T power = (row[2 * k] * row[2 * k] + row[2 * k + 1] * row[2 * k + 1]) * count[k];
            const T steep = power * slope[k];
            e += power * factor[k];
            s += steep;
            s1 += steep * z[k];
            s2 += steep * z[k] * z[k];
          }
          energy += e, flat += s, once += s1, twice += s2;
        }
        for (int64_t k = 0; k < n2; ++k) {
          row[2 * k] *= factor[k];
          row[2 * k + 1] *= factor[k];
        }
      }
      const double y = double(modes_.axis[1][j]);
      sums[0] += energy;
      sums[1] += flat;
      sums[2] += y * y * flat;
      sums[3] += twice;
      sums[4] += y * flat;
      sums[5] += once;
      sums[6] += y * once;
    }
    if (virial == nullptr) continue;
    const double x = double(modes_.axis[0][plane]);
    const double by_x[7] = {1.0, x * x, 1.0, 1.0, x, x, 1.0};
    for (int i = 0; i < 7; ++i) planes[7 * plane + i] = by_x[i] * sums[i];
  }
  if (virial == nullptr) return;
  double total[7] = {0.0};
  for (int64_t plane = 0; plane < n0; ++plane)
    for (int i = 0; i < 7; ++i) total[i] += planes[7 * plane + i];
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

int64_t MeshSum::spread(const MeshBrick& brick, const EwaldSystem& in, void* with_halo) {
  const int64_t outside = mesh_->locate(brick, plan_.inverse, in.n, in.r, n_threads_);
  if (outside < 0) mesh_->spread(in.n_q, in.q, with_halo);
  return outside;
}

int64_t MeshSum::gather(const MeshBrick& brick, const EwaldSystem& in, void* with_halo,
                        double weight, double* potential, double* forces) {
  const int64_t outside = mesh_->locate(brick, plan_.inverse, in.n, in.r, n_threads_);
  if (outside < 0) mesh_->gather(in.n_q, in.q, with_halo, weight, potential, forces);
  return outside;
}

// Leaves the charges of atoms on grid_.
void MeshSum::charges_on_grid(const EwaldSystem& in) {
  const int64_t* size = plan_.size;
  mesh_->locate(whole(plan_), plan_.inverse, in.n, in.r, n_threads_);
  ensure(halo_, in.n_q * mesh_->layout().channel, plan_.precision);
  ensure(grid_, in.n_q * size[0] * size[1] * size[2], plan_.precision);
  mesh_->spread(in.n_q, in.q, halo_.data());
  mesh_->fold(in.n_q, halo_.data(), grid_.data());
}

int MeshSum::evaluate(const EwaldSystem& in, double weight, double* potential, double* forces,
                      double* virial) {
  charges_on_grid(in);
  return transform_and_gather(in, weight, 1.0, potential, forces, virial);
}

int MeshSum::transform_and_gather(const EwaldSystem& in, double weight, double share,
                                  double* potential, double* forces, double* virial) {
  const int64_t *size = plan_.size, *m = plan_.modes;
  ensure(values_, in.n_q * 2 * (2 * m[0] + 1) * (2 * m[1] + 1) * (m[2] + 1), plan_.precision);
  const cf_transform& transform = spec_.transform;
  const cf_grids grids = {in.n_q, plan_.precision, {size[0], size[1], size[2]}, {m[0], m[1], m[2]}};
  values_[0] = kUntouched;
  int code = transform.run(transform.context, &grids, 1, grid_.data(), values_.data());
  if (code != CF_OK || values_[0] == kUntouched) return code == CF_OK ? CF_INVALID : code;
  multiply(inner_, in.n_q, values_.data(), share * weight, virial);
  grid_[0] = kUntouched;
  code = transform.run(transform.context, &grids, 0, grid_.data(), values_.data());
  if (code != CF_OK || grid_[0] == kUntouched) return code == CF_OK ? CF_INVALID : code;
  mesh_->unfold(in.n_q, grid_.data(), halo_.data());
  mesh_->gather(in.n_q, in.q, halo_.data(), weight, potential, forces);
  return CF_OK;
}

void MeshSum::add_charges(const EwaldSystem& in, double* grids) {
  charges_on_grid(in);
  const int64_t n = in.n_q * plan_.size[0] * plan_.size[1] * plan_.size[2];
  if (plan_.precision == 32) {
    const float* from = reinterpret_cast<const float*>(grid_.data());
    for (int64_t i = 0; i < n; ++i) grids[i] += double(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) grids[i] += grid_[i];
  }
}

int MeshSum::finish(const EwaldSystem& in, const double* grids, double weight, double share,
                    double* potential, double* forces, double* virial) {
  const int64_t n = in.n_q * plan_.size[0] * plan_.size[1] * plan_.size[2];
  mesh_->locate(whole(plan_), plan_.inverse, in.n, in.r, n_threads_);
  ensure(halo_, in.n_q * mesh_->layout().channel, plan_.precision);
  ensure(grid_, n, plan_.precision);
  if (plan_.precision == 32) {
    float* to = reinterpret_cast<float*>(grid_.data());
    for (int64_t i = 0; i < n; ++i) to[i] = float(grids[i]);
  } else {
    std::copy(grids, grids + n, grid_.data());
  }
  return transform_and_gather(in, weight, share, potential, forces, virial);
}

}  // namespace cace_fast
