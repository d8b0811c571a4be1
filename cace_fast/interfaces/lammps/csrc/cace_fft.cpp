#include "cace_fft.h"

#include <mpi.h>

// LAMMPS does not install the header of its transform.  What is used of it is declared here, as it has been
// since 2018 (tried: 22 Jul 2025).  The references are weak: without package KSPACE, or with transforms in
// single precision, whose functions have other names, they are null, and the plugin loads all the same.
namespace LAMMPS_NS {

class FFT3d : protected Pointers {
 public:
  __attribute__((weak)) FFT3d(LAMMPS* lmp, MPI_Comm world, int n_fast, int n_mid, int n_slow,
                              int in_ilo, int in_ihi, int in_jlo, int in_jhi, int in_klo,
                              int in_khi, int out_ilo, int out_ihi, int out_jlo, int out_jhi,
                              int out_klo, int out_khi, int scaled, int permute, int* n_buffer,
                              int collective);
  __attribute__((weak)) ~FFT3d() override;
  __attribute__((weak)) void compute(double* in, double* out, int sign);

 private:
  char room_[256];  // for what it has beyond Pointers: one pointer
};

}  // namespace LAMMPS_NS

using namespace LAMMPS_NS;

extern "C" {
// The same functions by the names that carry their arguments.
void cace_fft_compute() __asm__("_ZN9LAMMPS_NS5FFT3d7computeEPdS1_i") __attribute__((weak));
void cace_fft_delete() __asm__("_ZN9LAMMPS_NS5FFT3dD0Ev") __attribute__((weak));
}

bool CaceFFT::available() { return cace_fft_compute != nullptr && cace_fft_delete != nullptr; }

CaceFFT::CaceFFT() = default;
CaceFFT::~CaceFFT() = default;

void CaceFFT::setup(LAMMPS* lmp, const cf_mesh& mesh, const cf_brick& owned) {
  int low[3], high[3], n_buffer;
  for (int a = 0; a < 3; ++a) {
    low[a] = int(owned.first[a]);
    high[a] = int(owned.first[a] + owned.count[a] - 1);
  }
  fft_.reset();
  fft_.reset(new FFT3d(lmp, lmp->world, int(mesh.size[2]), int(mesh.size[1]), int(mesh.size[0]),
                       low[2], high[2], low[1], high[1], low[0], high[0], low[2], high[2], low[1],
                       high[1], low[0], high[0], 0, 0, &n_buffer, 0));
}

void CaceFFT::forward(double* values) { fft_->compute(values, values, 1); }
void CaceFFT::backward(double* values) { fft_->compute(values, values, -1); }
