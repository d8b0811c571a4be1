// Slabs: the box whose sum over k they take, and what takes the interaction of its images along the
// normal out again (docs/theory.md section 9, slabs; the oracle is cace_fast/slab.py).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ewald.h"

namespace cace_fast {
namespace {

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

}  // namespace

EwaldStatus ewald_slab_begin(EwaldSlab& slab, const EwaldSpec& spec, const double* cell,
                             int boundary, int64_t n, const double* r) {
  slab.present = boundary >= EWALD_SLAB;
  if (!slab.present) return EWALD_OK;
  const int open = boundary - EWALD_SLAB;
  if (open > 2 || !(spec.slab_vacuum > 0)) return EWALD_SLAB_VACUUM;
  if (spec.exponent != 1) return EWALD_OPEN_EXPONENT;
  const double *a = cell + 3 * (open == 0 ? 1 : 0), *b = cell + 3 * (open == 2 ? 1 : 2),
               *c = cell + 3 * open;
  const double across[3] = {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2],
                            a[0] * b[1] - a[1] * b[0]};
  const double area = std::sqrt(dot(across, across)), volume = std::fabs(dot(across, c));
  if (!(volume > 1e-9 * std::sqrt(dot(a, a) * dot(b, b) * dot(c, c)))) return EWALD_SINGULAR_CELL;
  slab.height = volume / area;
  slab.period = slab.height + spec.slab_vacuum;
  slab.volume = area * slab.period;
  std::memcpy(slab.cell, cell, sizeof slab.cell);
  for (int x = 0; x < 3; ++x) {
    slab.normal[x] = across[x] / area;
    slab.cell[3 * open + x] = slab.period * slab.normal[x];
  }
  std::fill_n(slab.virial, 9, 0.0);
  return ewald_slab_places(slab, n, r, true);
}

EwaldStatus ewald_slab_places(EwaldSlab& slab, int64_t n, const double* r, bool centred) {
  slab.along.resize(n);
  slab.forces.assign(3 * n, 0.0);
  double mean = 0.0, low = HUGE_VAL, high = -HUGE_VAL;
  for (int64_t i = 0; i < n; ++i) {
    const double z = dot(r + 3 * i, slab.normal);
    slab.along[i] = z;
    mean += z;
    low = std::min(low, z);
    high = std::max(high, z);
  }
  if (n > 0 && !(high - low <= slab.height * (1.0 + 1e-9))) return EWALD_SLAB_EXTENT;
  if (centred)
    for (double& z : slab.along) z -= mean / n;
  return EWALD_OK;
}

void ewald_moments(const EwaldSlab& slab, int64_t n, int n_q, const double* q, double* moments) {
  for (int c = 0; c < n_q; ++c)
    for (int64_t i = 0; i < n; ++i) {
      const double charge = q[i * n_q + c], z = slab.present ? slab.along[i] : 0.0;
      moments[c] += charge;
      moments[n_q + c] += charge * z;
      moments[2 * n_q + c] += charge * z * z;
    }
}

void ewald_slab_finish(EwaldSlab& slab, const EwaldSpec& spec, double weight,
                       const EwaldTotals& all, int64_t n, int n_q, const double* q, double* slopes,
                       double* forces, double* virial) {
  const double *z = slab.along.data(), *normal = slab.normal, share = slab.height / slab.period;
  const double constant = slab.period * slab.period / 6.0 + spec.sigma * spec.sigma;
  // the virial of the sum over k: only in the plane does its strain move its box as it moves the slab
  double lean[3] = {0.0, 0.0, 0.0}, across[3] = {0.0, 0.0, 0.0}, upright = 0.0;
  for (int64_t i = 0; i < n; ++i)
    for (int x = 0; x < 3; ++x) lean[x] += slab.forces[3 * i + x] * z[i];
  for (int x = 0; x < 3; ++x) across[x] = dot(slab.virial + 3 * x, normal);
  upright = dot(across, normal);
  const double along = dot(lean, normal), rest = (1.0 - share) * along + share * upright;

  double energy = 0.0, rise = 0.0;
  for (int c = 0; c < n_q; ++c) {
    const struct {
      double total, first, second;
    } m = {all.moments[c], all.moments[n_q + c], all.moments[2 * n_q + c]};
    for (int64_t i = 0; i < n; ++i) {
      slopes[i * n_q + c] +=
          (2.0 * m.first * z[i] - m.second - m.total * (z[i] * z[i] + constant)) / slab.volume;
      const double pull = -2.0 * weight * q[i * n_q + c] * (m.first - m.total * z[i]) / slab.volume;
      for (int x = 0; x < 3; ++x) slab.forces[3 * i + x] += pull * normal[x];
    }
    const double squares = m.first * m.first - m.total * m.second, charged = m.total * m.total;
    energy += (squares - 0.5 * charged * constant) / slab.volume;
    rise += (2.0 * squares - charged * slab.period * slab.height / 6.0) / slab.volume;
  }
  if (forces != nullptr)
    for (int64_t i = 0; i < 3 * n; ++i) forces[i] += slab.forces[i];
  if (virial == nullptr) return;
  for (int x = 0; x < 3; ++x)
    for (int y = 0; y < 3; ++y) {
      const double outer = normal[x] * normal[y], flat = (x == y ? 1.0 : 0.0) - outer;
      const double plane =
          slab.virial[3 * x + y] - across[x] * normal[y] - normal[x] * across[y] + upright * outer;
      const double tilt =
          normal[x] * (lean[y] - along * normal[y]) + normal[y] * (lean[x] - along * normal[x]);
      virial[3 * x + y] += plane + tilt + rest * outer +
                           all.share * weight * (energy * (flat + share * outer) - rise * outer);
    }
}

}  // namespace cace_fast
