// Fourier transforms of many lines at once, each lane of a vector being a line.
#ifndef LMP_CACE_FFT_LINES_H
#define LMP_CACE_FFT_LINES_H

#include <vector>

namespace LAMMPS_NS {

// Transforms of length n, whose prime factors are 2, 3, 5 and 7.
template <class T>
class CaceFFTLines {
 public:
  static constexpr int LANES = 16;

  explicit CaceFFTLines(int n);
  int length() const { return n_; }
  // In place: real and imaginary parts [n][LANES]; sums times exp(sign i 2 pi j k / n), no factor.
  void run(T* real, T* imaginary, int sign);

 private:
  int n_;
  std::vector<int> factors_;
  std::vector<T> cos_, sin_;         // of 2 pi j / n
  std::vector<T> real_, imaginary_;  // [n][LANES]
};

}  // namespace LAMMPS_NS

#endif
