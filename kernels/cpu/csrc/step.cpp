// The whole step: pair list, phases of the engine, long range between forward and backward.
#include "cace_fast_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include <omp.h>

#include "ewald.h"
#include "pairs.h"
#include "engine.h"

using namespace cace_fast;

struct cf_pairs {
  Pairs pairs;
};

struct cf_ewald {
  EwaldSpec spec;
  EwaldWork work;
};

namespace {

int fail(char* error, int code, const std::string& text) {
  if (error != nullptr) {
    std::strncpy(error, text.c_str(), CF_ERROR_LENGTH - 1);
    error[CF_ERROR_LENGTH - 1] = 0;
  }
  return code;
}

// Runs `body`, turning what it throws into a code: no exception may cross the C interface.
template <class Body>
int guarded(char* error, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(error, CF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return fail(error, CF_INVALID, e.what());
  }
}

EwaldSpec spec_of(const cf_ewald_spec& s) {
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

int check(const cf_ewald_spec& s, char* error) {
  if (!(s.dl > 0 && s.sigma > 0)) return fail(error, CF_INVALID, "ewald: dl and sigma above zero");
  if (s.exponent != 1 && s.exponent != 6) return fail(error, CF_INVALID, "ewald: exponent 1 or 6");
  if (s.field_direction < 0 || s.field_direction > 2)
    return fail(error, CF_INVALID, "ewald: field_direction 0, 1 or 2");
  return CF_OK;
}

int ewald_code(EwaldStatus status, char* error) {
  switch (status) {
    case EWALD_OK: return CF_OK;
    case EWALD_SINGULAR_CELL:
      return fail(error, CF_INVALID, "cell: three independent lattice vectors for a periodic Ewald sum");
    case EWALD_OPEN_EXPONENT:
      return fail(error, CF_INVALID, "pbc: a periodic system for an Ewald sum of exponent 6");
    default: return fail(error, CF_INVALID, "cell: one with fewer k vectors, which a direct sum can hold");
  }
}

int pairs_code(PairsStatus status, int64_t bad, char* error) {
  switch (status) {
    case PAIRS_OK: return CF_OK;
    case PAIRS_BAD_ATOM: return fail(error, CF_INVALID, "pairs: pair " + std::to_string(bad) + " names an atom that does not exist");
    case PAIRS_BAD_SHIFT: return fail(error, CF_INVALID, "pairs: the cell shift of pair " + std::to_string(bad) + " is out of range");
    default: return fail(error, CF_INVALID, "pairs: more than 2^31 - 1 atoms or pairs");
  }
}

}  // namespace

extern "C" {

int cf_pairs_create(cf_pairs** pairs, char* error) {
  return guarded(error, [&] { return *pairs = new cf_pairs, CF_OK; });
}

void cf_pairs_free(cf_pairs* pairs) { delete pairs; }

int cf_pairs_set(cf_pairs* pairs, int32_t n_owned, int32_t n_all, const int32_t* species,
                 const int32_t* system, int64_t n_pairs, const int64_t* receivers,
                 const int64_t* senders, const int64_t* shifts, int32_t n_threads, char* error) {
  return guarded(error, [&] {
    int64_t bad = -1;
    const PairsStatus status = build_pairs(pairs->pairs, n_owned, n_all, species, system, n_pairs,
                                           receivers, senders, shifts, n_threads, bad);
    return pairs_code(status, bad, error);
  });
}

int32_t cf_pairs_n_shifts(const cf_pairs* pairs) {
  return static_cast<int32_t>(pairs->pairs.shift_system.size());
}

void cf_pairs_list(const cf_pairs* pairs, cf_list* list) {
  const Pairs& p = pairs->pairs;
  list->n_pairs = static_cast<int64_t>(p.sender.size());
  list->first = p.first.data();
  list->sender = p.sender.data();
  list->shift = p.shift.data();
  list->sent_first = p.sent_first.data();
  list->sent = p.sent.data();
}

void cf_pairs_vectors(const cf_pairs* pairs, const double* cells, double* shift_vectors) {
  const Pairs& p = pairs->pairs;
  for (size_t k = 0; k < p.shift_system.size(); ++k) {
    const double* h = cells + 9 * static_cast<size_t>(p.shift_system[k]);
    for (int x = 0; x < 3; ++x)
      shift_vectors[3 * k + x] =
          p.shifts[3 * k] * h[x] + p.shifts[3 * k + 1] * h[3 + x] + p.shifts[3 * k + 2] * h[6 + x];
  }
}

double cf_pairs_closest(const cf_pairs* pairs, const double* positions, const double* shift_vectors,
                        int32_t n_threads, int32_t atoms[2]) {
  const Pairs& p = pairs->pairs;
  const double* r = positions;
  double best = std::numeric_limits<double>::infinity();
  int64_t best_i = -1, best_j = -1;
  const int threads = team_size(n_threads);
#pragma omp parallel num_threads(threads) if (p.n_receivers > 2000)
  {
    double own = std::numeric_limits<double>::infinity();
    int64_t own_i = -1, own_j = -1;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < p.n_receivers; ++i)
      for (int64_t e = p.first[i]; e < p.first[i + 1]; ++e) {
        const int64_t j = p.sender[e];
        if (j < i) continue;  // each pair stands twice
        const double* s = shift_vectors + 3 * static_cast<int64_t>(p.shift[e]);
        const double x = r[3 * i] - r[3 * j] + s[0], y = r[3 * i + 1] - r[3 * j + 1] + s[1],
                     z = r[3 * i + 2] - r[3 * j + 2] + s[2];
        const double d2 = x * x + y * y + z * z;
        if (d2 < own) {
          own = d2;
          own_i = i;
          own_j = j;
        }
      }
#pragma omp critical(cace_fast_closest)
    if (own < best || (own == best && own_i >= 0 && own_i < best_i)) {
      best = own;
      best_i = own_i;
      best_j = own_j;
    }
  }
  atoms[0] = static_cast<int32_t>(best_i);
  atoms[1] = static_cast<int32_t>(best_j);
  return std::sqrt(best);
}

int cf_ewald_create(const cf_ewald_spec* spec, cf_ewald** ewald, char* error) {
  return guarded(error, [&] {
    const int bad = check(*spec, error);
    if (bad != CF_OK) return bad;
    *ewald = new cf_ewald{spec_of(*spec), {}};
    return int(CF_OK);
  });
}

void cf_ewald_free(cf_ewald* ewald) { delete ewald; }

void cf_ewald_threads(cf_ewald* ewald, int32_t n_threads) { ewald->work.n_threads = n_threads; }

int cf_ewald_evaluate(cf_ewald* ewald, int64_t n, int32_t n_q, const double* q, const double* r,
                      const double* cell, int32_t periodic, double* energies, double* slopes,
                      double* forces, double* virial, char* error) {
  return guarded(error, [&] {
    return ewald_code(ewald_evaluate(ewald->spec, ewald->work, n, n_q, q, r, cell, periodic != 0,
                                     1.0, energies, slopes, forces, virial),
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

}  // extern "C"

struct cf_step {
  cf_state* state = nullptr;
  const cf_model* model = nullptr;
  int n_threads = 1, n_charges = 0;
  struct Term {
    EwaldSpec spec;
    double weight;
    int first, count;
    std::vector<double> fixed;
    std::vector<EwaldWork> works;
  };
  std::vector<Term> terms;
  cf_pairs pairs;
  // buffers of a step; they grow and are reused
  std::vector<double> shift_vectors, charges, slopes, own_q, own_energies, own_slopes, forces, virials;
  std::vector<int32_t> system;
  char error[CF_ERROR_LENGTH] = {0};
  int32_t closest[2] = {-1, -1};
  double distance = 0.0;
};

namespace {

void systems_of(const cf_structures& in, std::vector<int32_t>& system) {
  system.resize(in.n_atoms);
  for (int32_t s = 0; s < in.n_systems; ++s)
    std::fill(system.begin() + in.first_atom[s], system.begin() + in.first_atom[s + 1], s);
}

int frame_of(cf_step& step, const cf_structures& in, cf_frame& frame, cf_list& list) {
  const Pairs& p = step.pairs.pairs;
  if (p.n_receivers != in.n_atoms)
    return fail(step.error, CF_INVALID, "pairs: the list is of another number of atoms; call cf_step_pairs");
  cf_pairs_list(&step.pairs, &list);
  systems_of(in, step.system);
  step.shift_vectors.resize(p.shifts.size());
  cf_pairs_vectors(&step.pairs, in.cells, step.shift_vectors.data());
  std::memset(&frame, 0, sizeof frame);
  frame.n_owned = frame.n_all = in.n_atoms;
  frame.n_systems = in.n_systems;
  frame.n_shifts = static_cast<int32_t>(p.shift_system.size());
  frame.species = in.species;
  frame.positions = in.positions;
  frame.system = step.system.data();
  frame.shift_vectors = step.shift_vectors.data();
  frame.extras = in.extras;
  frame.list = &list;
  if (in.min_dist > 0 && !p.sender.empty()) {
    step.distance = cf_pairs_closest(&step.pairs, in.positions, step.shift_vectors.data(),
                                     step.n_threads, step.closest);
    if (step.distance < in.min_dist) return fail(step.error, CF_TOO_CLOSE, "positions: two atoms are too close");
  }
  return CF_OK;
}

int of_state(cf_step& step, int code) {
  return code == CF_OK ? code : fail(step.error, code, cf_state_error(step.state));
}

// One term of one system: its charges out of the table of all, its slopes back into it.
int long_range_system(cf_step::Term& term, EwaldWork& work, const cf_structures& in,
                      const cf_step_result& out, int32_t s, int n_charges, cf_step& step) {
  const int64_t first = in.first_atom[s], n = in.first_atom[s + 1] - first;
  double* q = step.own_q.data() + first * term.count;
  double* slopes = step.own_slopes.data() + first * term.count;
  double* energies = step.own_energies.data() + first * term.count;
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < term.count; ++c)
      q[i * term.count + c] = term.fixed.empty() ? step.charges[(first + i) * n_charges + term.first + c]
                                                 : term.fixed[in.species[first + i]];
  const EwaldStatus status = ewald_evaluate(
      term.spec, work, n, term.count, q, in.positions + 3 * first, in.cells + 9 * s,
      in.periodic[s] != 0, term.weight, energies, slopes,
      out.forces == nullptr ? nullptr : out.forces + 3 * first,
      out.virials == nullptr ? nullptr : out.virials + 9 * s);
  for (int64_t i = 0; i < n; ++i)
    for (int c = 0; c < term.count; ++c) {
      if (out.energies_lr != nullptr) out.energies_lr[first + i] += term.weight * energies[i * term.count + c];
      if (term.fixed.empty()) step.slopes[(first + i) * n_charges + term.first + c] += term.weight * slopes[i * term.count + c];
    }
  return status;
}

// All terms; `out` holds the sums so far.
int long_range(cf_step& step, const cf_structures& in, const cf_step_result& out) {
  const int threads = team_size(step.n_threads);
  const bool across = threads > 1 && in.n_systems >= 2 * threads;
  for (cf_step::Term& term : step.terms) {
    const size_t size = static_cast<size_t>(in.n_atoms) * term.count;
    for (std::vector<double>* v : {&step.own_q, &step.own_energies, &step.own_slopes})
      if (v->size() < size) v->resize(size);
    if (static_cast<int>(term.works.size()) < (across ? threads : 1)) term.works.resize(across ? threads : 1);
    for (EwaldWork& work : term.works) work.n_threads = across ? 1 : threads;
    int worst = EWALD_OK;
    bool memory = false;
#pragma omp parallel for schedule(dynamic) num_threads(across ? threads : 1) reduction(max : worst) if (across)
    for (int32_t s = 0; s < in.n_systems; ++s) {
      try {
        EwaldWork& work = term.works[across ? omp_get_thread_num() : 0];
        worst = std::max(worst, long_range_system(term, work, in, out, s, step.n_charges, step));
      } catch (const std::bad_alloc&) {
#pragma omp atomic write
        memory = true;
      }
    }
    if (memory) return fail(step.error, CF_MEMORY, "out of memory");
    if (worst != EWALD_OK) return ewald_code(static_cast<EwaldStatus>(worst), step.error);
  }
  return CF_OK;
}

int run_phases(cf_step& step, const cf_structures& in, const cf_frame& frame,
               const cf_step_result& out) {
  const int stages = static_cast<int>(cf_model_query(step.model, "n_stages"));
  int code = of_state(step, cf_begin(step.state, &frame));
  for (int t = 0; code == CF_OK && t < stages; ++t) code = of_state(step, cf_forward(step.state, t));
  if (code != CF_OK) return code;
  const size_t size = static_cast<size_t>(in.n_atoms) * step.n_charges;
  step.charges.resize(size);
  step.slopes.assign(size, 0.0);
  if (step.n_charges > 0) code = of_state(step, cf_charges(step.state, step.charges.data()));
  if (code != CF_OK) return code;
  if (out.charges != nullptr) std::copy(step.charges.begin(), step.charges.end(), out.charges);

  // the long range adds to zeros here, and cf_finish writes beside it: added up at the end
  std::vector<double>&forces = step.forces, &virials = step.virials;
  forces.clear();
  virials.clear();
  cf_step_result part = out;
  if (out.forces != nullptr) {
    forces.assign(3 * static_cast<size_t>(in.n_atoms), 0.0);
    part.forces = forces.data();
  }
  if (out.virials != nullptr) {
    virials.assign(9 * static_cast<size_t>(in.n_systems), 0.0);
    part.virials = virials.data();
  }
  if (out.energies_lr != nullptr) std::fill_n(out.energies_lr, in.n_atoms, 0.0);
  code = long_range(step, in, part);
  if (code != CF_OK) return code;
  if (step.n_charges > 0) code = of_state(step, cf_set_charge_gradient(step.state, step.slopes.data()));
  const bool derivatives = out.forces != nullptr || out.virials != nullptr;
  for (int t = stages - 1; code == CF_OK && derivatives && t >= 0; --t)
    code = of_state(step, cf_backward(step.state, t));
  if (code != CF_OK) return code;
  const cf_result result{out.energies_sr, out.forces, out.virials};
  code = of_state(step, cf_finish(step.state, &result));
  if (code != CF_OK) return code;
  for (size_t i = 0; i < forces.size(); ++i) out.forces[i] += forces[i];
  for (size_t i = 0; i < virials.size(); ++i) out.virials[i] += virials[i];
  return CF_OK;
}

}  // namespace

extern "C" {

int cf_step_create(const cf_model* model, cf_state* state, int32_t n_terms,
                   const cf_long_range* terms, cf_step** step, char* error) {
  return guarded(error, [&] {
    const int n_charges = static_cast<int>(cf_model_query(model, "n_charges"));
    const int64_t n_elements = cf_model_query(model, "n_elements");
    std::vector<cf_step::Term> made;
    for (int32_t k = 0; k < n_terms; ++k) {
      const cf_long_range& t = terms[k];
      const int bad = check(t.ewald, error);
      if (bad != CF_OK) return bad;
      const int last = t.first_charge + t.n_charges;
      if (t.fixed == nullptr ? (t.first_charge < 0 || t.n_charges < 1 || last > n_charges) : t.n_charges != 1)
        return fail(error, CF_INVALID, "long range: a term names charges that the model does not have");
      made.push_back({spec_of(t.ewald), t.weight, t.first_charge, t.n_charges, {}, {}});
      if (t.fixed != nullptr) made.back().fixed.assign(t.fixed, t.fixed + n_elements);
    }
    *step = new cf_step;
    (*step)->model = model;
    (*step)->state = state;
    (*step)->n_charges = n_charges;
    (*step)->terms = std::move(made);
    return int(CF_OK);
  });
}

void cf_step_free(cf_step* step) { delete step; }

void cf_step_threads(cf_step* step, int32_t n_threads) {
  step->n_threads = team_size(n_threads);
  cf_state_threads(step->state, step->n_threads);
}

int cf_step_pairs(cf_step* step, const cf_structures* in, int64_t n_pairs, const int64_t* receivers,
                  const int64_t* senders, const int64_t* shifts) {
  return guarded(step->error, [&] {
    systems_of(*in, step->system);
    return cf_pairs_set(&step->pairs, in->n_atoms, in->n_atoms, in->species, step->system.data(),
                        n_pairs, receivers, senders, shifts, step->n_threads, step->error);
  });
}

int cf_step_run(cf_step* step, const cf_structures* in, const cf_step_result* out) {
  return guarded(step->error, [&] {
    cf_frame frame;
    cf_list list;
    const int code = frame_of(*step, *in, frame, list);
    if (code != CF_OK) return code;
    if (!step->terms.empty() || step->n_charges > 0) return run_phases(*step, *in, frame, *out);
    if (out->energies_lr != nullptr) std::fill_n(out->energies_lr, in->n_atoms, 0.0);
    const cf_result result{out->energies_sr, out->forces, out->virials};
    return of_state(*step, cf_evaluate(step->state, &frame, &result));
  });
}

int cf_step_features(cf_step* step, const cf_structures* in, double* features) {
  return guarded(step->error, [&] {
    cf_frame frame;
    cf_list list;
    const int code = frame_of(*step, *in, frame, list);
    return code != CF_OK ? code : of_state(*step, cf_features(step->state, &frame, features));
  });
}

const char* cf_step_error(const cf_step* step) { return step->error; }

void cf_step_closest(const cf_step* step, int32_t atoms[2], double* distance) {
  atoms[0] = step->closest[0];
  atoms[1] = step->closest[1];
  *distance = step->distance;
}

}  // extern "C"
