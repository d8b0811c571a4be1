#include "ewald.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cace_fast.h"
#include "constants_generated.h"
#include "engine.h"
#include "formulas_generated.h"
#include "scalar_math.h"

namespace cace_fast {
namespace {

constexpr double PI = 3.14159265358979323846;
constexpr int64_t MAX_POINTS = int64_t(1) << 31;  // of the grid that is searched
constexpr int64_t PARALLEL_FROM = 20000;  // atoms x k vectors: below it threads are not worth it

struct Kernels {
  EwaldAccumulate accumulate;
  EwaldGather gather;
};

Kernels kernels() {
  [[maybe_unused]] const char* name = cf_isa(nullptr);
#ifdef CF_HAS_AVX512
  if (std::strcmp(name, "avx512") == 0) return {avx512::ewald_accumulate, avx512::ewald_gather};
#endif
#ifdef CF_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0) return {avx2::ewald_accumulate, avx2::ewald_gather};
#endif
  return {base::ewald_accumulate, base::ewald_gather};
}

int64_t phase_length(const KVectors& k) {
  return 2 * (k.limits[0] + 1) + 2 * (2 * k.limits[1] + 1) + 2 * (2 * k.limits[2] + 1 + EWALD_PAD);
}

// exp(i n theta) for the n that an axis needs: 0 .. limits[0], then -limits[1] .. limits[1], then
// -limits[2] .. limits[2] and pads
void phases_of(const KVectors& k, const double* r, double* out) {
  double step[3][2];
  for (int a = 0; a < 3; ++a) {
    double f = r[0] * k.inverse[a] + r[1] * k.inverse[3 + a] + r[2] * k.inverse[6 + a];
    f -= std::floor(f);
    step[a][0] = std::cos(2.0 * PI * f);
    step[a][1] = std::sin(2.0 * PI * f);
  }
  double* first = out;
  double* second = first + 2 * (k.limits[0] + 1) + 2 * k.limits[1];
  double* re = first + 2 * (k.limits[0] + 1) + 2 * (2 * k.limits[1] + 1) + k.limits[2];
  double* im = re + 2 * k.limits[2] + 1 + EWALD_PAD;
  double x = 1.0, y = 0.0;
  auto advance = [&](int a) {
    const double next = x * step[a][0] - y * step[a][1];
    y = x * step[a][1] + y * step[a][0];
    x = next;
  };
  for (int n = 0; n <= k.limits[0]; ++n, advance(0)) {
    first[2 * n] = x;
    first[2 * n + 1] = y;
  }
  x = 1.0, y = 0.0;
  for (int n = 0; n <= k.limits[1]; ++n, advance(1)) {
    second[2 * n] = second[-2 * n] = x;
    second[2 * n + 1] = y;
    second[-2 * n + 1] = -y;
  }
  x = 1.0, y = 0.0;
  for (int n = 0; n <= k.limits[2]; ++n, advance(2)) {
    re[n] = re[-n] = x;
    im[n] = y;
    im[-n] = -y;
  }
  for (int n = k.limits[2] + 1; n <= k.limits[2] + EWALD_PAD; ++n) re[n] = im[n] = 0.0;
}

void grow(std::vector<double>& v, int64_t size) {
  if (static_cast<int64_t>(v.size()) < size) v.resize(size);
}

}  // namespace

bool ewald_invert(const double* h, double* inverse, double& volume) {
  const double c[9] = {
      h[4] * h[8] - h[5] * h[7], h[2] * h[7] - h[1] * h[8], h[1] * h[5] - h[2] * h[4],
      h[5] * h[6] - h[3] * h[8], h[0] * h[8] - h[2] * h[6], h[2] * h[3] - h[0] * h[5],
      h[3] * h[7] - h[4] * h[6], h[1] * h[6] - h[0] * h[7], h[0] * h[4] - h[1] * h[3]};
  const double det = h[0] * c[0] + h[1] * c[3] + h[2] * c[6];
  double lengths = 1.0;
  for (int a = 0; a < 3; ++a)
    lengths *=
        std::sqrt(h[3 * a] * h[3 * a] + h[3 * a + 1] * h[3 * a + 1] + h[3 * a + 2] * h[3 * a + 2]);
  volume = std::fabs(det);
  if (!(volume > 1e-9 * lengths)) return false;
  for (int a = 0; a < 9; ++a) inverse[a] = c[a] / det;
  return true;
}

double ewald_norm2(const double* inverse, const double* n) {
  double k2 = 0.0;
  for (int x = 0; x < 3; ++x) {
    const double k = inverse[3 * x] * n[0] + inverse[3 * x + 1] * n[1] + inverse[3 * x + 2] * n[2];
    k2 += k * k;
  }
  return 4.0 * PI * PI * k2;
}

void ewald_freeze(EwaldSpec& spec, const double* cell) {
  spec.frozen = cell != nullptr;
  if (spec.frozen) std::memcpy(spec.reference, cell, sizeof spec.reference);
}

EwaldStatus ewald_select(KVectors& k, const EwaldSpec& spec, const double* cell) {
  if (k.selected && k.spec.exponent == spec.exponent && k.spec.dl == spec.dl &&
      k.spec.sigma == spec.sigma && k.spec.frozen == spec.frozen &&
      // NOLINTBEGIN(bugprone-suspicious-memory-comparison): 0 and -0 count as different, at no harm
      std::memcmp(k.spec.reference, spec.reference, sizeof spec.reference) == 0 &&
      std::memcmp(k.cell, cell, sizeof k.cell) == 0)
    // NOLINTEND(bugprone-suspicious-memory-comparison)
    return EWALD_OK;
  k.selected = false;
  double volume, ignored, chosen[9];
  if (!ewald_invert(cell, k.inverse, volume)) return EWALD_SINGULAR_CELL;
  const double* of = spec.frozen ? spec.reference : cell;  // whose sphere it is
  if (!ewald_invert(of, chosen, ignored)) return EWALD_SINGULAR_CELL;
  double points = 1.0;
  for (int a = 0; a < 3; ++a) {
    const double* h = of + 3 * a;
    const double most = std::sqrt(h[0] * h[0] + h[1] * h[1] + h[2] * h[2]) / spec.dl;
    points *= 2.0 * most + 1.0;
    if (!(points < static_cast<double>(MAX_POINTS))) return EWALD_TOO_MANY;
    k.limits[a] = std::max(1, static_cast<int>(most));
  }
  const double top = 4.0 * PI * PI / (spec.dl * spec.dl) * kSphere;
  k.rows.clear();
  k.factor.clear();
  k.slope.clear();
  k.size = k.count = 0;
  for (int n0 = 0; n0 <= k.limits[0]; ++n0)
    for (int n1 = n0 == 0 ? 0 : -k.limits[1]; n1 <= k.limits[1]; ++n1) {
      KVectors::Row row{n0, n1, 0, 0, static_cast<int32_t>(k.size)};
      for (int n2 = n0 == 0 && n1 == 0 ? 1 : -k.limits[2]; n2 <= k.limits[2]; ++n2) {
        const double n[3] = {double(n0), double(n1), double(n2)};
        if (!(ewald_norm2(chosen, n) < top)) continue;
        const auto found =
            k_kernel<ScalarMath>(spec.exponent, ewald_norm2(k.inverse, n), spec.sigma);
        if (row.count == 0) row.first = n2;  // |k|^2 is convex along a row: no gaps
        ++row.count;
        k.factor.push_back(found.g / volume);
        k.slope.push_back(found.slope / volume);
      }
      if (row.count == 0) continue;
      k.count += row.count;
      row.count = (row.count + EWALD_PAD - 1) / EWALD_PAD * EWALD_PAD;
      k.size += row.count;
      k.factor.resize(k.size, 0.0);
      k.slope.resize(k.size, 0.0);
      k.rows.push_back(row);
    }
  std::memcpy(k.cell, cell, sizeof k.cell);
  k.spec = spec;
  k.selected = true;
  return EWALD_OK;
}

void ewald_structure_factors(EwaldWork& work, int64_t n, int n_q, const double* q, const double* r,
                             double* structure) {
  const KVectors& k = work.k;
  const int64_t stride = phase_length(k), n_rows = k.rows.size();
  const int threads = team_size(work.n_threads);
  const auto accumulate = kernels().accumulate;
  grow(work.phases, stride * EWALD_BLOCK);
  double* phases = work.phases.data();
#pragma omp parallel num_threads(threads) if (n * k.size > PARALLEL_FROM)
  for (int64_t start = 0; start < n; start += EWALD_BLOCK) {
    const int64_t block = std::min<int64_t>(EWALD_BLOCK, n - start);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < block; ++i) phases_of(k, r + 3 * (start + i), phases + i * stride);
    const EwaldRows rows{&k, block, n_q, q + start * n_q, phases, stride};
#pragma omp for schedule(static, 4)
    for (int64_t row = 0; row < n_rows; ++row) accumulate(rows, row, structure);
  }
}

