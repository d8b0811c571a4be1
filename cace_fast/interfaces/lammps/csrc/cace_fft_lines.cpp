#include "cace_fft_lines.h"

#include <algorithm>
#include <cmath>

using namespace LAMMPS_NS;

// Compiled for several instruction sets; the processor chooses when the plugin is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CACE_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define CACE_CLONES
#endif

namespace {

constexpr double PI = 3.14159265358979323846;

template <class T>
struct Pass {
  int radix, m, s;  // lines of radix m s numbers; s of them stand together
  const T *real, *imaginary;
  T *to_real, *to_imaginary;
  const T *cos, *sin;  // of 2 pi j / n
  int n, step;         // the twiddle of this pass is step j
  T sign;
};

// The radix numbers a butterfly reads, and where they go.
template <class T, int R, int LANES>
inline __attribute__((always_inline)) void butterflies(const Pass<T>& in) {
  const int width = in.s * LANES;
  T c[R], d[R];
  for (int k = 0; k < R; ++k) {
    c[k] = in.cos[k * (in.n / R)];
    d[k] = in.sign * in.sin[k * (in.n / R)];
  }
  for (int p = 0; p < in.m; ++p) {
    T wc[R], ws[R];
    for (int k = 0; k < R; ++k) {
      wc[k] = in.cos[(in.step * p * k) % in.n];
      ws[k] = in.sign * in.sin[(in.step * p * k) % in.n];
    }
    const T* __restrict a = in.real + p * width, * __restrict b = in.imaginary + p * width;
    T* __restrict to = in.to_real + p * R * width, * __restrict too =
                                                       in.to_imaginary + p * R * width;
    const int from = in.m * width;
    for (int q = 0; q < width; ++q) {
      T x[R], y[R];
      for (int j = 0; j < R; ++j) {
        x[j] = a[j * from + q];
        y[j] = b[j * from + q];
      }
      for (int k = 0; k < R; ++k) {
        T u, v;
        if (R == 2) {
          u = k ? x[0] - x[1] : x[0] + x[1];
          v = k ? y[0] - y[1] : y[0] + y[1];
        } else if (R == 4) {
          const T even = k % 2 ? x[0] - x[2] : x[0] + x[2], odd = k % 2 ? y[0] - y[2] : y[0] + y[2];
          // exp(sign i pi k / 2) times x1 + (-1)^k x3
          const T ex = k % 2 ? x[1] - x[3] : x[1] + x[3], ey = k % 2 ? y[1] - y[3] : y[1] + y[3];
          const T turn = k == 1 ? in.sign : -in.sign;
          u = k % 2 ? even - turn * ey : (k ? even - ex : even + ex);
          v = k % 2 ? odd + turn * ex : (k ? odd - ey : odd + ey);
        } else {
          u = x[0];
          v = y[0];
          for (int j = 1; j < R; ++j) {
            const int turn = j * k % R;
            u += x[j] * c[turn] - y[j] * d[turn];
            v += x[j] * d[turn] + y[j] * c[turn];
          }
        }
        to[k * width + q] = u * wc[k] - v * ws[k];
        too[k * width + q] = u * ws[k] + v * wc[k];
      }
    }
  }
}

template <class T>
inline __attribute__((always_inline)) void any_pass(const Pass<T>& in) {
  constexpr int LANES = CaceFFTLines<T>::LANES;
  if (in.radix == 2) butterflies<T, 2, LANES>(in);
  else if (in.radix == 3) butterflies<T, 3, LANES>(in);
  else if (in.radix == 4) butterflies<T, 4, LANES>(in);
  else if (in.radix == 5) butterflies<T, 5, LANES>(in);
  else butterflies<T, 7, LANES>(in);
}

CACE_CLONES void pass_of(const Pass<float>& in) { any_pass(in); }
CACE_CLONES void pass_of(const Pass<double>& in) { any_pass(in); }

}  // namespace

template <class T>
CaceFFTLines<T>::CaceFFTLines(int n) : n_(n) {
  int rest = n;
  for (int radix : {4, 2, 3, 5, 7})
    for (; rest % radix == 0; rest /= radix) factors_.push_back(radix);
  for (int j = 0; j < n; ++j) {
    cos_.push_back(T(std::cos(2.0 * PI * j / n)));
    sin_.push_back(T(std::sin(2.0 * PI * j / n)));
  }
  real_.resize(n * LANES);
  imaginary_.resize(n * LANES);
}

// Stockham's passes: the numbers of a line come out in order.
template <class T>
void CaceFFTLines<T>::run(T* real, T* imaginary, int sign) {
  T *from = real, *from_too = imaginary, *to = real_.data(), *to_too = imaginary_.data();
  int length = n_, s = 1;
  for (int radix : factors_) {
    const int m = length / radix;
    pass_of({radix, m, s, from, from_too, to, to_too, cos_.data(), sin_.data(), n_, n_ / length,
             T(sign)});
    std::swap(from, to);
    std::swap(from_too, to_too);
    length = m;
    s *= radix;
  }
  if (from == real) return;
  std::copy_n(from, n_ * LANES, real);
  std::copy_n(from_too, n_ * LANES, imaginary);
}

template class LAMMPS_NS::CaceFFTLines<float>;
template class LAMMPS_NS::CaceFFTLines<double>;
