// Gradients of sums over atoms, weighted with where atoms are: docs/theory.md, section 10; the oracle is
// reference/images.py. The images of senders are ghosts of the engine, and what goes back from a ghost to
// its owner gains the ghost's shift times what the pass of weight 1 gave.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "api.h"
#include "step.h"

using namespace cace_fast;

namespace {

typedef std::vector<double> Numbers;

// The frame of a step with a ghost for every sender beyond a face of the cell.
struct Images {
  std::vector<int32_t> owner;  // [ghosts]
  Numbers offset;              // [ghosts][3] S h
  std::vector<int32_t> sender, species, system, sent;
  std::vector<int64_t> sent_first;
  Numbers positions;
  cf_list list;
  cf_frame frame;

  explicit Images(const cf_frame& of);
  size_t n() const { return owner.size(); }
  // Of rows [ghosts][width] from a pass: gained shifts, added to rows [owned][width] of their owners.
  void to_owners(const Numbers& ghosts, const Numbers* first, int b, int64_t width,
                 Numbers& owned) const;
};

Images::Images(const cf_frame& of) : list(*of.list), frame(of) {
  const int32_t n = of.n_owned;
  const int64_t n_pairs = list.n_pairs;
  sender.assign(list.sender, list.sender + n_pairs);
  const auto shift_of = [&](int64_t e) {
    return of.shift_vectors + 3 * static_cast<int64_t>(list.shift[e]);
  };
  std::vector<int64_t> keys;  // sender and shift of those that cross a face
  if (list.shift != nullptr && of.shift_vectors != nullptr)
    for (int64_t e = 0; e < n_pairs; ++e) {
      const double* s = shift_of(e);
      if (s[0] != 0.0 || s[1] != 0.0 || s[2] != 0.0)
        keys.push_back(int64_t(list.sender[e]) * of.n_shifts + list.shift[e]);
    }
  std::vector<int64_t> kinds = keys;
  std::sort(kinds.begin(), kinds.end());
  kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
  species.assign(of.species, of.species + n);
  system.assign(of.system, of.system + n);
  positions.assign(of.positions, of.positions + 3 * int64_t(n));
  for (int64_t kind : kinds) {
    const int32_t atom = int32_t(kind / of.n_shifts);
    const double* s = of.shift_vectors + 3 * (kind % of.n_shifts);
    owner.push_back(atom);
    species.push_back(of.species[atom]);
    system.push_back(of.system[atom]);
    for (int x = 0; x < 3; ++x) {
      offset.push_back(s[x]);
      positions.push_back(of.positions[3 * int64_t(atom) + x] - s[x]);
    }
  }
  size_t next = 0;
  for (int64_t e = 0; e < n_pairs && !keys.empty(); ++e) {
    const double* s = shift_of(e);
    if (s[0] == 0.0 && s[1] == 0.0 && s[2] == 0.0) continue;
    sender[e] =
        n + int32_t(std::lower_bound(kinds.begin(), kinds.end(), keys[next++]) - kinds.begin());
  }
  const int32_t n_all = n + int32_t(owner.size());
  sent_first.assign(n_all + 1, 0);
  for (int32_t atom : sender) ++sent_first[atom + 1];
  for (int32_t i = 0; i < n_all; ++i) sent_first[i + 1] += sent_first[i];
  std::vector<int64_t> at(sent_first.begin(), sent_first.end() - 1);
  sent.resize(n_pairs);
  for (int64_t e = 0; e < n_pairs; ++e) sent[at[sender[e]]++] = int32_t(e);
  list.n_all = n_all;
  list.sender = sender.data();
  list.shift = nullptr;
  list.sent_first = sent_first.data();
  list.sent = sent.data();
  frame.n_all = n_all;
  frame.n_shifts = 0;
  frame.species = species.data();
  frame.positions = positions.data();
  frame.system = system.data();
  frame.shift_vectors = nullptr;
  frame.list = &list;
}

void Images::to_owners(const Numbers& ghosts, const Numbers* first, int b, int64_t width,
                       Numbers& owned) const {
  for (size_t g = 0; g < n(); ++g)
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at = int64_t(g) * width + k;
      const double gained = first == nullptr ? 0.0 : offset[3 * g + b] * (*first)[at];
      owned[owner[g] * width + k] += ghosts[at] + gained;
    }
}

int forward(cf_step& step, const Images& images, int stages) {
  int code = of_state(step, cf_begin(step.state, &images.frame));
  for (int t = 0; code == CF_OK && t < stages; ++t) {
    code = of_state(step, cf_forward(step.state, t));
    if (code != CF_OK || t == stages - 1) break;
    Numbers rows(images.n() * cf_model_message_size(step.model, t));
    const cf_atoms owners = {int32_t(images.n()), 0, images.owner.data()};
    const cf_atoms ghosts = {int32_t(images.n()), images.frame.n_owned, nullptr};
    code = of_state(step, cf_pack_messages(step.state, t, &owners, 64, rows.data()));
    if (code == CF_OK)
      code = of_state(step, cf_unpack_messages(step.state, t, &ghosts, 64, rows.data()));
  }
  return code;
}

