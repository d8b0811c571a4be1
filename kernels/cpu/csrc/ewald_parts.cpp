// Sums of a periodic system whose atoms lie on several ranks: C interface.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "mesh.h"
#include "step.h"

using namespace cace_fast;

namespace {

// f() once cf_ewald_cell has begun a sum, on a mesh where that is needed.
template <class F>
int in_sum(cf_ewald* ewald, char* error, bool on_mesh, const F& f) {
  return guarded(error, [&] {
    need({ewald}, "ewald");
    if (!ewald->begun) return fail(error, CF_ORDER, "long range: cf_ewald_cell begins a sum");
    if (on_mesh && ewald->plan.window == nullptr)
      return fail(error, CF_ORDER, "long range: this sum is direct; cf_ewald_mesh tells");
    return f();
  });
}

EwaldSystem system_of(const cf_ewald& ewald, int64_t n, const double* q, const double* r) {
  if (n < 0) throw Invalid("n", "0 or more atoms", std::to_string(n));
  if (n > 0) need({q, r}, "q r");
  return {n, ewald.n_q, q, r, ewald.box};
}

// How many numbers come before the moments.
int64_t sum_size(const cf_ewald& ewald) {
  const int64_t* size = ewald.plan.size;
  return ewald.n_q * (ewald.plan.window ? size[0] * size[1] * size[2] : 2 * ewald.work.k.size);
}

void places(cf_ewald& ewald, int64_t n, const double* r) {
  EwaldSlab& slab = ewald.work.slab;
  if (slab.present) ewald_require(ewald_slab_places(slab, n, r, false), ewald.work);
}

// From potentials in `slopes`, and the forces and virial of the sum over k: those of a slab in its own
// places.
void complete(cf_ewald& ewald, int64_t n, const double* q, const double* r, const double* moments,
              double* energies, double* slopes, double* forces, double* virial) {
  const EwaldSpec& spec = ewald.spec;
  EwaldSlab& slab = ewald.work.slab;
  const double share = ewald.n_all > 0 ? double(n) / double(ewald.n_all) : 1.0;
  const EwaldTotals all = {ewald.n_all, share, moments};
  if (slab.present)
    ewald_slab_finish(slab, spec, spec.norm, all, n, ewald.n_q, q, slopes, forces, virial);
  ewald_complete(spec, all, n, ewald.n_q, q, r, true, 1.0, energies, slopes, forces, virial);
}

MeshBrick brick_of(const cf_ewald& ewald, const cf_brick& given) {
  MeshBrick brick;
  for (int a = 0; a < 3; ++a) {
    brick.size[a] = ewald.plan.size[a];
    brick.first[a] = given.first[a];
    brick.count[a] = given.count[a];
    if (given.first[a] < 0 || given.first[a] >= brick.size[a] || given.count[a] < 1 ||
        given.count[a] > brick.size[a])
      throw Invalid(
          "brick", "a part of the grid along axis " + std::to_string(a),
          std::to_string(given.count[a]) + " points from " + std::to_string(given.first[a]));
  }
  return brick;
}

void require_inside(int64_t outside) {
  if (outside >= 0)
    throw Invalid("brick", "one where the stencils of all atoms begin",
                  "another for atom " + std::to_string(outside));
}

}  // namespace

