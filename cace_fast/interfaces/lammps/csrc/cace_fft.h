// Fourier transforms of real grids that are divided among ranks: lines along one axis after the other,
// of which each rank has whole ones (pencils).
#ifndef LMP_CACE_FFT_H
#define LMP_CACE_FFT_H

#include <mpi.h>

#include <memory>
#include <vector>

#include "cace_fast_step.h"
#include "cace_fft_lines.h"
#include "cace_remap.h"

namespace LAMMPS_NS {

template <class T>
class CaceFFT {
 public:
  // Collective.
  void setup(MPI_Comm world, const cf_mesh& mesh);
  // Real points of this rank: whole lines along the last axis.
  const cf_brick& points() const { return points_; }
  // Complex modes of this rank: whole lines along the first axis; 0 to size / 2 along the last.
  const cf_brick& modes() const { return modes_; }
  // Collective: sums of points times exp(-i k x), and of modes times exp(i k x), without factors.
  void forward(const T* points, T* modes);
  void backward(T* modes, T* points);
  double bytes() const;
  // Complex values that this rank gives to others in a transform.
  int64_t exchanged() const { return remapped_ ? cace_points(lines_) + cace_points(middle_) : 0; }

 private:
  typedef CaceFFTLines<T> Lines;
  void rows_forward(const T* points);
  void rows_backward(T* points);
  void columns(const cf_brick& brick, int axis, int sign, T* values);

  cf_brick points_ = {}, lines_ = {}, middle_ = {}, modes_ = {};
  bool remapped_ = false;
  std::unique_ptr<Lines> along_[3];
  CaceRemap to_middle_, to_modes_;
  std::vector<T> a_, b_;             // complex values of lines_, of middle_
  std::vector<T> real_, imaginary_;  // of some lines
};

}  // namespace LAMMPS_NS

#endif
