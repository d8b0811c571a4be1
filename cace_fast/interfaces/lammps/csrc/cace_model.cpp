#include "cace_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "neigh_list.h"

using namespace LAMMPS_NS;

namespace {

const char* const SYMBOLS[] = {
    "",   "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si",
    "P",  "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru",
    "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",
    "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac",
    "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf",
    "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};
constexpr int N_SYMBOLS = sizeof SYMBOLS / sizeof SYMBOLS[0];

int32_t species_of(const cf_model* model, const std::string& element) {
  for (int z = 1; z < N_SYMBOLS; ++z)
    if (element == SYMBOLS[z]) return cf_model_row(model, z);
  return -1;
}

std::string elements_of(const cf_model* model) {
  std::string out;
  for (int32_t s = 0; s < cf_model_query(model, "n_elements"); ++s) {
    const int32_t z = cf_model_element(model, s);
    out += (s ? " " : "") + (z > 0 && z < N_SYMBOLS ? SYMBOLS[z] : "Z = " + std::to_string(z));
  }
  return out;
}

int width_of(int message, int precision) { return precision == 32 ? (message + 1) / 2 : message; }

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

CaceModel::CaceModel(LAMMPS* lmp, const std::string& path, const std::vector<std::string>& elements,
                     const CaceSettings& settings)
    : Pointers(lmp), settings_(settings) {
  for (const char* end : {".pth", ".pt", ".ckpt"})
    if (ends_with(path, end))
      throw std::runtime_error(path +
                               " is a file of Python: write it anew once with 'cace-fast convert " +
                               path + " model.safetensors', and give that");
  char text[CF_ERROR_LENGTH] = "";
  const char* key = settings.energy_key.empty() ? nullptr : settings.energy_key.c_str();
  if (cf_model_open(path.c_str(), key, settings.output_index, &model_, text) != CF_OK ||
      cf_state_create(model_, settings.precision, &state_, text) != CF_OK ||
      cf_pairs_create(&pairs_, text) != CF_OK)
    throw std::runtime_error(path + ": " + text);
  cf_state_threads(state_, settings.threads);
  n_stages_ = int(cf_model_query(model_, "n_stages"));
  n_charges_ = int(cf_model_query(model_, "n_charges"));
  species_of_.assign(elements.size() + 1, -1);
  for (size_t type = 1; type <= elements.size(); ++type) {
    const std::string& element = elements[type - 1];
    if (element == "NULL") continue;
    species_of_[type] = species_of(model_, element);
    if (species_of_[type] < 0)
      throw std::runtime_error(path + " knows " + elements_of(model_) + ", not " + element +
                               ": give NULL for types that take no part");
  }
  for (int32_t s = 0; s < cf_model_query(model_, "n_elements"); ++s)
    half_.push_back(cf_model_half_distance(model_, s));
  int32_t n_terms;
  terms_ = cf_model_terms(model_, &n_terms);
  for (int32_t k = 0; k < n_terms; ++k)
    sums_.emplace_back(new CaceSum(lmp, terms_[k], settings.kspace));
}

CaceModel::~CaceModel() {
  sums_.clear();
  cf_pairs_free(pairs_);
  if (state_) cf_state_free(state_);
  if (model_) cf_model_free(model_);
}

int CaceModel::message_doubles(int t) const {
  return width_of(cf_model_message_size(model_, t), settings_.precision);
}

int CaceModel::n_inputs(std::string& keys) const {
  int n = 0;
  for (int32_t head = 0; head < cf_model_query(model_, "n_heads"); ++head) {
    int32_t width;
    const double* fixed;
    for (int32_t k = 0; const char* key = cf_model_extra(model_, head, k, &width, &fixed); ++k) {
      if (fixed) continue;
      keys += (keys.empty() ? "" : ", ") + std::string(key);
      n += width;
    }
  }
  return n;
}

void CaceModel::take_list(int n_owned, int n_all, const int* type, const NeighList& list,
                          CaceOutcome& outcome) {
  outcome.part([&](char* text) {
    species_.resize(n_all + 1);
    for (int i = 0; i < n_all; ++i) species_[i] = species_of_[type[i]];
    const cf_neighbor_rows rows = {list.inum, NEIGHMASK, list.ilist, list.numneigh,
                                   list.firstneigh};
    return cf_pairs_set_rows(pairs_, n_owned, n_all, species_.data(), &rows, settings_.threads,
                             text);
  });
}

// The inputs of all heads, in the order of the model's read-outs; fixed charges come from the model.
void CaceModel::take_inputs(int n_owned, const double* inputs) {
  std::string keys;
  const int n_given = n_inputs(keys), n_heads = int(cf_model_query(model_, "n_heads"));
  extras_.resize(n_heads);
  extras_of_head_.assign(n_heads, nullptr);
  int given = 0;
  for (int32_t head = 0; head < n_heads; ++head) {
    const int n = cf_model_extras(model_, head);
    if (n <= 0) continue;
    extras_[head].resize(size_t(n_owned) * n + 1);
    int32_t width, column = 0;
    const double* fixed;
    for (int32_t k = 0; cf_model_extra(model_, head, k, &width, &fixed); ++k, column += width) {
      for (int i = 0; i < n_owned; ++i)
        for (int c = 0; c < width; ++c)
          extras_[head][size_t(i) * n + column + c] = species_[i] < 0 ? 0.0
                                                      : fixed
                                                          ? fixed[species_[i]]
                                                          : inputs[size_t(i) * n_given + given + c];
      if (!fixed) given += width;
    }
    extras_of_head_[head] = extras_[head].data();
  }
}

void CaceModel::check_distances(const CaceDomain& domain, CaceOutcome& outcome) {
  if (settings_.min_dist < 0.0) return;
  const double most = settings_.min_dist > 0.0
                          ? settings_.min_dist
                          : 2.0 * *std::max_element(half_.begin(), half_.end());
  int32_t atoms[2];
  double distance = cf_pairs_closest(pairs_, domain.x, nullptr, settings_.threads, atoms);
  if (!(distance < most)) return;
  double allowed = settings_.min_dist;
  if (allowed == 0.0) {
    const double share =
        cf_pairs_closest_of_kind(pairs_, domain.x, nullptr, species_.data(), int32_t(half_.size()),
                                 half_.data(), settings_.threads, atoms);
    if (!(share < 1.0)) return;
    allowed = half_[species_[atoms[0]]] + half_[species_[atoms[1]]];
    distance = share * allowed;
  }
  outcome.part([&](char* text) {
    snprintf(text, CF_ERROR_LENGTH,
             "two atoms are %.4g A apart, closer than %.4g A: the structure has collapsed, or "
             "min_dist is too large for it (min_dist -1: any distance)",
             distance, allowed);
    return int(CF_TOO_CLOSE);
  });
  outcome.atoms[0] = atoms[0];
  outcome.atoms[1] = atoms[1];
}

void CaceModel::evaluate(const CaceDomain& domain, const double* inputs, Border& border,
                         CaceOutcome& outcome) {
  const size_t n = domain.n_owned, n_all = domain.n_all;
  energies.resize(n + 1);
  long_range_energies.assign(n + 1, 0.0);
  forces.resize(3 * n_all + 3);
  if (domain.atom_virials) atom_virials.resize(9 * n_all + 9);
  std::fill_n(virial, 9, 0.0);
  std::fill_n(long_range_virial, 9, 0.0);
  take_inputs(domain.n_owned, inputs);
  if (outcome.good()) check_distances(domain, outcome);

  cf_list list;
  cf_pairs_list(pairs_, &list);
  const double size = double(domain.box.n_all);
  cf_frame frame = {};
  frame.n_owned = domain.n_owned;
  frame.n_all = domain.n_all;
  frame.n_systems = 1;
  frame.species = species_.data();
  frame.positions = domain.x;
  frame.system_size = &size;
  frame.extras = extras_of_head_.data();
  frame.list = &list;
  const cf_result result = {energies.data(), forces.data(), domain.virial ? virial : nullptr,
                            domain.atom_virials ? atom_virials.data() : nullptr};

  outcome.phase(state_, [&] { return cf_begin(state_, &frame); });
  const int last = n_stages_ - 1;
  for (int t = 0; t < last; ++t) {
    outcome.phase(state_, [&] { return cf_forward(state_, t); });
    if (message_doubles(t) > 0) border.to_ghosts(*this, t);
  }
  const bool resolve = domain.centroid_virials && n_stages_ > 1;
  if (n_charges_ == 0 && !resolve) {
    outcome.phase(state_, [&] { return cf_turn(state_); });
    if (!sums_.empty()) sum_long_range(domain, outcome);  // of fixed charges
  } else {
    outcome.phase(state_, [&] { return cf_forward(state_, last); });
    if (!sums_.empty()) sum_long_range(domain, outcome);
    outcome.phase(state_, [&] { return cf_backward(state_, last); });
  }
  for (int t = last - 1; t >= 0; --t) {
    if (resolve) keep_gradients(domain, t, outcome);
    if (message_doubles(t) > 0) border.to_owners(*this, t);
    outcome.phase(state_, [&] { return cf_backward(state_, t); });
  }
  outcome.phase(state_, [&] { return cf_finish(state_, &result); });
  if (resolve) resolve_virials(domain, border, outcome);
  if (!outcome.good()) return;
  for (size_t i = 0; i < n; ++i) energies[i] += cf_model_isolated(model_, species_[i]);
  for (size_t i = 0; !sums_.empty() && i < 3 * n; ++i) forces[i] += long_range_forces_[i];
}

// What ghosts have got for their messages of generation t, before it goes to their owners.
void CaceModel::keep_gradients(const CaceDomain& domain, int t, CaceOutcome& outcome) {
  const size_t width = cf_model_message_size(model_, t);
  gradients_.resize(n_stages_);
  gradients_[t].assign(domain.n_all * width + 1, 0.0);
  const cf_atoms ghosts = {domain.n_all - domain.n_owned, domain.n_owned, nullptr};
  double* rows = gradients_[t].data() + domain.n_owned * width;
  outcome.phase(state_, [&] { return cf_pack_gradients(state_, t, &ghosts, 64, rows); });
}

// Virials of atoms over several hops, sum_j (r_j - r_i)_b dE_j/dr_ia: three more backward passes, of energies
// weighted with where their atoms are (docs/theory.md of cace-fast, section 10).
void CaceModel::resolve_virials(const CaceDomain& domain, Border& border, CaceOutcome& outcome) {
  const int n = domain.n_owned, n_all = domain.n_all, last = n_stages_ - 1;
  const cf_atoms owned = {n, 0, nullptr}, ghosts = {n_all - n, n, nullptr};
  std::vector<double> weights(n + 1), found(3 * size_t(n_all) + 3), rows, half;
  const cf_result result = {nullptr, found.data(), nullptr, nullptr};
  for (int b = 0; b < 3; ++b) {
    const double origin = n ? domain.x[b] : 0.0;  // near: float32 has few digits
    for (int i = 0; i < n; ++i) weights[i] = domain.x[3 * size_t(i) + b] - origin;
    outcome.phase(state_, [&] { return cf_rewind(state_, 0); });
    outcome.phase(state_, [&] { return cf_energy_weights(state_, weights.data()); });
    outcome.phase(state_, [&] { return cf_backward(state_, last); });
    for (int t = last - 1; t >= 0; --t) {
      const size_t width = cf_model_message_size(model_, t);
      half.assign(n_all * width + 1, 0.0);
      rows.assign(2 * n_all * width + 1, 0.0);
      double* to = half.data() + n * width;
      outcome.phase(state_, [&] { return cf_pack_gradients(state_, t, &ghosts, 64, to); });
      for (size_t i = 0; i < size_t(n_all); ++i) {
        std::copy_n(&gradients_[t][i * width], width, &rows[2 * i * width]);
        std::copy_n(&half[i * width], width, &rows[(2 * i + 1) * width]);
      }
      if (width > 0) border.placed_to_owners(rows.data(), int(width), b, origin);
      for (size_t i = 0; i < size_t(n); ++i)
        std::copy_n(&rows[(2 * i + 1) * width], width, &half[i * width]);
      outcome.phase(state_,
                    [&] { return cf_unpack_gradients(state_, t, &owned, 64, half.data()); });
      outcome.phase(state_, [&] { return cf_backward(state_, t); });
    }
    outcome.phase(state_, [&] { return cf_finish(state_, &result); });
    for (size_t i = 0; outcome.good() && i < size_t(n_all); ++i)
      for (int a = 0; a < 3; ++a)
        atom_virials[9 * i + 3 * b + a] =
            (domain.x[3 * i + b] - origin) * forces[3 * i + a] - found[3 * i + a];
  }
}

// All Ewald terms of the model: energies and forces, and dE/dq for the backward passes.
void CaceModel::sum_long_range(const CaceDomain& domain, CaceOutcome& outcome) {
  const size_t n = domain.n_owned;
  charges.assign(n * n_charges_ + 1, 0.0);
  slopes_.assign(n * n_charges_ + 1, 0.0);
  long_range_forces_.assign(3 * n + 3, 0.0);
  if (n_charges_) outcome.phase(state_, [&] { return cf_charges(state_, charges.data()); });
  for (size_t k = 0; k < sums_.size(); ++k) {
    const cf_long_range& term = terms_[k];
    const size_t n_q = term.n_charges;
    q_.resize(n * n_q + 1);
    own_energies_.assign(n * n_q + 1, 0.0);
    own_slopes_.assign(n * n_q + 1, 0.0);
    own_forces_.assign(3 * n + 3, 0.0);
    for (size_t i = 0; i < n; ++i)
      for (size_t c = 0; c < n_q; ++c)
        q_[i * n_q + c] = !term.fixed       ? charges[i * n_charges_ + term.first_charge + c]
                          : species_[i] < 0 ? 0.0
                                            : term.fixed[species_[i]];
    double strain[9] = {0.0};
    sums_[k]->run(domain.box, domain.n_owned, q_.data(), domain.x, own_energies_.data(),
                  own_slopes_.data(), own_forces_.data(), domain.virial ? strain : nullptr,
                  outcome);
    for (size_t i = 0; i < n * n_q; ++i)
      long_range_energies[i / n_q] += term.weight * own_energies_[i];
    for (size_t i = 0; i < 3 * n; ++i) long_range_forces_[i] += term.weight * own_forces_[i];
    for (int a = 0; a < 9; ++a) long_range_virial[a] += term.weight * strain[a];
    for (size_t i = 0; !term.fixed && i < n; ++i)
      for (size_t c = 0; c < n_q; ++c)
        slopes_[i * n_charges_ + term.first_charge + c] += term.weight * own_slopes_[i * n_q + c];
  }
  if (n_charges_)
    outcome.phase(state_, [&] { return cf_set_charge_gradient(state_, slopes_.data()); });
}

int CaceModel::pack(int t, bool back, const cf_atoms& atoms, double* buffer, CaceOutcome& outcome) {
  const int width = cf_model_message_size(model_, t), precision = settings_.precision;
  const int n = width_of(atoms.count * width, precision);
  if (n > 0) buffer[n - 1] = 0.0;  // the second half of an odd number of floats
  outcome.phase(state_, [&] {
    return back ? cf_pack_gradients(state_, t, &atoms, precision, buffer)
                : cf_pack_messages(state_, t, &atoms, precision, buffer);
  });
  if (!outcome.good()) std::fill_n(buffer, n, 0.0);
  return n;
}

void CaceModel::unpack(int t, bool back, const cf_atoms& atoms, const double* buffer,
                       CaceOutcome& outcome) {
  outcome.phase(state_, [&] {
    return back ? cf_unpack_gradients(state_, t, &atoms, settings_.precision, buffer)
                : cf_unpack_messages(state_, t, &atoms, settings_.precision, buffer);
  });
}

double CaceModel::bytes() const {
  double sum = double(cf_state_bytes(state_));
  for (const auto& term : sums_) sum += term->bytes();
  return sum + 8.0 * double(forces.capacity() + atom_virials.capacity());
}

std::vector<std::pair<std::string, double>> CaceModel::seconds() const {
  std::vector<std::pair<std::string, double>> out;
  for (const char* part :
       {"pairs", "radial", "sums", "mix", "contract", "readout", "edges", "messages", "forces"})
    out.emplace_back(part, cf_state_seconds(state_, part));
  const char* const names[] = {"long range", "transforms", "long-range exchange"};
  for (int k = 0; k < 3 && !sums_.empty(); ++k) {
    double sum = 0.0;
    for (const auto& term : sums_) sum += term->seconds()[k];
    out.emplace_back(names[k], sum);
  }
  return out;
}