// Where backward passes begin: weights of charges, or of energies.
int seed(cf_step& step, bool charges, const Numbers& seeds) {
  int code = of_state(step, cf_rewind(step.state, charges ? 1 : 0));
  if (code != CF_OK) return code;
  return of_state(step, charges ? cf_set_charge_gradient(step.state, seeds.data())
                                : cf_energy_weights(step.state, seeds.data()));
}

// Gradients [n][3] of sum_j seeds_j y_j by positions, with the shifts along b put in; b = -1 is the pass of
// weight 1, whose crossings are kept in `first` for the others.
int backward(cf_step& step, const Images& images, int stages, bool charges, const Numbers& seeds,
             int b, std::vector<Numbers>& first, Numbers& found) {
  int code = seed(step, charges, seeds);
  const size_t n = images.frame.n_owned;
  size_t crossing = 0;
  const auto cross = [&](const Numbers& ghosts, int64_t width, Numbers& owned) {
    if (b < 0) first.push_back(ghosts);
    images.to_owners(ghosts, b < 0 ? nullptr : &first[crossing], b, width, owned);
    ++crossing;
  };
  for (int t = stages - 1; code == CF_OK && t >= 0; --t) {
    if (t < stages - 1) {
      const int64_t width = cf_model_message_size(step.model, t);
      Numbers rows(images.n() * width), owned(n * width);
      const cf_atoms ghosts = {int32_t(images.n()), images.frame.n_owned, nullptr};
      const cf_atoms owners = {int32_t(n), 0, nullptr};
      code = of_state(step, cf_pack_gradients(step.state, t, &ghosts, 64, rows.data()));
      if (code != CF_OK) break;
      cross(rows, width, owned);
      code = of_state(step, cf_unpack_gradients(step.state, t, &owners, 64, owned.data()));
    }
    if (code == CF_OK) code = of_state(step, cf_backward(step.state, t));
  }
  Numbers forces(3 * size_t(images.frame.n_all));
  const cf_result result{nullptr, forces.data(), nullptr, nullptr};
  if (code == CF_OK) code = of_state(step, cf_finish(step.state, &result));
  for (double& f : forces) f = -f;
  found.assign(forces.begin(), forces.begin() + 3 * n);
  cross(Numbers(forces.begin() + 3 * n, forces.end()), 3, found);
  return code;
}

// Without messages, one pass: -sum d (x) dy/dd over the pairs that an atom sends.
int one_pass(cf_step& step, const cf_frame& frame, bool charges, const Numbers& seeds,
             double* gradients) {
  int code = of_state(step, cf_begin(step.state, &frame));
  if (code == CF_OK) code = of_state(step, cf_forward(step.state, 0));
  if (code == CF_OK) code = seed(step, charges, seeds);
  if (code == CF_OK) code = of_state(step, cf_backward(step.state, 0));
  Numbers virials(9 * size_t(frame.n_all));
  const cf_result result{nullptr, nullptr, nullptr, virials.data()};
  if (code == CF_OK) code = of_state(step, cf_finish(step.state, &result));
  for (int64_t i = 0; i < frame.n_owned; ++i)
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) gradients[9 * i + 3 * a + b] = virials[9 * i + 3 * b + a];
  return code;
}

int weighted_gradients(cf_step& step, const cf_structures& in, const double* weights,
                       double* gradients) {
  cf_frame frame;
  cf_list list;
  step.n_evaluated = -1;
  int code = frame_of(step, in, frame, list);
  if (code != CF_OK) return code;
  const int stages = static_cast<int>(cf_model_query(step.model, "n_stages"));
  const bool charges = weights != nullptr;
  const size_t n = in.n_atoms, width = charges ? step.n_charges : 1;
  Numbers seeds(n * width, 1.0), whole, along;
  if (charges) std::copy_n(weights, n * width, seeds.begin());
  if (stages == 1) return one_pass(step, frame, charges, seeds, gradients);
  const Images images(frame);
  code = forward(step, images, stages);
  std::vector<Numbers> first;
  if (code == CF_OK) code = backward(step, images, stages, charges, seeds, -1, first, whole);
  Numbers placed(seeds.size());
  for (int b = 0; code == CF_OK && b < 3; ++b) {
    for (size_t k = 0; k < seeds.size(); ++k)
      placed[k] = seeds[k] * in.positions[3 * (k / width) + b];
    code = backward(step, images, stages, charges, placed, b, first, along);
    for (size_t i = 0; i < n; ++i)
      for (int a = 0; a < 3; ++a)
        gradients[9 * i + 3 * a + b] =
            along[3 * i + a] - in.positions[3 * i + b] * whole[3 * i + a];
  }
  return code;
}

}  // namespace

extern "C" int cf_step_weighted_gradients(cf_step* step, const cf_structures* structures,
                                          const double* weights, double* gradients) {
  return on_step(step, [&] {
    check_structures(structures);
    if (structures->n_atoms > 0) need({gradients}, "gradients");
    return weighted_gradients(*step, *structures, weights, gradients);
  });
}
