// Long range of the C interface: sums by themselves, and the terms of a step.
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "engine.h"
#include "step.h"

using namespace cace_fast;

namespace {

int ewald_code(EwaldStatus status, char* error) {
  switch (status) {
    case EWALD_OK:
      return CF_OK;
    case EWALD_SINGULAR_CELL:
      return invalid(error, "cell", "three independent lattice vectors for a periodic Ewald sum",
                     "others");
    case EWALD_OPEN_EXPONENT:
      return invalid(error, "pbc", "a periodic system for an Ewald sum of exponent 6",
                     "an open one");
    case EWALD_SLAB_VACUUM:
      return invalid(error, "pbc", "all or no directions periodic, or two with a vacuum above 0",
                     "others");
    case EWALD_SLAB_EXTENT:
      return invalid(error, "positions", "atoms of a slab within the height of its cell",
                     "some outside");
    default:
      return invalid(error, "cell", "one with fewer k vectors, which a direct sum can hold",
                     "too many");
  }
}

// One term of one system: its charges, and where its own results go.
struct Part {
  int64_t first, n;
  double *q, *energies, *slopes, *forces, *virial;
};

Part part_of(cf_step& step, cf_step::Term& term, const cf_structures& in, const cf_step_result& out,
             int32_t s) {
  const int64_t first = in.first_atom[s], start = first * term.count;
  const Part part{first,
                  in.first_atom[s + 1] - first,
                  step.own_q.data() + start,
                  step.own_energies.data() + start,
                  step.own_slopes.data() + start,
                  out.forces == nullptr ? nullptr : out.forces + 3 * first,
                  out.virials == nullptr ? nullptr : out.virials + 9 * s};
  for (int64_t i = 0; i < part.n; ++i)
    for (int c = 0; c < term.count; ++c)
      part.q[i * term.count + c] = term.fixed.empty()
                                       ? step.charges[(first + i) * step.n_charges + term.first + c]
                                       : term.fixed[in.species[first + i]];
  return part;
}

// Energies of the atoms, and slopes back into the table of all charges.
void add_part(cf_step& step, const cf_step::Term& term, const Part& part,
              const cf_step_result& out) {
  for (int64_t i = 0; i < part.n; ++i)
    for (int c = 0; c < term.count; ++c) {
      const int64_t at = i * term.count + c, atom = part.first + i;
      if (out.energies_lr != nullptr) out.energies_lr[atom] += term.weight * part.energies[at];
      if (term.fixed.empty())
        step.slopes[atom * step.n_charges + term.first + c] += term.weight * part.slopes[at];
    }
}

// The Ewald sum of a term for system s, with the field of that system.
EwaldSpec spec_of(const cf_step& step, size_t number, const cf_structures& in, int32_t s) {
  EwaldSpec spec = step.terms[number].spec;
  if (step.fields.empty()) return spec;
  spec.field = step.fields[number * in.n_systems + s];
  spec.field_direction = step.directions[number * in.n_systems + s];
  return spec;
}

// Offers the periodic systems to the host, one after the other; those that it did are marked done.
int by_host(cf_step& step, int32_t number, const cf_structures& in, const cf_step_result& out) {
  cf_step::Term& term = step.terms[number];
  for (int32_t s = 0; s < in.n_systems; ++s) {
    if (in.periodic[s] == 0) continue;
    const EwaldSpec spec = spec_of(step, number, in, s);
    const Part part = part_of(step, term, in, out, s);
    const double *r = in.positions + 3 * part.first, *cell = in.cells + 9 * s;
    EwaldSlab& slab = term.slab;
    int code =
        ewald_code(ewald_slab_begin(slab, spec, cell, in.periodic[s], part.n, r), step.error);
    if (code != CF_OK) return code;
    const bool strained = part.virial != nullptr;
    double* forces =
        slab.present && (part.forces != nullptr || strained) ? slab.forces.data() : part.forces;
    double* virial = slab.present && strained ? slab.virial : part.virial;
    const double unit = term.weight * spec.norm;
    // a host that an interrupt keeps from its work, and that does not say so, must not pass
    std::fill(part.slopes, part.slopes + part.n * term.count,
              std::numeric_limits<double>::quiet_NaN());
    code = step.host(step.host_context, number, part.n, term.count, part.q, r,
                     slab.present ? slab.cell : cell, unit, part.slopes, forces, virial);
    if (code == CF_DECLINED) continue;
    if (code != CF_OK) return fail(step.error, code, "long range: the sum of the host failed");
    if (slab.present)
      ewald_slab_finish(slab, spec, unit, part.n, term.count, part.q, part.slopes, part.forces,
                        part.virial);
    ewald_complete(spec, part.n, term.count, part.q, r, true, term.weight, part.energies,
                   part.slopes, part.forces, part.virial);
    add_part(step, term, part, out);
    step.done[s] = 1;
  }
  return CF_OK;
}

// The systems that are left, by the sums of ewald.h.
int by_library(cf_step& step, size_t number, const cf_structures& in, const cf_step_result& out) {
  cf_step::Term& term = step.terms[number];
  const int threads = team_size(step.n_threads);
  const bool across = threads > 1 && in.n_systems >= 2 * threads;
  if (static_cast<int>(term.works.size()) < (across ? threads : 1))
    term.works.resize(across ? threads : 1);
  for (EwaldWork& work : term.works) work.n_threads = across ? 1 : threads;
  int worst = EWALD_OK;
  bool memory = false;
#pragma omp parallel for schedule(dynamic) num_threads(across ? threads : 1) \
    reduction(max : worst) if (across)
  for (int32_t s = 0; s < in.n_systems; ++s) {
    if (step.done[s]) continue;
    try {
      EwaldWork& work = term.works[across ? omp_get_thread_num() : 0];
      const Part part = part_of(step, term, in, out, s);
      const EwaldStatus status =
          ewald_evaluate(spec_of(step, number, in, s), work, part.n, term.count, part.q,
                         in.positions + 3 * part.first, in.cells + 9 * s, in.periodic[s],
                         term.weight, part.energies, part.slopes, part.forces, part.virial);
      worst = std::max(worst, static_cast<int>(status));
      add_part(step, term, part, out);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      memory = true;
    }
  }
  if (memory) return fail(step.error, CF_MEMORY, "out of memory");
  return ewald_code(static_cast<EwaldStatus>(worst), step.error);
}

}  // namespace

