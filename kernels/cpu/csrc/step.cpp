// The whole step: pair list, phases of the engine, long range between forward and backward.
#include "step.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "api.h"
#include "engine.h"

using namespace cace_fast;

namespace {

void systems_of(const cf_structures& in, std::vector<int32_t>& system) {
  system.resize(in.n_atoms);
  for (int32_t s = 0; s < in.n_systems; ++s)
    std::fill(system.begin() + in.first_atom[s], system.begin() + in.first_atom[s + 1], s);
}

// CF_TOO_CLOSE if two atoms are too close; the closest pair nearly always decides.
int check_distances(cf_step& step, const cf_structures& in) {
  const double largest = *std::max_element(step.half.begin(), step.half.end());
  const double most = in.min_dist > 0 ? in.min_dist : 2.0 * largest;
  step.distance = cf_pairs_closest(&step.pairs, in.positions, step.shift_vectors.data(),
                                   step.n_threads, step.closest);
  if (!(step.distance < most)) return CF_OK;
  step.allowed = in.min_dist;
  if (in.min_dist == 0) {
    const double share = cf_pairs_closest_of_kind(
        &step.pairs, in.positions, step.shift_vectors.data(), in.species,
        static_cast<int32_t>(step.half.size()), step.half.data(), step.n_threads, step.closest);
    if (!(share < 1.0)) return CF_OK;
    step.allowed = step.half[in.species[step.closest[0]]] + step.half[in.species[step.closest[1]]];
    step.distance = share * step.allowed;
  }
  return fail(step.error, CF_TOO_CLOSE, "positions: two atoms are too close");
}

}  // namespace

namespace cace_fast {

void check_structures(const cf_structures* in) {
  need({in}, "structures");
  if (in->n_atoms < 0 || in->n_systems < 1)
    throw Invalid("structures", "0 or more atoms of 1 or more systems",
                  std::to_string(in->n_atoms) + " of " + std::to_string(in->n_systems));
  need({in->first_atom, in->cells, in->periodic}, "first_atom cells periodic");
  if (in->n_atoms > 0) need({in->species, in->positions}, "species positions");
  for (int32_t s = 0; s < in->n_systems; ++s)
    if (in->first_atom[0] != 0 || in->first_atom[s + 1] < in->first_atom[s] ||
        in->first_atom[s + 1] > in->n_atoms || in->first_atom[in->n_systems] != in->n_atoms)
      throw Invalid("first_atom", "ascending numbers from 0 to " + std::to_string(in->n_atoms),
                    "others");
}

int frame_of(cf_step& step, const cf_structures& in, cf_frame& frame, cf_list& list) {
  const Pairs& p = step.pairs.pairs;
  if (p.n_receivers != in.n_atoms)
    return invalid(step.error, "pairs", "a list of " + std::to_string(in.n_atoms) + " atoms",
                   "one of " + std::to_string(p.n_receivers) + "; call cf_step_pairs");
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
  return in.min_dist >= 0 && !p.sender.empty() ? check_distances(step, in) : CF_OK;
}

int of_state(cf_step& step, int code) {
  return code == CF_OK ? code : fail(step.error, code, cf_state_error(step.state));
}

}  // namespace cace_fast

namespace {

int run_phases(cf_step& step, const cf_structures& in, const cf_frame& frame,
               const cf_step_result& out) {
  const int stages = static_cast<int>(cf_model_query(step.model, "n_stages"));
  const bool derivatives = out.forces != nullptr || out.virials != nullptr;
  int code = of_state(step, cf_begin(step.state, &frame));
  for (int t = 0; code == CF_OK && t < stages; ++t)
    code = of_state(step, cf_forward(step.state, t));
  if (code != CF_OK) return code;
  const size_t size = static_cast<size_t>(in.n_atoms) * step.n_charges;
  step.charges.resize(size);
  step.slopes.assign(size, 0.0);
  if (step.n_charges > 0) code = of_state(step, cf_charges(step.state, step.charges.data()));
  if (code != CF_OK) return code;
  if (out.charges != nullptr) std::copy(step.charges.begin(), step.charges.end(), out.charges);

  // the long range adds to zeros here and cf_finish writes other arrays; the end adds them up
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
  if (step.n_charges > 0)
    code = of_state(step, cf_set_charge_gradient(step.state, step.slopes.data()));
  for (int t = stages - 1; code == CF_OK && derivatives && t >= 0; --t)
    code = of_state(step, cf_backward(step.state, t));
  if (code != CF_OK) return code;
  const cf_result result{out.energies_sr, out.forces, out.virials, nullptr};
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
    need({model, state, step}, "model state step");
    if (n_terms < 0) return invalid(error, "n_terms", "0 or more", std::to_string(n_terms));
    if (n_terms > 0) need({terms}, "terms");
    const int n_charges = static_cast<int>(cf_model_query(model, "n_charges"));
    const int64_t n_elements = cf_model_query(model, "n_elements");
    std::vector<cf_step::Term> made;
    for (int32_t k = 0; k < n_terms; ++k) {
      const cf_long_range& t = terms[k];
      const int bad = ewald_check(t.ewald, error);
      if (bad != CF_OK) return bad;
      const int last = t.first_charge + t.n_charges;
      if (t.fixed == nullptr ? (t.first_charge < 0 || t.n_charges < 1 || last > n_charges)
                             : t.n_charges != 1)
        return invalid(
            error, "long range",
            "terms of the " + std::to_string(n_charges) + " charges of the model",
            "columns " + std::to_string(t.first_charge) + " to " + std::to_string(last - 1));
      made.push_back({ewald_spec_of(t.ewald), t.weight, t.first_charge, t.n_charges, {}, {}});
      if (t.fixed != nullptr) made.back().fixed.assign(t.fixed, t.fixed + n_elements);
    }
    *step = new cf_step;
    (*step)->model = model;
    (*step)->state = state;
    (*step)->n_charges = n_charges;
    (*step)->terms = std::move(made);
    for (int32_t z = 0; z < n_elements; ++z)
      (*step)->half.push_back(cf_model_half_distance(model, z));
    return int(CF_OK);
  });
}

