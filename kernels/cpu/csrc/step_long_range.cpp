// Long range of the C interface: sums by themselves, and the terms of a step.
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "engine.h"
#include "step.h"

using namespace cace_fast;

namespace {

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

// One system by ewald.h, in this thread or with its threads.
void sum_one(cf_step& step, size_t number, EwaldWork& work, const EwaldSpec& spec,
             const cf_structures& in, const cf_step_result& out, int32_t s) {
  cf_step::Term& term = step.terms[number];
  const Part part = part_of(step, term, in, out, s);
  ewald_require(ewald_evaluate(spec, work, part.n, term.count, part.q,
                               in.positions + 3 * part.first, in.cells + 9 * s, in.periodic[s],
                               term.weight, part.energies, part.slopes, part.forces, part.virial),
                work);
  add_part(step, term, part, out);
}

// Whether a mesh is to sum system s.
bool takes_mesh(const cf_step& step, size_t number, const cf_structures& in, int32_t s) {
  const cf_step::Term& term = step.terms[number];
  if (in.periodic[s] == EWALD_OPEN || term.spec.transform.run == nullptr) return false;
  const int64_t first = in.first_atom[s], n = in.first_atom[s + 1] - first;
  EwaldSlab slab;
  MeshPlan plan;
  const double* cell = in.cells + 9 * s;
  EwaldStatus status =
      ewald_slab_begin(slab, term.spec, cell, in.periodic[s], n, in.positions + 3 * first);
  if (status == EWALD_OK)
    status = ewald_choose(plan, term.spec, n, term.count, slab.present ? slab.cell : cell);
  return status == EWALD_OK && plan.window != nullptr;
}

// All systems of a term: those of a mesh one after the other, as its transforms are the host's and belong
// to this thread; the others side by side.
void sum_term(cf_step& step, size_t number, const cf_structures& in, const cf_step_result& out) {
  cf_step::Term& term = step.terms[number];
  const int threads = team_size(step.n_threads);
  const bool across = threads > 1 && in.n_systems >= 2 * threads;
  if (static_cast<int>(term.works.size()) < (across ? threads : 1))
    term.works.resize(across ? threads : 1);
  for (EwaldWork& work : term.works) work.n_threads = threads;
  step.done.assign(in.n_systems, 0);
  for (int32_t s = 0; s < in.n_systems; ++s) {
    if (across && !takes_mesh(step, number, in, s)) continue;
    sum_one(step, number, term.works[0], spec_of(step, number, in, s), in, out, s);
    step.done[s] = 1;
  }
  if (!across) return;
  for (EwaldWork& work : term.works) work.n_threads = 1;
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int32_t s = 0; s < in.n_systems; ++s) {
    if (step.done[s]) continue;
    try {
      EwaldSpec spec = spec_of(step, number, in, s);
      spec.method = CF_EWALD_DIRECT;
      sum_one(step, number, term.works[omp_get_thread_num()], spec, in, out, s);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
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

void ewald_require(EwaldStatus status, const EwaldWork& work) {
  switch (status) {
    case EWALD_OK:
      return;
    case EWALD_SINGULAR_CELL:
      throw Invalid("cell", "three independent lattice vectors for a periodic Ewald sum", "others");
    case EWALD_OPEN_EXPONENT:
      throw Invalid("pbc", "a periodic system for an Ewald sum of exponent 6", "an open one");
    case EWALD_SLAB_VACUUM:
      throw Invalid("pbc", "all or no directions periodic, or two with a vacuum above 0", "others");
    case EWALD_SLAB_EXTENT:
      throw Invalid("positions", "atoms of a slab within the height of its cell", "some outside");
    case EWALD_TRANSFORM:
      throw TransformFailed(work.transform_code);
    default:
      throw Invalid("cell", "one with fewer k vectors, which a direct sum can hold", "too many");
  }
}

void ewald_atoms(int64_t n, int n_q, const double* q, const double* r, const double* energies,
                 const double* slopes) {
  if (n < 0 || n_q < 1)
    throw Invalid("n, n_q", "0 or more atoms, 1 or more channels",
                  std::to_string(n) + ", " + std::to_string(n_q));
  if (n > 0) need({q, r, energies, slopes}, "q r energies slopes");
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

namespace {

void set_method(EwaldSpec& spec, int method, double tolerance, const cf_transform* transform) {
  if (method < CF_EWALD_AUTO || method > CF_EWALD_MESH)
    throw Invalid("method", "0, 1 or 2", std::to_string(method));
  if (!(tolerance > 0 && tolerance < 1))
    throw Invalid("tolerance", "a number between 0 and 1", std::to_string(tolerance));
  const bool none = transform == nullptr || transform->run == nullptr;
  if (method == CF_EWALD_MESH && none)
    throw Invalid("transform", "Fourier transforms for a mesh", "none");
  spec.method = method;
  spec.tolerance = tolerance;
  spec.transform = none ? cf_transform{nullptr, nullptr} : *transform;
}

}  // namespace

int long_range(cf_step& step, const cf_structures& in, const cf_step_result& out) {
  if (!step.fields.empty() && step.fields.size() != step.terms.size() * in.n_systems)
    return invalid(step.error, "fields", "one for each term and structure", "others");
  for (size_t k = 0; k < step.terms.size(); ++k) {
    cf_step::Term& term = step.terms[k];
    const size_t size = static_cast<size_t>(in.n_atoms) * term.count;
    for (std::vector<double>* v : {&step.own_q, &step.own_energies, &step.own_slopes})
      if (v->size() < size) v->resize(size);
    sum_term(step, k, in, out);
  }
  return CF_OK;
}
}  // namespace cace_fast

extern "C" {

int cf_ewald_create(const cf_ewald_spec* spec, cf_ewald** ewald, char* error) {
  return guarded(error, [&] {
    need({spec, ewald}, "spec ewald");
    const int bad = ewald_check(*spec, error);
    if (bad != CF_OK) return bad;
    *ewald = new cf_ewald;
    (*ewald)->spec = ewald_spec_of(*spec);
    return int(CF_OK);
  });
}

void cf_ewald_free(cf_ewald* ewald) { delete ewald; }

void cf_ewald_freeze(cf_ewald* ewald, const double* cell) {
  if (ewald != nullptr) ewald_freeze(ewald->spec, cell);
}

void cf_ewald_threads(cf_ewald* ewald, int32_t n_threads) {
  if (ewald != nullptr) ewald->work.n_threads = n_threads < 1 ? 1 : n_threads;
}

int cf_ewald_evaluate(cf_ewald* ewald, int64_t n, int32_t n_q, const double* q, const double* r,
                      const double* cell, int32_t periodic, double* energies, double* slopes,
                      double* forces, double* virial, char* error) {
  return guarded(error, [&] {
    need({ewald}, "ewald");
    ewald_atoms(n, n_q, q, r, energies, slopes);
    if (periodic != EWALD_OPEN) need({cell}, "cell");
    ewald_require(ewald_evaluate(ewald->spec, ewald->work, n, n_q, q, r, cell, periodic, 1.0,
                                 energies, slopes, forces, virial),
                  ewald->work);
    return int(CF_OK);
  });
}

int cf_ewald_method(cf_ewald* ewald, int32_t method, double tolerance,
                    const cf_transform* transform, char* error) {
  return guarded(error, [&] {
    need({ewald}, "ewald");
    set_method(ewald->spec, method, tolerance, transform);
    return int(CF_OK);
  });
}

int cf_step_method(cf_step* step, int32_t method, double tolerance, const cf_transform* transform) {
  return on_step(step, [&] {
    for (cf_step::Term& term : step->terms) set_method(term.spec, method, tolerance, transform);
    return int(CF_OK);
  });
}

void cf_ewald_slab(cf_ewald* ewald, double vacuum) {
  if (ewald != nullptr) ewald->spec.slab_vacuum = vacuum;
}

void cf_step_slab(cf_step* step, double vacuum) {
  if (step == nullptr) return;
  for (cf_step::Term& term : step->terms) term.spec.slab_vacuum = vacuum;
}

int cf_step_fields(cf_step* step, int32_t n_systems, const double* fields,
                   const int32_t* directions) {
  return on_step(step, [&] {
    if (fields != nullptr) need({directions}, "directions");
    if (n_systems < 0)
      return invalid(step->error, "n_systems", "0 or more", std::to_string(n_systems));
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
  if (step == nullptr) return;
  for (cf_step::Term& term : step->terms) ewald_freeze(term.spec, cell);
}

}  // extern "C"
