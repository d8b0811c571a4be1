// All of one system: which sum, and what slabs, self terms, fields and penalties add to it.
#include <algorithm>
#include <cstdint>
#include <memory>

#include "cace_fast.h"
#include "ewald.h"
#include "mesh_sum.h"

namespace cace_fast {
namespace {

// The sum over k of a box, by the cheaper method or the one that was asked for.
EwaldStatus k_sum(const EwaldSpec& spec, EwaldWork& work, const EwaldSystem& in, double unit,
                  double* slopes, double* forces, double* virial) {
  MeshPlan plan;
  EwaldStatus status = ewald_choose(plan, spec, in.n, in.n_q, in.cell);
  if (status != EWALD_OK) return status;
  if (plan.window != nullptr) {
    if (work.mesh == nullptr) work.mesh = std::make_shared<MeshSum>();
    work.mesh->begin(spec, plan, work.n_threads);
    work.transform_code = work.mesh->evaluate(in, unit, slopes, forces, virial);
    return work.transform_code == CF_OK ? EWALD_OK : EWALD_TRANSFORM;
  }
  status = ewald_select(work.k, spec, in.cell);
  if (status != EWALD_OK) return status;
  const int64_t length = 2 * in.n_q * work.k.size;
  if (static_cast<int64_t>(work.structure.size()) < length) work.structure.resize(length);
  std::fill_n(work.structure.begin(), length, 0.0);
  ewald_structure_factors(work, in.n, in.n_q, in.q, in.r, work.structure.data());
  ewald_potentials(work, in.n, in.n_q, in.q, in.r, work.structure.data(), unit, slopes, forces);
  if (virial != nullptr) ewald_virial(work.k, in.n_q, work.structure.data(), unit, virial);
  return EWALD_OK;
}

}  // namespace

EwaldStatus ewald_evaluate(const EwaldSpec& spec, EwaldWork& work, int64_t n, int n_q,
                           const double* q, const double* r, const double* cell, int boundary,
                           double weight, double* energies, double* slopes, double* forces,
                           double* virial) {
  EwaldSlab& slab = work.slab;
  slab.present = false;
  if (boundary != EWALD_OPEN) {
    EwaldStatus status = ewald_slab_begin(slab, spec, cell, boundary, n, r);
    if (status != EWALD_OK) return status;
    const double unit = weight * spec.norm;
    const EwaldSystem in = {n, n_q, q, r, slab.present ? slab.cell : cell};
    const bool strained = virial != nullptr;
    status = k_sum(spec, work, in, unit, slopes, slab.present ? slab.forces.data() : forces,
                   slab.present && strained ? slab.virial : virial);
    if (status != EWALD_OK) return status;
  } else {
    if (spec.exponent != 1) return EWALD_OPEN_EXPONENT;
    ewald_open_sum(spec, work.n_threads, n, n_q, q, r, weight, slopes, forces, virial);
  }
  work.moments.assign(3 * n_q, 0.0);
  ewald_moments(slab, n, n_q, q, work.moments.data());
  const EwaldTotals all = {n, 1.0, work.moments.data()};
  if (slab.present)
    ewald_slab_finish(slab, spec, weight * spec.norm, all, n, n_q, q, slopes, forces, virial);
  ewald_complete(spec, all, n, n_q, q, r, boundary != EWALD_OPEN, weight, energies, slopes, forces,
                 virial);
  return EWALD_OK;
}

}  // namespace cace_fast