void ewald_potentials(EwaldWork& work, int64_t n, int n_q, const double* q, const double* r,
                      const double* structure, double weight, double* potential, double* forces) {
  const KVectors& k = work.k;
  const int64_t stride = phase_length(k);
  const auto gather = kernels().gather;
  grow(work.weighted, 2 * n_q * k.size);
  for (int64_t c = 0; c < 2 * n_q; ++c)
    for (int64_t i = 0; i < k.size; ++i)
      work.weighted[c * k.size + i] = 4.0 * k.factor[i] * structure[c * k.size + i];
  const int threads = team_size(work.n_threads);
  if (static_cast<int>(work.own.size()) < threads) work.own.resize(threads);
#pragma omp parallel num_threads(threads) if (n * k.size > PARALLEL_FROM)
  {
    std::vector<double>& phases = work.own[omp_get_thread_num()];
    grow(phases, stride);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      phases_of(k, r + 3 * i, phases.data());
      const EwaldRows rows{&k, 1, n_q, q + i * n_q, phases.data(), stride};
      double gradient[3] = {0.0, 0.0, 0.0};
      gather(rows, 0, work.weighted.data(), potential + i * n_q, gradient);
      if (forces == nullptr) continue;
      for (int x = 0; x < 3; ++x)
        forces[3 * i + x] += weight * 2.0 * PI *
                             (k.inverse[3 * x] * gradient[0] + k.inverse[3 * x + 1] * gradient[1] +
                              k.inverse[3 * x + 2] * gradient[2]);
    }
  }
}