extern "C" {

int cf_ewald_cell(cf_ewald* ewald, const double* cell, int32_t periodic, int64_t n_all, int32_t n_q,
                  int64_t* size, char* error) {
  return guarded(error, [&] {
    need({ewald, cell, size}, "ewald cell size");
    ewald->begun = false;
    if (periodic == EWALD_OPEN)
      return invalid(error, "periodic", "1, or 2 + a: sums over k have parts", "0");
    if (n_all < 0 || n_q < 1)
      return invalid(error, "n_all, n_q", "0 or more atoms, 1 or more channels",
                     std::to_string(n_all) + ", " + std::to_string(n_q));
    EwaldWork& work = ewald->work;
    ewald_require(ewald_slab_begin(work.slab, ewald->spec, cell, periodic, 0, nullptr), work);
    std::memcpy(ewald->box, work.slab.present ? work.slab.cell : cell, sizeof ewald->box);
    ewald->n_all = n_all;
    ewald->n_q = n_q;
    ewald_require(ewald_choose(ewald->plan, ewald->spec, n_all, n_q, ewald->box), work);
    if (ewald->plan.window == nullptr) {
      ewald_require(ewald_select(work.k, ewald->spec, ewald->box), work);
    } else {
      if (work.mesh == nullptr) work.mesh = std::make_shared<MeshSum>();
      work.mesh->begin(ewald->spec, ewald->plan, work.n_threads);
    }
    *size = sum_size(*ewald) + 3 * n_q;
    ewald->begun = true;
    return int(CF_OK);
  });
}

int cf_ewald_sums(cf_ewald* ewald, int64_t n, const double* q, const double* r, double* sums,
                  char* error) {
  return in_sum(ewald, error, false, [&] {
    const EwaldSystem in = system_of(*ewald, n, q, r);
    need({sums}, "sums");
    places(*ewald, n, r);
    if (ewald->plan.window != nullptr) ewald->work.mesh->add_charges(in, sums);
    else ewald_structure_factors(ewald->work, n, ewald->n_q, q, r, sums);
    ewald_moments(ewald->work.slab, n, ewald->n_q, q, sums + sum_size(*ewald));
    return int(CF_OK);
  });
}

int cf_ewald_finish(cf_ewald* ewald, int64_t n, const double* q, const double* r,
                    const double* sums, double* energies, double* slopes, double* forces,
                    double* virial, char* error) {
  return in_sum(ewald, error, false, [&] {
    EwaldWork& work = ewald->work;
    const EwaldSystem in = system_of(*ewald, n, q, r);
    need({sums}, "sums");
    if (n > 0) need({energies, slopes}, "energies slopes");
    const double unit = ewald->spec.norm;
    const double share = ewald->n_all > 0 ? double(n) / double(ewald->n_all) : 1.0;
    places(*ewald, n, r);
    std::fill_n(work.slab.virial, 9, 0.0);
    double* pull = work.slab.present ? work.slab.forces.data() : forces;
    double* strain = work.slab.present && virial != nullptr ? work.slab.virial : virial;
    if (ewald->plan.window != nullptr) {
      work.transform_code = work.mesh->finish(in, sums, unit, share, slopes, pull, strain);
      if (work.transform_code != CF_OK) throw TransformFailed(work.transform_code);
    } else {
      ewald_potentials(work, n, ewald->n_q, q, r, sums, unit, slopes, pull);
      if (strain != nullptr) ewald_virial(work.k, ewald->n_q, sums, share * unit, strain);
    }
    complete(*ewald, n, q, r, sums + sum_size(*ewald), energies, slopes, forces, virial);
    return int(CF_OK);
  });
}

int cf_ewald_mesh(cf_ewald* ewald, cf_mesh* mesh, char* error) {
  return in_sum(ewald, error, false, [&] {
    const MeshPlan& plan = ewald->plan;
    need({mesh}, "mesh");
    *mesh = {};
    if (plan.window == nullptr) return int(CF_OK);
    mesh->width = plan.window->width;
    mesh->precision = plan.precision;
    std::copy(plan.size, plan.size + 3, mesh->size);
    std::copy(plan.modes, plan.modes + 3, mesh->modes);
    return int(CF_OK);
  });
}

int cf_ewald_spread(cf_ewald* ewald, const cf_brick* brick, int64_t n, const double* q,
                    const double* r, void* grid, char* error) {
  return in_sum(ewald, error, true, [&] {
    const EwaldSystem in = system_of(*ewald, n, q, r);
    need({brick, grid}, "brick grid");
    require_inside(ewald->work.mesh->spread(brick_of(*ewald, *brick), in, grid));
    return int(CF_OK);
  });
}

int cf_ewald_multiply(cf_ewald* ewald, const cf_brick* modes, int32_t half, void* values,
                      double* virial, char* error) {
  return in_sum(ewald, error, true, [&] {
    need({modes, values}, "modes values");
    const MeshBrick brick = brick_of(*ewald, *modes);
    MeshModes made;
    made.half = half != 0;
    for (int a = 0; a < 3; ++a)
      for (int64_t i = brick.first[a]; i < brick.first[a] + brick.count[a]; ++i)
        made.axis[a].push_back(2 * i <= brick.size[a] ? i : i - brick.size[a]);
    EwaldSlab& slab = ewald->work.slab;
    double* strain = slab.present && virial != nullptr ? slab.virial : virial;
    ewald->work.mesh->multiply(made, ewald->n_q, values, ewald->spec.norm, strain);
    return int(CF_OK);
  });
}

int cf_ewald_gather(cf_ewald* ewald, const cf_brick* brick, int64_t n, const double* q,
                    const double* r, void* grid, const double* moments, double* energies,
                    double* slopes, double* forces, double* virial, char* error) {
  return in_sum(ewald, error, true, [&] {
    const EwaldSystem in = system_of(*ewald, n, q, r);
    EwaldSlab& slab = ewald->work.slab;
    need({brick, grid, moments}, "brick grid moments");
    if (n > 0) need({energies, slopes}, "energies slopes");
    places(*ewald, n, r);
    double* pull = slab.present ? slab.forces.data() : forces;
    require_inside(ewald->work.mesh->gather(brick_of(*ewald, *brick), in, grid, ewald->spec.norm,
                                            slopes, pull));
    complete(*ewald, n, q, r, moments, energies, slopes, forces, virial);
    return int(CF_OK);
  });
}

int cf_ewald_moments(cf_ewald* ewald, int64_t n, const double* q, const double* r, double* moments,
                     char* error) {
  return in_sum(ewald, error, false, [&] {
    system_of(*ewald, n, q, r);  // looks at them
    need({moments}, "moments");
    places(*ewald, n, r);
    ewald_moments(ewald->work.slab, n, ewald->n_q, q, moments);
    return int(CF_OK);
  });
}

}  // extern "C"
