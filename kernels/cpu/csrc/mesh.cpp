#include "mesh.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "engine.h"

namespace cace_fast {
namespace {

constexpr int64_t PARALLEL_FROM = 500;  // atoms: below it threads are not worth it

struct Kernels {
  void (*spread)(const MeshJob&, bool);
  void (*gather)(const MeshJob&, bool);
};

Kernels kernels() {
  std::string error;
  [[maybe_unused]] const char* name = isa_name(error);
#ifdef CF_HAS_AVX512
  if (std::strcmp(name, "avx512") == 0) return {avx512::mesh_spread, avx512::mesh_gather};
#endif
#ifdef CF_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0) return {avx2::mesh_spread, avx2::mesh_gather};
#endif
  return {base::mesh_spread, base::mesh_gather};
}

template <class T>
void copy_coefficients(const MeshWindow& window, std::vector<T> (&to)[2]) {
  const int which = sizeof(T) == 4 ? 0 : 1;
  const double* from[2] = {window.values[which], window.slopes[which]};
  for (int k = 0; k < 2; ++k) {
    to[k].assign(static_cast<size_t>(window.degree[which] + 1) * MESH_WIDEST, T(0));
    for (int p = 0; p <= window.degree[which]; ++p)
      for (int j = 0; j < window.width; ++j)
        to[k][p * MESH_WIDEST + j] = T(from[k][p * window.width + j]);
  }
}

}  // namespace

Mesh::Mesh(const MeshWindow& window, int precision) : window_(window), precision_(precision) {
  if (precision == 32) copy_coefficients(window, single_);
  else copy_coefficients(window, double_);
}

int64_t Mesh::locate(const MeshBrick& brick, const double* inverse, int64_t n, const double* r,
                     int n_threads) {
  brick_ = brick;
  std::memcpy(inverse_, inverse, sizeof inverse_);
  n_threads_ = n < PARALLEL_FROM ? 1 : team_size(n_threads);
  const int width = window_.width;
  int64_t n_blocks = 1;
  for (int a = 0; a < 3; ++a) {
    layout_.points[a] = brick.count[a] + width - 1;
    // stencils that begin in two blocks with one between them share no point, vectors included
    blocks_[a] = std::max<int64_t>(1, brick.count[a] / MESH_WIDEST);
    n_blocks *= blocks_[a];
  }
  layout_.row = layout_.points[2] + MESH_WIDEST;
  layout_.plane = layout_.points[1] * layout_.row;
  layout_.channel = layout_.points[0] * layout_.plane;
  unsorted_.resize(n);
  points_.resize(n);
  int64_t outside = n;
#pragma omp parallel for schedule(static) num_threads(n_threads_) reduction(min : outside)
  for (int64_t i = 0; i < n; ++i) {
    MeshPoint& p = unsorted_[i];
    p.atom = static_cast<int32_t>(i);
    for (int a = 0; a < 3; ++a) {
      const double size = static_cast<double>(brick.size[a]);
      double f =
          r[3 * i] * inverse[a] + r[3 * i + 1] * inverse[3 + a] + r[3 * i + 2] * inverse[6 + a];
      f -= std::floor(f);
      const double u = f * size, begin = std::ceil(u - 0.5 * width);
      // a coordinate that is not finite stays so in x, and all that it meets
      p.x[a] = 2.0 * (begin - u + 0.5 * width) - 1.0;
      int64_t at = u >= 0.0 && u <= size ? static_cast<int64_t>(begin) : 0;
      at += (at < 0 ? brick.size[a] : 0) - brick.first[a];  // a stencil may begin before point 0
      if (at < 0) at += brick.size[a];
      if (at >= brick.size[a]) at -= brick.size[a];
      if (at >= brick.count[a]) {
        outside = std::min(outside, i);
        at = 0;
      }
      p.first[a] = static_cast<int32_t>(at);
    }
  }
  // counted into blocks, the order of atoms kept within each
  const auto block_of = [&](const MeshPoint& p) {
    int64_t block = 0;
    for (int a = 0; a < 3; ++a)
      block = block * blocks_[a] + p.first[a] * blocks_[a] / brick_.count[a];
    return block;
  };
  first_.assign(n_blocks + 1, 0);
  for (const MeshPoint& p : unsorted_) ++first_[block_of(p) + 1];
  for (int64_t b = 0; b < n_blocks; ++b) first_[b + 1] += first_[b];
  std::vector<int64_t> next(first_.begin(), first_.end() - 1);
  for (const MeshPoint& p : unsorted_) points_[next[block_of(p)]++] = p;
  return outside == n ? -1 : outside;
}

MeshJob Mesh::job(int n_q, const double* q, void* grid) const {
  const bool single = precision_ == 32;
  const void* values = single ? static_cast<const void*>(single_[0].data()) : double_[0].data();
  const void* slopes = single ? static_cast<const void*>(single_[1].data()) : double_[1].data();
  return {points_.data(),
          static_cast<int64_t>(points_.size()),
          n_q,
          q,
          layout_,
          window_.width,
          window_.degree[single ? 0 : 1] + 1,
          values,
          slopes,
          grid,
          1.0,
          nullptr,
          nullptr};
}

void Mesh::spread(int n_q, const double* q, void* grid) const {
  const auto kernel = kernels().spread;
  const int64_t n_planes = n_q * layout_.points[0];
  const size_t bytes = layout_.plane * (precision_ / 8);
  const MeshJob all = job(n_q, q, grid);
#pragma omp parallel num_threads(n_threads_)
  {
#pragma omp for schedule(static)
    for (int64_t x = 0; x < n_planes; ++x)
      std::memset(static_cast<char*>(grid) + x * bytes, 0, bytes);
    // blocks of one colour share no point; colours follow each other in a fixed order
    for (int colour = 0; colour < 8; ++colour) {
      const int64_t odd[3] = {colour >> 2, (colour >> 1) & 1, colour & 1};
      int64_t count[3];
      for (int a = 0; a < 3; ++a) count[a] = (blocks_[a] - odd[a] + 1) / 2;
#pragma omp for schedule(dynamic)
      for (int64_t b = 0; b < count[0] * count[1] * count[2]; ++b) {
        const int64_t at[3] = {2 * (b / (count[1] * count[2])) + odd[0],
                               2 * (b / count[2] % count[1]) + odd[1], 2 * (b % count[2]) + odd[2]};
        const int64_t block = (at[0] * blocks_[1] + at[1]) * blocks_[2] + at[2];
        MeshJob part = all;
        part.points = all.points + first_[block];
        part.n = first_[block + 1] - first_[block];
        kernel(part, precision_ == 32);
      }
    }
  }
}

void Mesh::gather(int n_q, const double* q, void* grid, double weight, double* potential,
                  double* forces) const {
  constexpr int64_t kChunk = 64;
  const auto kernel = kernels().gather;
  const MeshJob all = job(n_q, q, grid);
  double turn[9];  // gradient by r of that by grid coordinates
  for (int x = 0; x < 3; ++x)
    for (int a = 0; a < 3; ++a)
      turn[3 * x + a] = inverse_[3 * x + a] * static_cast<double>(brick_.size[a]);
#pragma omp parallel for schedule(dynamic, 4) num_threads(n_threads_)
  for (int64_t start = 0; start < all.n; start += kChunk) {
    double gradients[3 * kChunk];
    MeshJob part = all;
    part.points = all.points + start;
    part.n = std::min(kChunk, all.n - start);
    part.potential = potential;
    part.forces = forces == nullptr ? nullptr : gradients;
    kernel(part, precision_ == 32);
    if (forces == nullptr) continue;
    for (int64_t i = 0; i < part.n; ++i) {
      const double* g = gradients + 3 * i;
      double* force = forces + 3 * static_cast<int64_t>(part.points[i].atom);
      for (int x = 0; x < 3; ++x)
        force[x] -= weight * (turn[3 * x] * g[0] + turn[3 * x + 1] * g[1] + turn[3 * x + 2] * g[2]);
    }
  }
}

namespace {

template <class T>
void fold_rows(const MeshBrick& brick, const MeshLayout& layout, int n_q, int n_threads,
               const T* from, T* to) {
  const int64_t *n = brick.size, rows = n_q * n[0] * n[1];
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t c = row / (n[0] * n[1]), x = row / n[1] % n[0], y = row % n[1];
    T* out = to + row * n[2];
    bool first = true;
    for (int64_t px = x; px < layout.points[0]; px += n[0])
      for (int64_t py = y; py < layout.points[1]; py += n[1], first = false) {
        const T* in = from + c * layout.channel + px * layout.plane + py * layout.row;
        if (first) std::memcpy(out, in, n[2] * sizeof(T));
        else
          for (int64_t z = 0; z < n[2]; ++z) out[z] += in[z];
        for (int64_t z = n[2]; z < layout.points[2]; ++z) out[z % n[2]] += in[z];
      }
  }
}

template <class T>
void unfold_rows(const MeshBrick& brick, const MeshLayout& layout, int n_q, int n_threads,
                 const T* from, T* to) {
  const int64_t *n = brick.size, *p = layout.points, rows = n_q * p[0] * p[1];
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t c = row / (p[0] * p[1]), x = row / p[1] % p[0], y = row % p[1];
    const T* in = from + ((c * n[0] + x % n[0]) * n[1] + y % n[1]) * n[2];
    T* out = to + c * layout.channel + x * layout.plane + y * layout.row;
    std::memcpy(out, in, n[2] * sizeof(T));
    for (int64_t z = n[2]; z < p[2]; ++z) out[z] = in[z % n[2]];
    std::fill(out + p[2], out + layout.row, T(0));  // what vectors reach beyond the window
  }
}

}  // namespace

void Mesh::fold(int n_q, const void* with_halo, void* periodic) const {
  if (precision_ == 32)
    fold_rows(brick_, layout_, n_q, n_threads_, static_cast<const float*>(with_halo),
              static_cast<float*>(periodic));
  else
    fold_rows(brick_, layout_, n_q, n_threads_, static_cast<const double*>(with_halo),
              static_cast<double*>(periodic));
}

void Mesh::unfold(int n_q, const void* periodic, void* with_halo) const {
  if (precision_ == 32)
    unfold_rows(brick_, layout_, n_q, n_threads_, static_cast<const float*>(periodic),
                static_cast<float*>(with_halo));
  else
    unfold_rows(brick_, layout_, n_q, n_threads_, static_cast<const double*>(periodic),
                static_cast<double*>(with_halo));
}

}  // namespace cace_fast