void ewald_virial(const KVectors& k, int n_q, const double* structure, double weight,
                  double* virial) {
  double sum[9] = {0.0};
  for (const KVectors::Row& row : k.rows)
    for (int v = 0; v < row.count; ++v) {
      const int64_t at = row.offset + v;
      double s2 = 0.0;
      for (int c = 0; c < 2 * n_q; ++c) {
        const double s = structure[c * k.size + at];
        s2 += s * s;
      }
      double vector[3];
      for (int x = 0; x < 3; ++x)
        vector[x] = 2.0 * PI *
                    (k.inverse[3 * x] * row.n0 + k.inverse[3 * x + 1] * row.n1 +
                     k.inverse[3 * x + 2] * (row.first + v));
      for (int x = 0; x < 3; ++x) {
        sum[4 * x] += 2.0 * s2 * k.factor[at];
        for (int y = 0; y < 3; ++y)
          sum[3 * x + y] += 4.0 * s2 * k.slope[at] * vector[x] * vector[y];
      }
    }
  for (int x = 0; x < 9; ++x) virial[x] += weight * sum[x];
}

namespace {

double self_factor(const EwaldSpec& spec) { return std::pow(2.0 * PI, -1.5) / spec.sigma; }

// Field and neutrality penalty are added to every entry of a result: to each channel of a periodic
// system, and to the one entry of an open system, which here is shared among the channels.
void extras(const EwaldSpec& spec, const EwaldTotals& all, int64_t n, int n_q, const double* q,
            const double* r, bool periodic, double weight, double* energies, double* slopes,
            double* forces, double* virial) {
  const double share = periodic ? 1.0 : 1.0 / n_q;
  if (spec.field != 0.0 && spec.exponent == 1) {
    const double f = share * spec.field * std::sqrt(spec.norm / kE2PerInternal);
    const int x = spec.field_direction;
    for (int64_t i = 0; i < n; ++i) {
      double total = 0.0;
      for (int c = 0; c < n_q; ++c) total += q[i * n_q + c];
      for (int c = 0; c < n_q; ++c) {
        energies[i * n_q + c] -= f * total * r[3 * i + x];
        slopes[i * n_q + c] -= n_q * f * r[3 * i + x];
      }
      const double force = weight * n_q * f * total;
      if (forces != nullptr) forces[3 * i + x] += force;
      if (virial != nullptr)
        for (int a = 0; a < 3; ++a) {
          virial[3 * x + a] += 0.5 * force * r[3 * i + a];
          virial[3 * a + x] += 0.5 * force * r[3 * i + a];
        }
    }
  }
  if (spec.neutral_lambda != 0.0 && all.n > 0) {
    double mean = 0.0;
    for (int c = 0; c < n_q; ++c) mean += all.moments[c];
    mean /= static_cast<double>(all.n * n_q);
    for (int64_t i = 0; i < n * n_q; ++i) {
      energies[i] += share * spec.neutral_lambda * mean * mean / all.n;
      slopes[i] += share * 2.0 * spec.neutral_lambda * mean / all.n;
    }
  }
}

}  // namespace

