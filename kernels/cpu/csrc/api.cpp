// The C interface: checks, and errors as codes.
#include "api.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "cace_fast.h"
#include "model.h"

using namespace cace_fast;

namespace cace_fast {

void invalid(const std::string& argument, const std::string& expected, const std::string& got) {
  throw Invalid(argument, expected, got);
}

void check_precision(int32_t precision) {
  if (precision != 32 && precision != 64)
    invalid("precision", "32 or 64", std::to_string(precision));
}

namespace {

void in_order(bool now) {
  if (!now) throw OutOfOrder("phases: expected begin, forward 0.., backward ..0, finish");
}

// What is known of a list without a look at its pairs.
void check_list(const cf_frame& f, const cf_list& list) {
  if (list.n_pairs < 0 || list.n_pairs > INT32_MAX)
    invalid("list", "0 to 2^31 - 1 pairs", std::to_string(list.n_pairs));
  need({list.first, list.sent_first}, "first sent_first");
  if (list.n_owned != f.n_owned || list.n_all != f.n_all)
    invalid("list",
            "one of " + std::to_string(f.n_owned) + " and " + std::to_string(f.n_all) + " atoms",
            "one of " + std::to_string(list.n_owned) + " and " + std::to_string(list.n_all));
  if (list.n_pairs > 0) need({list.sender, list.sent}, "sender sent");
  for (int64_t of : {list.first[f.n_owned], list.sent_first[f.n_all]})
    if (of != list.n_pairs)
      invalid("list", "that of these atoms: " + std::to_string(list.n_pairs) + " pairs",
              std::to_string(of));
}

void check_frame(const Model& m, const cf_frame& f) {
  if (f.n_owned < 0 || f.n_all < f.n_owned)
    invalid("n_all", "at least n_owned = " + std::to_string(f.n_owned), std::to_string(f.n_all));
  if (f.n_all > 0) need({f.species, f.positions}, "species positions");
  if (f.n_systems < 1) invalid("n_systems", "at least 1", std::to_string(f.n_systems));
  need({f.list}, "list");
  check_list(f, *f.list);
  if (f.list->shift && !f.shift_vectors) invalid("shift_vectors", "those of the pairs", "NULL");
  for (int i = 0; i < f.n_all; ++i)
    if (f.species[i] < -1 || f.species[i] >= m.n_z)
      invalid("species", "-1 to " + std::to_string(m.n_z - 1),
              std::to_string(f.species[i]) + " for atom " + std::to_string(i));
  for (size_t h = 0; h < m.heads.size(); ++h)
    if (m.heads[h].n_extra && (!f.extras || !f.extras[h]))
      invalid(
          "extras",
          std::to_string(m.heads[h].n_extra) + " further inputs of read-out " + std::to_string(h),
          "none");
}

// Generation whose messages may leave and arrive now, and whose gradients may go back; -1: none.
int messages_of(const cf_state& state) { return state.next_forward - 1; }
int gradients_of(const cf_state& state) {
  return state.next_backward < state.model->stages - 1 ? state.next_backward : -1;
}

bool charges_known(const cf_state& state) {
  return state.next_backward == state.model->stages - 1 && state.all_forward;
}

// Packs or unpacks rows of generation t where that is now's.
int cross(cf_state* state, int32_t t, int (*now)(const cf_state&), Crossing what,
          const cf_atoms* atoms, int32_t precision, void* rows) {
  return phase(state, [&] {
    in_order(t >= 0 && t == now(*state) && t < state->model->stages - 1);
    check_precision(precision);
    need({atoms}, "atoms");
    const Step& step = state->model->steps[t];
    if (atoms->count > 0 && (step.bchi || step.ar)) need({rows}, "rows");
    for (int32_t k = 0; k < atoms->count; ++k) {
      const int64_t atom = atoms->numbers ? atoms->numbers[k] : int64_t(atoms->first) + k;
      if (atom < 0 || atom >= state->n_all)
        invalid("atoms", "numbers from 0 to " + std::to_string(state->n_all - 1),
                std::to_string(atom));
    }
    state->engine->exchange(t, what, *atoms, precision, rows);
    return int(CF_OK);
  });
}

}  // namespace

void begin(cf_state* state, const cf_frame* frame) {
  check_frame(*state->model, *frame);
  state->engine->threads(team_size(state->n_threads));
  state->engine->begin(*frame);
  state->forget();
  state->next_forward = 0;
  state->n_all = frame->n_all;
  state->n_owned = frame->n_owned;
}

}  // namespace cace_fast

extern "C" {

int cf_version(void) { return CF_VERSION; }

const char* cf_isa(char error[CF_ERROR_LENGTH]) {
  std::string text;
  const char* name = isa_name(text);
  if (!name) say(error, text);
  return name;
}

int cf_state_create(const cf_model* model, int32_t precision, cf_state** state,
                    char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    check_precision(precision);
    need({model, state}, "model state");
    auto made = std::make_unique<cf_state>();
    made->model = &model->model;
    made->engine.reset(isa_code().engine(model->model, precision));
    *state = made.release();
    return int(CF_OK);
  });
}

void cf_state_free(cf_state* state) { delete state; }
void cf_state_threads(cf_state* state, int32_t n) {
  if (state) state->n_threads = n < 1 ? 1 : n;
}
const char* cf_state_error(const cf_state* state) {
  return state ? state->error.c_str() : "state: expected a pointer, got NULL";
}
int64_t cf_state_bad_atom(const cf_state* state) { return state ? state->bad_atom : -1; }
int64_t cf_state_bytes(const cf_state* state) { return state ? state->engine->bytes() : 0; }