namespace cace_fast {

EwaldSpec ewald_spec_of(const cf_ewald_spec& s) {
  EwaldSpec spec;
  spec.dl = s.dl;
  spec.sigma = s.sigma;
  spec.exponent = s.exponent;
  spec.remove_self = s.remove_self != 0;
  spec.norm = s.norm;
  spec.field = s.field;
  spec.field_direction = s.field_direction;
  spec.neutral_lambda = s.neutral_lambda;
  return spec;
}

int ewald_check(const cf_ewald_spec& s, char* error) {
  if (!(s.dl > 0 && s.sigma > 0)) {
    const std::string got = std::to_string(s.dl) + ", " + std::to_string(s.sigma);
    return invalid(error, "ewald", "dl and sigma above 0", got);
  }
  if (s.exponent != 1 && s.exponent != 6)
    return invalid(error, "ewald", "exponent 1 or 6", std::to_string(s.exponent));
  if (s.field_direction < 0 || s.field_direction > 2)
    return invalid(error, "ewald", "field_direction 0, 1 or 2", std::to_string(s.field_direction));
  return CF_OK;
}

int long_range(cf_step& step, const cf_structures& in, const cf_step_result& out) {
  if (!step.fields.empty() && step.fields.size() != step.terms.size() * in.n_systems)
    return invalid(step.error, "fields", "one for each term and structure", "others");
  for (size_t k = 0; k < step.terms.size(); ++k) {
    cf_step::Term& term = step.terms[k];
    const size_t size = static_cast<size_t>(in.n_atoms) * term.count;
    for (std::vector<double>* v : {&step.own_q, &step.own_energies, &step.own_slopes})
      if (v->size() < size) v->resize(size);
    step.done.assign(in.n_systems, 0);
    int code = CF_OK;
    if (step.host != nullptr) code = by_host(step, static_cast<int32_t>(k), in, out);
    if (code == CF_OK) code = by_library(step, k, in, out);
    if (code != CF_OK) return code;
  }
  return CF_OK;
}
}  // namespace cace_fast