void cf_step_free(cf_step* step) { delete step; }

void cf_step_threads(cf_step* step, int32_t n_threads) {
  if (step == nullptr) return;
  step->n_threads = team_size(n_threads);
  cf_state_threads(step->state, step->n_threads);
}

int cf_step_pairs(cf_step* step, const cf_structures* in, int64_t n_pairs, const int64_t* receivers,
                  const int64_t* senders, const int64_t* shifts) {
  return on_step(step, [&] {
    step->n_evaluated = -1;
    check_structures(in);
    systems_of(*in, step->system);
    return cf_pairs_set(&step->pairs, in->n_atoms, in->n_atoms, in->species, step->system.data(),
                        n_pairs, receivers, senders, shifts, step->n_threads, step->error);
  });
}

int cf_step_run(cf_step* step, const cf_structures* in, const cf_step_result* out) {
  return on_step(step, [&] {
    cf_frame frame;
    cf_list list;
    step->n_evaluated = -1;
    check_structures(in);
    need({out}, "result");
    const int code = frame_of(*step, *in, frame, list);
    if (code != CF_OK) return code;
    step->n_evaluated = in->n_atoms;
    if (!step->terms.empty() || step->n_charges > 0) return run_phases(*step, *in, frame, *out);
    if (out->energies_lr != nullptr) std::fill_n(out->energies_lr, in->n_atoms, 0.0);
    const cf_result result{out->energies_sr, out->forces, out->virials, nullptr};
    return of_state(*step, cf_evaluate(step->state, &frame, &result));
  });
}

int cf_step_charge_gradients(cf_step* step, int32_t count, const double* weights,
                             double* gradients) {
  return on_step(step, [&] {
    const int stages = static_cast<int>(cf_model_query(step->model, "n_stages"));
    const int64_t n = step->n_evaluated;
    if (n < 0)
      return fail(step->error, CF_ORDER, "charges: their gradients come after cf_step_run");
    if (count > 0 && n > 0) need({weights, gradients}, "weights gradients");
    int code = CF_OK;
    for (int32_t k = 0; code == CF_OK && k < count; ++k) {
      double* own = gradients + 3 * n * k;
      code = cf_rewind(step->state, 1);
      if (code == CF_OK)
        code = cf_set_charge_gradient(step->state, weights + n * step->n_charges * k);
      for (int t = stages - 1; code == CF_OK && t >= 0; --t) code = cf_backward(step->state, t);
      const cf_result result{nullptr, own, nullptr, nullptr};
      if (code == CF_OK) code = cf_finish(step->state, &result);
      for (int64_t i = 0; i < 3 * n; ++i) own[i] = -own[i];  // forces fall along the gradient
    }
    return of_state(*step, code);
  });
}

int cf_step_features(cf_step* step, const cf_structures* in, double* features) {
  return on_step(step, [&] {
    cf_frame frame;
    cf_list list;
    step->n_evaluated = -1;
    check_structures(in);
    const int code = frame_of(*step, *in, frame, list);
    return code != CF_OK ? code : of_state(*step, cf_features(step->state, &frame, features));
  });
}

const char* cf_step_error(const cf_step* step) {
  return step == nullptr ? "step: expected a pointer, got NULL" : step->error;
}

void cf_step_closest(const cf_step* step, int32_t atoms[2], double* distance, double* allowed) {
  if (step == nullptr || atoms == nullptr || distance == nullptr || allowed == nullptr) return;
  atoms[0] = step->closest[0];
  atoms[1] = step->closest[1];
  *distance = step->distance;
  *allowed = step->allowed;
}

}  // extern "C"
