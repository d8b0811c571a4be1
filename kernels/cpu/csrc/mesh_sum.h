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
// than 4 GB or a minute, and more than what is usual for so many atoms, are refused (Invalid).
EwaldStatus ewald_choose(MeshPlan& plan, const EwaldSpec& spec, int64_t n, int n_q,
                         const double* cell);

// Wave numbers along each axis. `half`: the last axis has none below 0, and modes stand for their
// conjugates too.
struct MeshModes {
  std::vector<int64_t> axis[3];
  bool half = true;
};

class MeshSum {
 public:
  // Takes the grid and what modes are multiplied by; nothing to do where they are those of the last call.
  void begin(const EwaldSpec& spec, const MeshPlan& plan, int n_threads);
  // All of it: potentials [n][n_q] = K q without self terms and norm; forces and virial of sum q K q / 2
  // are added, times weight, where not null. Returns what the transform returned, CF_OK if all is well.
  int evaluate(const EwaldSystem& in, double weight, double* potential, double* forces,
               double* virial);

  // The same in parts, the whole grid on each rank. Adds the charges of atoms to grids [n_q][size] in
  // double; then, from the sum of those of all ranks, the results of atoms, and `share` of the virial.
  void add_charges(const EwaldSystem& in, double* grids);
  int finish(const EwaldSystem& in, const double* grids, double weight, double share,
             double* potential, double* forces, double* virial);

  // The same in bricks, with the transforms of a host: see cf_ewald_spread and what follows it.
  int64_t spread(const MeshBrick& brick, const EwaldSystem& in, void* with_halo);
  void multiply(const MeshModes& modes, int n_q, void* values, double weight, double* virial);
  int64_t gather(const MeshBrick& brick, const EwaldSystem& in, void* with_halo, double weight,
                 double* potential, double* forces);

 private:
  template <class T>
  void fill();
  template <class T>
  void multiply(int n_q, void* values, double weight, double* virial);
  void choose(const MeshModes& modes);
  void charges_on_grid(const EwaldSystem& in);
  int transform_and_gather(const EwaldSystem& in, double weight, double share, double* potential,
                           double* forces, double* virial);

  std::unique_ptr<Mesh> mesh_;
  MeshPlan plan_ = {};
  EwaldSpec spec_;
  MeshModes modes_, inner_;  // of the factors; of the whole sum
  int n_threads_ = 1;
  // 2 g / volume / window^2 and the same of dg/dk^2, for each mode; 0 outside the sphere
  std::vector<float> single_[2];
  std::vector<double> double_[2];
  std::vector<double> halo_, grid_, values_;  // bytes of either type
};

}  // namespace cace_fast
