// LAMMPS' own distributed Fourier transform, where the library that runs has it.
#ifndef LMP_CACE_FFT_H
#define LMP_CACE_FFT_H

#include <memory>

#include "cace_fast_step.h"
#include "pointers.h"

namespace LAMMPS_NS {

class FFT3d;

class CaceFFT {
 public:
  CaceFFT();
  ~CaceFFT();
  // Whether LAMMPS was built with package KSPACE, and transforms in double precision.
  static bool available();
  // Collective: transforms of the whole grid of a mesh, each rank having a brick of it.
  void setup(LAMMPS* lmp, const cf_mesh& mesh, const cf_brick& owned);
  // Collective: complex values of the brick, in place; sums times exp(-i k x), or exp(i k x), no factor.
  void forward(double* values);
  void backward(double* values);

 private:
  std::unique_ptr<FFT3d> fft_;
};

}  // namespace LAMMPS_NS

#endif
