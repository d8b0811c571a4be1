// The inner loops of the mesh, compiled once for each instruction set. The window's weights along the
// last axis are vectors, those along the two others numbers.
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "mesh.h"

namespace cace_fast {
namespace CF_ISA {
namespace {

template <class T, int N>
struct Row {
  typedef T Vector __attribute__((vector_size(CF_VECTOR_BYTES)));
  static constexpr int kLanes = CF_VECTOR_BYTES / int(sizeof(T));
  Vector v[N];

  static Row load(const T* from) {
    Row row;
    std::memcpy(row.v, from, sizeof row.v);
    return row;
  }
  void store(T* to) const { std::memcpy(to, v, sizeof v); }
  // this += a x
  void add(const Row& a, T x) {
    for (int i = 0; i < N; ++i) v[i] += a.v[i] * x;
  }
  // this = this x + a
  void next_term(T x, const Row& a) {
    for (int i = 0; i < N; ++i) v[i] = v[i] * x + a.v[i];
  }
  T dot(const Row& a) const {
    Vector s = v[0] * a.v[0];
    for (int i = 1; i < N; ++i) s += v[i] * a.v[i];
    T total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += s[lane];
    return total;
  }
};

template <class T, int N>
Row<T, N> polynomial(const T* coefficients, int n_terms, T x) {
  Row<T, N> sum = Row<T, N>::load(coefficients + (n_terms - 1) * MESH_WIDEST);
  for (int p = n_terms - 2; p >= 0; --p)
    sum.next_term(x, Row<T, N>::load(coefficients + p * MESH_WIDEST));
  return sum;
}

template <class T>
T* begin_of(const MeshJob& job, const MeshPoint& p) {
  return static_cast<T*>(job.grid) + p.first[0] * job.layout.plane + p.first[1] * job.layout.row +
         p.first[2];
}

template <class T, int N>
void spread(const MeshJob& job) {
  const T* values = static_cast<const T*>(job.values);
  const int width = job.width;
  for (int64_t i = 0; i < job.n; ++i) {
    const MeshPoint& p = job.points[i];
    T x[MESH_WIDEST], y[MESH_WIDEST];
    polynomial<T, N>(values, job.n_terms, T(p.x[0])).store(x);
    polynomial<T, N>(values, job.n_terms, T(p.x[1])).store(y);
    const Row<T, N> z = polynomial<T, N>(values, job.n_terms, T(p.x[2]));
    for (int c = 0; c < job.n_q; ++c) {
      const T charge = T(job.q[int64_t(p.atom) * job.n_q + c]);
      T* plane = begin_of<T>(job, p) + c * job.layout.channel;
      for (int j = 0; j < width; ++j, plane += job.layout.plane) {
        const T w = x[j] * charge;
        T* row = plane;
        for (int k = 0; k < width; ++k, row += job.layout.row) {
          Row<T, N> to = Row<T, N>::load(row);
          to.add(z, w * y[k]);
          to.store(row);
        }
      }
    }
  }
}

template <class T, int N>
void gather(const MeshJob& job) {
  typedef Row<T, N> R;
  const T *values = static_cast<const T*>(job.values), *slopes = static_cast<const T*>(job.slopes);
  const int width = job.width;
  for (int64_t i = 0; i < job.n; ++i) {
    const MeshPoint& p = job.points[i];
    T x[MESH_WIDEST], y[MESH_WIDEST], dx[MESH_WIDEST], dy[MESH_WIDEST];
    polynomial<T, N>(values, job.n_terms, T(p.x[0])).store(x);
    polynomial<T, N>(values, job.n_terms, T(p.x[1])).store(y);
    polynomial<T, N>(slopes, job.n_terms, T(p.x[0])).store(dx);
    polynomial<T, N>(slopes, job.n_terms, T(p.x[1])).store(dy);
    const R z = polynomial<T, N>(values, job.n_terms, T(p.x[2]));
    const R dz = polynomial<T, N>(slopes, job.n_terms, T(p.x[2]));
    double gradient[3] = {0.0, 0.0, 0.0};
    for (int c = 0; c < job.n_q; ++c) {
      const T* plane = begin_of<T>(job, p) + c * job.layout.channel;
      R sum{}, by_x{}, by_y{};
      for (int j = 0; j < width; ++j, plane += job.layout.plane) {
        const T* row = plane;
        R line{}, line_by_y{};
        for (int k = 0; k < width; ++k, row += job.layout.row) {
          const R here = R::load(row);
          line.add(here, y[k]);
          line_by_y.add(here, dy[k]);
        }
        sum.add(line, x[j]);
        by_x.add(line, dx[j]);
        by_y.add(line_by_y, x[j]);
      }
      const int64_t at = int64_t(p.atom) * job.n_q + c;
      job.potential[at] = sum.dot(z);
      const double q = job.q[at];
      gradient[0] += q * by_x.dot(z);
      gradient[1] += q * by_y.dot(z);
      gradient[2] += q * sum.dot(dz);
    }
    if (job.forces == nullptr) continue;
    // by grid coordinates, in the place of this atom: mesh.cpp turns them
    for (int a = 0; a < 3; ++a) job.forces[3 * i + a] = gradient[a];
  }
}

template <template <class, int> class F, class T>
void by_width(const MeshJob& job) {
  constexpr int lanes = Row<T, 1>::kLanes;
  const int n = (job.width + lanes - 1) / lanes;
  if (n <= 1) return F<T, 1>::run(job);
  if constexpr (lanes < 16)
    if (n == 2) return F<T, 2>::run(job);
  if constexpr (lanes < 8) {
    if (n == 3) return F<T, 3>::run(job);
    if (n == 4) return F<T, 4>::run(job);
  }
  if constexpr (lanes < 4) {
    if (n <= 6) return F<T, 6>::run(job);
    return F<T, 8>::run(job);
  }
}

template <class T, int N>
struct Spread {
  static void run(const MeshJob& job) { spread<T, N>(job); }
};
template <class T, int N>
struct Gather {
  static void run(const MeshJob& job) { gather<T, N>(job); }
};

}  // namespace

void mesh_spread(const MeshJob& job, bool single) {
  single ? by_width<Spread, float>(job) : by_width<Spread, double>(job);
}

void mesh_gather(const MeshJob& job, bool single) {
  single ? by_width<Gather, float>(job) : by_width<Gather, double>(job);
}

}  // namespace CF_ISA
}  // namespace cace_fast
