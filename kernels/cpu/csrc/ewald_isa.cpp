// The two inner loops of the k sum, compiled once for each instruction set.
#include <cstdint>
#include <cstring>

#include "ewald.h"
#include "isa.h"

namespace cace_fast {
namespace CF_ISA {
namespace {

typedef double Vector __attribute__((vector_size(CF_VECTOR_BYTES)));
constexpr int kLanes = CF_VECTOR_BYTES / sizeof(double);

inline Vector load(const double* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(double* to, const Vector& v) { std::memcpy(to, &v, sizeof v); }
inline Vector all(double x) { return Vector{} + x; }
inline double sum(const Vector& v) {
  double s = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) s += v[lane];
  return s;
}

struct Phase {
  const double *first, *second, *re, *im;
  Phase(const EwaldRows& in, int64_t atom) {
    const int32_t* limits = in.k->limits;
    first = in.phases + atom * in.stride;
    second = first + 2 * (limits[0] + 1);
    re = second + 2 * (2 * limits[1] + 1);
    im = re + (2 * limits[2] + 1 + EWALD_PAD);
    second += 2 * limits[1];
    re += limits[2];
    im += limits[2];
  }
};

// exp(i (n0 x + n1 y)) of a row
inline void of_row(const Phase& p, const KVectors::Row& row, double& re, double& im) {
  const double *a = p.first + 2 * row.n0, *b = p.second + 2 * row.n1;
  re = a[0] * b[0] - a[1] * b[1];
  im = a[0] * b[1] + a[1] * b[0];
}

template <int NQ>
void accumulate(const EwaldRows& in, const KVectors::Row& row, int channel, double* structure) {
  const int64_t size = in.k->size;
  double re[EWALD_BLOCK], im[EWALD_BLOCK];
  for (int64_t i = 0; i < in.n_atoms; ++i) of_row(Phase(in, i), row, re[i], im[i]);
  double* real = structure + channel * size + row.offset;
  double* imaginary = real + in.n_q * size;
  for (int v = 0; v < row.count; v += kLanes) {
    Vector sum_re[NQ], sum_im[NQ];
    for (int c = 0; c < NQ; ++c) {
      sum_re[c] = load(real + c * size + v);
      sum_im[c] = load(imaginary + c * size + v);
    }
    for (int64_t i = 0; i < in.n_atoms; ++i) {
      const Phase p(in, i);
      const Vector z_re = load(p.re + row.first + v), z_im = load(p.im + row.first + v);
      const Vector e_re = re[i] * z_re - im[i] * z_im, e_im = re[i] * z_im + im[i] * z_re;
      const double* q = in.q + i * in.n_q + channel;
      for (int c = 0; c < NQ; ++c) {
        sum_re[c] += q[c] * e_re;
        sum_im[c] += q[c] * e_im;
      }
    }
    for (int c = 0; c < NQ; ++c) {
      store(real + c * size + v, sum_re[c]);
      store(imaginary + c * size + v, sum_im[c]);
    }
  }
}

template <int NQ>
void gather(const EwaldRows& in, int64_t atom, int channel, const double* weighted,
            double* potential, double* gradient) {
  const KVectors& k = *in.k;
  const int64_t size = k.size;
  const Phase p(in, atom);
  const double* q = in.q + atom * in.n_q + channel;
  const double* real = weighted + channel * size;
  const double* imaginary = real + in.n_q * size;
  Vector phi[NQ], g0{}, g1{}, g2{}, lanes;
  for (int c = 0; c < NQ; ++c) phi[c] = Vector{};
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  for (const KVectors::Row& row : k.rows) {
    double re, im;
    of_row(p, row, re, im);
    Vector in_row{};
    for (int v = 0; v < row.count; v += kLanes) {
      const Vector z_re = load(p.re + row.first + v), z_im = load(p.im + row.first + v);
      const Vector e_re = re * z_re - im * z_im, e_im = re * z_im + im * z_re;
      Vector slope{};
      for (int c = 0; c < NQ; ++c) {
        const Vector s_re = load(real + c * size + row.offset + v);
        const Vector s_im = load(imaginary + c * size + row.offset + v);
        phi[c] += e_re * s_re + e_im * s_im;
        slope += q[c] * (e_im * s_re - e_re * s_im);
      }
      in_row += slope;
      g2 += slope * (lanes + static_cast<double>(row.first + v));
    }
    g0 += static_cast<double>(row.n0) * in_row;
    g1 += static_cast<double>(row.n1) * in_row;
  }
  for (int c = 0; c < NQ; ++c) potential[channel + c] = sum(phi[c]);
  gradient[0] += sum(g0);
  gradient[1] += sum(g1);
  gradient[2] += sum(g2);
}

}  // namespace

void ewald_accumulate(const EwaldRows& in, int64_t number, double* structure) {
  const KVectors::Row& row = in.k->rows[number];
  int c = 0;
  for (; c + 4 <= in.n_q; c += 4) accumulate<4>(in, row, c, structure);
  if (c + 2 <= in.n_q) {
    accumulate<2>(in, row, c, structure);
    c += 2;
  }
  if (c < in.n_q) accumulate<1>(in, row, c, structure);
}

void ewald_gather(const EwaldRows& in, int64_t atom, const double* weighted, double* potential,
                  double* gradient) {
  int c = 0;
  for (; c + 4 <= in.n_q; c += 4) gather<4>(in, atom, c, weighted, potential, gradient);
  if (c + 2 <= in.n_q) {
    gather<2>(in, atom, c, weighted, potential, gradient);
    c += 2;
  }
  if (c < in.n_q) gather<1>(in, atom, c, weighted, potential, gradient);
}

}  // namespace CF_ISA
}  // namespace cace_fast
