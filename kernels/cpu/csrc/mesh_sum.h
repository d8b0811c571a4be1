// The sum over k of one periodic system by a mesh: which grid, what multiplies modes, and what comes out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cace_fast_step.h"
#include "ewald.h"
#include "mesh.h"

namespace cace_fast {

// The grid of a cell, and the modes -m .. m of each axis that the sphere lies within.
struct MeshPlan {
  const MeshWindow* window = nullptr;  // null: the direct sum
  int precision = 64;                  // of the grid
  int64_t size[3], modes[3];
  double inverse[9], volume;
};

// A system whose charges q [n][n_q] at r [n][3] are summed in a cell [3][3].
struct EwaldSystem {
  int64_t n;
  int n_q;
  const double *q, *r, *cell;
};

// The cheaper method for a system, or the one that the specification names. Sums that would take more
// than 4 GB or a minute, and more than what is usual for so many atoms, are refused.
EwaldStatus ewald_choose(MeshPlan& plan, const EwaldSpec& spec, int64_t n, int n_q,
                         const double* cell);

class MeshSum {
 public:
  // Potentials [n][n_q] = K q without self terms and norm; forces and virial of sum q K q / 2 are added,
  // times weight, where not null. Returns what the transform returned, CF_OK if all is well.
  int evaluate(const EwaldSpec& spec, const MeshPlan& plan, int n_threads, const EwaldSystem& in,
               double weight, double* potential, double* forces, double* virial);

 private:
  template <class T>
  void multiply(int n_q, double weight, double* virial);
  void select(const EwaldSpec& spec, const MeshPlan& plan);

  std::unique_ptr<Mesh> mesh_;
  MeshPlan plan_ = {};
  EwaldSpec spec_;
  int n_threads_ = 1;
  // 2 g / volume / window^2 and the same of dg/dk^2, [2 m0 + 1][2 m1 + 1][m2 + 1]; 0 outside the sphere
  std::vector<float> single_[2];
  std::vector<double> double_[2];
  std::vector<double> halo_, grid_, modes_;  // bytes of either type
};

}  // namespace cace_fast