// Pair sum of an open system: every atom sums over all others, so that no two threads write one place.
void ewald_open_sum(const EwaldSpec& spec, int n_threads, int64_t n, int n_q, const double* q,
                    const double* r, double weight, double* potential, double* forces,
                    double* virial) {
  const double inside = 1.0 / (spec.sigma * std::sqrt(2.0)), gauss = 2.0 / std::sqrt(PI) * inside;
  std::vector<double> strain(virial == nullptr ? 0 : 9 * n);
#pragma omp parallel for schedule(static) num_threads(team_size(n_threads)) if (n > 200)
  for (int64_t i = 0; i < n; ++i) {
    double* phi = potential + i * n_q;
    double force[3] = {0.0, 0.0, 0.0}, own[9] = {0.0};
    std::fill(phi, phi + n_q, 0.0);
    for (int64_t j = 0; j < n; ++j) {
      if (j == i) continue;
      const double d[3] = {r[3 * i] - r[3 * j], r[3 * i + 1] - r[3 * j + 1],
                           r[3 * i + 2] - r[3 * j + 2]};
      const double length = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
      const double over = 1.0 / (length + 1e-6);  // 1e-6 A as in the trained models
      const double v = std::erf(length * inside) * over / (2.0 * PI);
      double qq = 0.0;
      for (int c = 0; c < n_q; ++c) {
        phi[c] += v * q[j * n_q + c];
        qq += q[i * n_q + c] * q[j * n_q + c];
      }
      if (length == 0.0) continue;
      const double x = length * inside;
      const double slope = (gauss * std::exp(-x * x) / (2.0 * PI) - v) * over * qq / length;
      for (int a = 0; a < 3; ++a) {
        force[a] -= slope * d[a];
        for (int b = 0; b < 3; ++b) own[3 * a + b] -= 0.5 * slope * d[a] * d[b];
      }
    }
    if (forces != nullptr)
      for (int a = 0; a < 3; ++a) forces[3 * i + a] += weight * spec.norm * force[a];
    if (virial != nullptr) std::copy(own, own + 9, strain.begin() + 9 * i);
  }
  if (virial == nullptr) return;
  for (int64_t i = 0; i < n; ++i)
    for (int a = 0; a < 9; ++a) virial[a] += weight * spec.norm * strain[9 * i + a];
}

void ewald_finish(const EwaldSpec& spec, int64_t n, int n_q, const double* q, bool periodic,
                  double* energies, double* slopes) {
  const double own = self_factor(spec);
  for (int64_t i = 0; i < n; ++i) {
    double squares = 0.0;
    for (int c = 0; c < n_q; ++c) squares += q[i * n_q + c] * q[i * n_q + c];
    for (int c = 0; c < n_q; ++c) {
      const int64_t at = i * n_q + c;
      double e = 0.5 * q[at] * slopes[at], s = slopes[at];
      if (periodic && spec.remove_self && spec.exponent == 1) {
        // every channel loses the self term of all channels together: files were trained so
        e -= own * squares;
        s -= 2.0 * own * n_q * q[at];
      } else if (!periodic && !spec.remove_self) {
        e += own * q[at] * q[at];
        s += 2.0 * own * q[at];
      }
      energies[at] = spec.norm * e;
      slopes[at] = spec.norm * s;
    }
  }
}

void ewald_complete(const EwaldSpec& spec, const EwaldTotals& all, int64_t n, int n_q,
                    const double* q, const double* r, bool periodic, double weight,
                    double* energies, double* slopes, double* forces, double* virial) {
  ewald_finish(spec, n, n_q, q, periodic, energies, slopes);
  extras(spec, all, n, n_q, q, r, periodic, weight, energies, slopes, forces, virial);
}

}  // namespace cace_fast