double cf_state_seconds(const cf_state* state, const char* part) {
  for (int k = 0; state && part && k < kParts; ++k)
    if (!std::strcmp(part, part_name(k))) return state->engine->seconds(k);
  return -1.0;
}

int cf_evaluate(cf_state* state, const cf_frame* frame, const cf_result* result) {
  return phase(state, [&] {
    need({frame, result}, "frame result");
    const Model& m = *state->model;
    if (m.n_charges) invalid("cf_evaluate", "a model without charges", "one with; use the phases");
    if (m.heads.empty()) invalid("cf_evaluate", "a model with a read-out", "none");
    begin(state, frame);
    const bool derivatives = result->forces || result->virials;
    for (int t = 0; t < m.stages; ++t)
      state->engine->forward(t, derivatives && t == m.stages - 1, nullptr);
    for (int t = m.stages - 2; derivatives && t >= 0; --t) state->engine->backward(t);
    state->engine->finish(*result);
    state->forget();
    return int(CF_OK);
  });
}

int cf_features(cf_state* state, const cf_frame* frame, double* features) {
  return phase(state, [&] {
    need({frame}, "frame");
    if (frame->n_owned > 0) need({features}, "features");
    begin(state, frame);
    for (int t = 0; t < state->model->stages; ++t) state->engine->forward(t, false, features);
    state->forget();
    return int(CF_OK);
  });
}

int cf_begin(cf_state* state, const cf_frame* frame) {
  return phase(state, [&] {
    need({frame}, "frame");
    begin(state, frame);
    return int(CF_OK);
  });
}

int cf_forward(cf_state* state, int32_t t) {
  return phase(state, [&] {
    in_order(t >= 0 && t == state->next_forward);
    state->engine->forward(t, false, nullptr);
    const bool last = t == state->model->stages - 1;
    state->next_forward = last ? -1 : t + 1;
    state->next_backward = last ? t : -1;
    state->all_forward = last;
    return int(CF_OK);
  });
}

int cf_turn(cf_state* state) {
  return phase(state, [&] {
    const Model& m = *state->model;
    const int last = m.stages - 1;
    in_order(state->next_forward == last);
    if (m.n_charges)
      invalid("cf_turn", "a model without charges", "one with; forward and backward");
    if (m.heads.empty()) invalid("cf_turn", "a model with a read-out", "none");
    state->engine->forward(last, true, nullptr);
    state->next_forward = -1;
    state->next_backward = last - 1;
    state->all_backward = last == 0;
    return int(CF_OK);
  });
}

int cf_pack_messages(cf_state* state, int32_t t, const cf_atoms* atoms, int32_t precision,
                     void* rows) {
  return cross(state, t, messages_of, kMessagesOut, atoms, precision, rows);
}

int cf_unpack_messages(cf_state* state, int32_t t, const cf_atoms* atoms, int32_t precision,
                       const void* rows) {
  return cross(state, t, messages_of, kMessagesIn, atoms, precision, const_cast<void*>(rows));
}

int cf_pack_gradients(cf_state* state, int32_t t, const cf_atoms* atoms, int32_t precision,
                      void* rows) {
  return cross(state, t, gradients_of, kGradientsOut, atoms, precision, rows);
}

int cf_unpack_gradients(cf_state* state, int32_t t, const cf_atoms* atoms, int32_t precision,
                        const void* rows) {
  return cross(state, t, gradients_of, kGradientsIn, atoms, precision, const_cast<void*>(rows));
}

int cf_charges(cf_state* state, double* q) {
  return phase(state, [&] {
    in_order(charges_known(*state));
    if (state->model->n_charges && state->n_owned) need({q}, "q");
    state->engine->charges(q);
    return int(CF_OK);
  });
}

int cf_set_charge_gradient(cf_state* state, const double* de_dq) {
  return phase(state, [&] {
    in_order(charges_known(*state));
    if (state->model->n_charges && state->n_owned) need({de_dq}, "de_dq");
    state->engine->set_charge_gradient(de_dq);
    return int(CF_OK);
  });
}

int cf_energy_weights(cf_state* state, const double* weights) {
  return phase(state, [&] {
    in_order(charges_known(*state));
    state->engine->energy_weights(weights);
    return int(CF_OK);
  });
}

int cf_backward(cf_state* state, int32_t t) {
  return phase(state, [&] {
    in_order(t >= 0 && t == state->next_backward);
    if (state->model->heads.empty()) invalid("cf_backward", "a model with a read-out", "none");
    state->engine->backward(t);
    state->next_backward = t - 1;
    state->all_backward = t == 0;
    return int(CF_OK);
  });
}

int cf_rewind(cf_state* state, int32_t charges_only) {
  return phase(state, [&] {
    in_order(state->all_forward);
    state->next_backward = state->model->stages - 1;
    state->all_backward = false;
    state->engine->energies_count(charges_only == 0);
    return int(CF_OK);
  });
}

int cf_finish(cf_state* state, const cf_result* result) {
  return phase(state, [&] {
    need({result}, "result");
    const bool derivatives = result->forces || result->virials || result->atom_virials;
    in_order(state->all_backward || (state->all_forward && !derivatives));
    state->engine->finish(*result);
    return int(CF_OK);
  });
}

}  // extern "C"