extern "C" {

int cf_ewald_create(const cf_ewald_spec* spec, cf_ewald** ewald, char* error) {
  return guarded(error, [&] {
    const int bad = ewald_check(*spec, error);
    if (bad != CF_OK) return bad;
    *ewald = new cf_ewald{ewald_spec_of(*spec), {}};
    return int(CF_OK);
  });
}

void cf_ewald_free(cf_ewald* ewald) { delete ewald; }

void cf_ewald_freeze(cf_ewald* ewald, const double* cell) { ewald_freeze(ewald->spec, cell); }

void cf_ewald_threads(cf_ewald* ewald, int32_t n_threads) { ewald->work.n_threads = n_threads; }

int cf_ewald_evaluate(cf_ewald* ewald, int64_t n, int32_t n_q, const double* q, const double* r,
                      const double* cell, int32_t periodic, double* energies, double* slopes,
                      double* forces, double* virial, char* error) {
  return guarded(error, [&] {
    return ewald_code(ewald_evaluate(ewald->spec, ewald->work, n, n_q, q, r, cell, periodic, 1.0,
                                     energies, slopes, forces, virial),
                      error);
  });
}

int cf_ewald_cell(cf_ewald* ewald, const double* cell, int64_t* size, char* error) {
  return guarded(error, [&] {
    const int code = ewald_code(ewald_select(ewald->work.k, ewald->spec, cell), error);
    *size = ewald->work.k.size;
    return code;
  });
}

void cf_ewald_structure_factors(cf_ewald* ewald, int64_t n, int32_t n_q, const double* q,
                                const double* r, double* structure) {
  ewald_structure_factors(ewald->work, n, n_q, q, r, structure);
}

int cf_ewald_finish(cf_ewald* ewald, int64_t n, int32_t n_q, const double* q, const double* r,
                    const double* structure, double* energies, double* slopes, double* forces,
                    char* error) {
  return guarded(error, [&] {
    ewald_potentials(ewald->work, n, n_q, q, r, structure, ewald->spec.norm, slopes, forces);
    ewald_finish(ewald->spec, n, n_q, q, true, energies, slopes);
    return int(CF_OK);
  });
}

void cf_ewald_virial(const cf_ewald* ewald, int32_t n_q, const double* structure, double* virial) {
  ewald_virial(ewald->work.k, n_q, structure, ewald->spec.norm, virial);
}

void cf_step_host(cf_step* step, cf_host_sum sum, void* context) {
  step->host = sum;
  step->host_context = context;
}

void cf_ewald_slab(cf_ewald* ewald, double vacuum) { ewald->spec.slab_vacuum = vacuum; }

void cf_step_slab(cf_step* step, double vacuum) {
  for (cf_step::Term& term : step->terms) term.spec.slab_vacuum = vacuum;
}

int cf_step_fields(cf_step* step, int32_t n_systems, const double* fields,
                   const int32_t* directions) {
  return guarded(step->error, [&] {
    const size_t size = fields == nullptr ? 0 : step->terms.size() * n_systems;
    for (size_t i = 0; i < size; ++i)
      if (directions[i] < 0 || directions[i] > 2)
        return invalid(step->error, "fields", "directions 0, 1 or 2", "others");
    step->fields.assign(fields, fields + size);
    step->directions.assign(directions, directions + size);
    return int(CF_OK);
  });
}

void cf_step_freeze(cf_step* step, const double* cell) {
  for (cf_step::Term& term : step->terms) ewald_freeze(term.spec, cell);
}

}  // extern "C"
