#include "cace_fft.h"

#include <algorithm>

using namespace LAMMPS_NS;

namespace {

// Parts of the first two axes: as many of the first as there are whole planes for.
void divide(int n_ranks, const int64_t size[3], int parts[2]) {
  parts[0] = 1;
  for (int p = 1; p <= n_ranks; ++p)
    if (n_ranks % p == 0 && p <= std::min(size[0], size[1])) parts[0] = p;
  parts[1] = n_ranks / parts[0];
}

void cut(cf_brick& brick, int axis, int64_t size, int parts, int part) {
  brick.first[axis] = cace_share(size, parts, part);
  brick.count[axis] = cace_share(size, parts, part + 1) - brick.first[axis];
}

}  // namespace

template <class T>
void CaceFFT<T>::setup(MPI_Comm world, const cf_mesh& mesh) {
  int me, n_ranks, parts[2];
  MPI_Comm_rank(world, &me);
  MPI_Comm_size(world, &n_ranks);
  divide(n_ranks, mesh.size, parts);
  const int row = me / parts[1], column = me % parts[1];
  const int64_t half = mesh.size[2] / 2 + 1;
  for (cf_brick* brick : {&points_, &lines_, &middle_, &modes_})
    for (int a = 0; a < 3; ++a) {
      brick->first[a] = 0;
      brick->count[a] = a == 2 && brick != &points_ ? half : mesh.size[a];
    }
  for (cf_brick* brick : {&points_, &lines_}) {
    cut(*brick, 0, mesh.size[0], parts[0], row);
    cut(*brick, 1, mesh.size[1], parts[1], column);
  }
  cut(middle_, 0, mesh.size[0], parts[0], row);
  cut(middle_, 2, half, parts[1], column);
  cut(modes_, 1, mesh.size[1], parts[0], row);
  cut(modes_, 2, half, parts[1], column);
  remapped_ = n_ranks > 1;
  if (remapped_) {
    to_middle_.setup(world, lines_, middle_);
    to_modes_.setup(world, middle_, modes_);
  }
  for (int a = 0; a < 3; ++a) along_[a].reset(new Lines(int(mesh.size[a])));
  const int64_t longest = std::max({mesh.size[0], mesh.size[1], mesh.size[2]});
  real_.resize(longest * Lines::LANES);
  imaginary_.resize(longest * Lines::LANES);
  a_.resize(2 * cace_points(lines_));
  b_.resize(remapped_ ? 2 * cace_points(middle_) : 0);
}

// Two real lines are one of complex numbers, Z = X + i Y: X(k) = (Z(k) + Z(-k)*) / 2.
template <class T>
void CaceFFT<T>::rows_forward(const T* points) {
  constexpr int LANES = Lines::LANES;
  const int64_t n_lines = points_.count[0] * points_.count[1];
  const int64_t n = points_.count[2], half = lines_.count[2];
  for (int64_t first = 0; first < n_lines; first += 2 * LANES) {
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t x = first + 2 * lane, y = x + 1;
      for (int64_t j = 0; j < n; ++j) {
        real_[j * LANES + lane] = x < n_lines ? points[x * n + j] : T(0);
        imaginary_[j * LANES + lane] = y < n_lines ? points[y * n + j] : T(0);
      }
    }
    along_[2]->run(real_.data(), imaginary_.data(), -1);
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t x = first + 2 * lane, y = x + 1;
      for (int64_t k = 0; k < half && x < n_lines; ++k) {
        const int64_t at = k * LANES + lane, other = (k ? n - k : 0) * LANES + lane;
        const T u = real_[at], v = imaginary_[at], s = real_[other], t = imaginary_[other];
        a_[2 * (x * half + k)] = T(0.5) * (u + s);
        a_[2 * (x * half + k) + 1] = T(0.5) * (v - t);
        if (y >= n_lines) continue;
        a_[2 * (y * half + k)] = T(0.5) * (v + t);
        a_[2 * (y * half + k) + 1] = T(0.5) * (s - u);
      }
    }
  }
}

