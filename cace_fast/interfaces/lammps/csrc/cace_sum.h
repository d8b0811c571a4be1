// The long-range sum of a model over the atoms of all ranks.
#ifndef LMP_CACE_SUM_H
#define LMP_CACE_SUM_H

#include <string>
#include <vector>

#include "cace_fast_step.h"
#include "cace_fft.h"
#include "cace_grid.h"
#include "cace_outcome.h"
#include "pointers.h"

namespace LAMMPS_NS {

struct CaceBox {
  double cell[9];
  int periodic;   // as cf_ewald_cell takes it
  int64_t n_all;  // atoms of all ranks that take part
};

struct CaceKspace {
  int method = CF_EWALD_AUTO, threads = 1;
  bool frozen = false;
  double tolerance = 0.0, slab_vacuum = 0.0;
};

class CaceSum : protected Pointers {
 public:
  CaceSum(LAMMPS* lmp, const cf_long_range& term, const CaceKspace& settings);
  ~CaceSum() override;
  CaceSum(const CaceSum&) = delete;
  CaceSum& operator=(const CaceSum&) = delete;

  // Collective.  Charges q [n][n_q] of the atoms here at r [n][3]: energies and slopes dE/dq [n][n_q];
  // forces [n][3] and this rank's part of the virial [9] are added to.
  void run(const CaceBox& box, int n, const double* q, const double* r, double* energies,
           double* slopes, double* forces, double* virial, CaceOutcome& outcome);
  int n_q() const { return n_q_; }
  // Bytes that each rank gives to the others in a step, and that it keeps.
  double bytes_exchanged() const { return exchanged_; }
  double bytes() const;
  // Seconds in the library, in transforms, and in exchanges (where ranks wait for each other).
  const double* seconds() const { return seconds_; }
  const char* method() const { return mesh_.width ? "mesh" : "direct"; }

 private:
  bool brick_holds(const CaceBox& box, int n, const double* r);
  void sum_directly(int n, const double* q, const double* r, double* energies, double* slopes,
                    double* forces, double* virial, CaceOutcome& outcome);
  void sum_on_mesh(int n, const double* q, const double* r, double* energies, double* slopes,
                   double* forces, double* virial, CaceOutcome& outcome);
  template <class T>
  void plan(CaceFFT<T>& fft);
  template <class T>
  void potentials(CaceFFT<T>& fft, std::vector<T>& owned, std::vector<T>& modes, double* virial,
                  CaceOutcome& outcome);

  const int n_q_;
  const double slab_vacuum_;
  bool frozen_;  // to be frozen at the first cell
  cf_ewald* ewald_ = nullptr;
  cf_mesh mesh_ = {}, planned_ = {};
  cf_brick needed_ = {};
  int64_t size_ = 0;
  CaceGrid grid_;
  CaceFFT<float> single_;
  CaceFFT<double> double_;
  std::vector<double> sums_, held_, owned_double_, modes_double_;
  std::vector<float> owned_single_, modes_single_;
  double exchanged_ = 0.0, seconds_[3] = {0.0, 0.0, 0.0};
};

}  // namespace LAMMPS_NS

#endif