template <class T>
void CaceFFT<T>::rows_backward(T* points) {
  constexpr int LANES = Lines::LANES;
  const int64_t n_lines = points_.count[0] * points_.count[1];
  const int64_t n = points_.count[2], half = lines_.count[2];
  for (int64_t first = 0; first < n_lines; first += 2 * LANES) {
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t x = first + 2 * lane, y = x + 1;
      for (int64_t k = 0; k < half; ++k) {
        const bool here = x < n_lines, there = y < n_lines;
        const T a = here ? a_[2 * (x * half + k)] : T(0),
                b = here ? a_[2 * (x * half + k) + 1] : T(0);
        const T c = there ? a_[2 * (y * half + k)] : T(0),
                d = there ? a_[2 * (y * half + k) + 1] : T(0);
        const int64_t at = k * LANES + lane, other = (k ? n - k : 0) * LANES + lane;
        real_[other] = a + d;
        imaginary_[other] = c - b;
        real_[at] = a - d;
        imaginary_[at] = b + c;
      }
    }
    along_[2]->run(real_.data(), imaginary_.data(), 1);
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t x = first + 2 * lane, y = x + 1;
      for (int64_t j = 0; j < n; ++j) {
        if (x < n_lines) points[x * n + j] = real_[j * LANES + lane];
        if (y < n_lines) points[y * n + j] = imaginary_[j * LANES + lane];
      }
    }
  }
}

// Lines along axis 0 or 1; lanes are neighbours along the axes behind it.
template <class T>
void CaceFFT<T>::columns(const cf_brick& brick, int axis, int sign, T* values) {
  constexpr int LANES = Lines::LANES;
  const int64_t n = brick.count[axis];
  const int64_t behind = axis == 0 ? brick.count[1] * brick.count[2] : brick.count[2];
  const int64_t planes = axis == 0 ? 1 : brick.count[0];
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t first = 0; first < behind; first += LANES) {
      const int count = int(std::min<int64_t>(LANES, behind - first));
      T* from = values + 2 * (plane * n * behind + first);
      for (int64_t j = 0; j < n; ++j)
        for (int lane = 0; lane < LANES; ++lane) {
          real_[j * LANES + lane] = lane < count ? from[2 * (j * behind + lane)] : T(0);
          imaginary_[j * LANES + lane] = lane < count ? from[2 * (j * behind + lane) + 1] : T(0);
        }
      along_[axis]->run(real_.data(), imaginary_.data(), sign);
      for (int64_t j = 0; j < n; ++j)
        for (int lane = 0; lane < count; ++lane) {
          from[2 * (j * behind + lane)] = real_[j * LANES + lane];
          from[2 * (j * behind + lane) + 1] = imaginary_[j * LANES + lane];
        }
    }
}

template <class T>
void CaceFFT<T>::forward(const T* points, T* modes) {
  rows_forward(points);
  if (remapped_) to_middle_.run(a_.data(), b_.data());
  std::vector<T>& middle = remapped_ ? b_ : a_;
  columns(middle_, 1, -1, middle.data());
  if (remapped_) to_modes_.run(middle.data(), modes);
  else std::copy(middle.begin(), middle.end(), modes);
  columns(modes_, 0, -1, modes);
}

template <class T>
void CaceFFT<T>::backward(T* modes, T* points) {
  columns(modes_, 0, 1, modes);
  std::vector<T>& middle = remapped_ ? b_ : a_;
  if (remapped_) to_modes_.back(modes, middle.data());
  else std::copy_n(modes, middle.size(), middle.begin());
  columns(middle_, 1, 1, middle.data());
  if (remapped_) to_middle_.back(middle.data(), a_.data());
  rows_backward(points);
}

template <class T>
double CaceFFT<T>::bytes() const {
  return double(sizeof(T)) * double(3 * a_.capacity() + 3 * b_.capacity());
}

template class LAMMPS_NS::CaceFFT<float>;
template class LAMMPS_NS::CaceFFT<double>;
