// How a parallel host drives the engine: a periodic box cut into domains along x, each with ghosts,
// and what the domains exchange between phases done by hand.  One domain or several give the same.
//
//   two_domains MODEL.safetensors STRUCTURE N_DOMAINS [ENERGY_KEY]
//
// STRUCTURE is text: cell (9 numbers), number of atoms, then "Z x y z" for each atom, Z being its
// atomic number, 0 that of an atom that takes no part.  Prints the energy in eV, isolated atoms included, then the forces in eV/A.
//
// A host without Python compiles it with the headers and the library of the installed package:
//
//   g++ -std=c++17 two_domains.cpp -I<headers> <folder>/libcace_fast.so -o two_domains
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "cace_fast.h"
#include "cace_fast_step.h"

using Numbers = std::vector<double>;

static void check(int code, const char* text) {
  if (code == CF_OK) return;
  std::fprintf(stderr, "two_domains: %s (code %d)\n", text, code);
  std::exit(1);
}

struct Box {
  double cell[9];
  std::vector<int32_t> species;
  Numbers positions;
};

static Box read_box(const char* path, const cf_model* model) {
  std::ifstream in(path);
  Box box;
  size_t n = 0;
  for (double& h : box.cell) in >> h;
  in >> n;
  box.species.resize(n);
  box.positions.resize(3 * n);
  for (size_t i = 0; i < n; ++i) {
    int32_t z = -1;
    in >> z >> box.positions[3 * i] >> box.positions[3 * i + 1] >> box.positions[3 * i + 2];
    box.species[i] = cf_model_row(model, z);
    if (in && z != 0 && box.species[i] < 0) check(CF_INVALID, "the model does not know an element");
  }
  if (!in) check(CF_INVALID, "cannot read the structure");
  return box;
}

// What one rank of a parallel run holds.
struct Domain {
  std::vector<int32_t> atom;  // of the box, for each local atom: owned ones first, then ghosts
  std::vector<int32_t> species;
  Numbers positions;
  int32_t n_owned = 0;
  cf_pairs* pairs = nullptr;
  cf_list list;
  cf_frame frame;
  cf_state* state = nullptr;

  int32_t n_ghosts() const { return int32_t(atom.size()) - n_owned; }
};

static void add_atom(Domain& d, const Box& box, int32_t i, const double* r) {
  d.atom.push_back(i);
  d.species.push_back(box.species[i]);
  d.positions.insert(d.positions.end(), r, r + 3);
}

static double distance2(const double* a, const double* b) {
  double sum = 0;
  for (int k = 0; k < 3; ++k) sum += (a[k] - b[k]) * (a[k] - b[k]);
  return sum;
}

// Owned atoms, then every image within the cutoff of one of them: periodic ones and those of other
// domains alike.  Brute force: the point here is what is exchanged.
static void fill(Domain& d, const Box& box, double cutoff, const std::vector<int>& owner,
                 int rank) {
  const int32_t n = int32_t(box.species.size());
  for (int32_t i = 0; i < n; ++i)
    if (owner[i] == rank) add_atom(d, box, i, &box.positions[3 * i]);
  d.n_owned = int32_t(d.atom.size());
  const int images = 3;
  for (int a = -images; a <= images; ++a)
    for (int b = -images; b <= images; ++b)
      for (int c = -images; c <= images; ++c)
        for (int32_t i = 0; i < n; ++i) {
          if (!a && !b && !c && owner[i] == rank) continue;
          double r[3];
          for (int k = 0; k < 3; ++k)
            r[k] = box.positions[3 * i + k] + a * box.cell[k] + b * box.cell[3 + k] +
                   c * box.cell[6 + k];
          for (int32_t j = 0; j < d.n_owned; ++j)
            if (distance2(r, &d.positions[3 * j]) < cutoff * cutoff) {
              add_atom(d, box, i, r);
              break;
            }
        }
}

static void make_pairs(Domain& d, double cutoff) {
  const int32_t n_all = int32_t(d.atom.size());
  std::vector<std::vector<int32_t>> near(d.n_owned);
  std::vector<int32_t> n_near;
  std::vector<const int32_t*> rows;
  for (int32_t j = 0; j < d.n_owned; ++j) {
    for (int32_t i = 0; i < n_all; ++i)
      if (i != j && distance2(&d.positions[3 * i], &d.positions[3 * j]) < cutoff * cutoff)
        near[j].push_back(i);
    n_near.push_back(int32_t(near[j].size()));
    rows.push_back(near[j].data());
  }
  const cf_neighbor_rows given{d.n_owned, -1, nullptr, n_near.data(), rows.data()};
  char error[CF_ERROR_LENGTH];
  check(cf_pairs_create(&d.pairs, error), error);
  check(cf_pairs_set_rows(d.pairs, d.n_owned, n_all, d.species.data(), &given, 1, error), error);
  cf_pairs_list(d.pairs, &d.list);
}

static void append(Numbers& to, const double* from, int n) { to.insert(to.end(), from, from + n); }

// Moves rows of `width` numbers from owners to ghosts, or adds those of ghosts to owners.
class Exchange {
 public:
  Exchange(const std::vector<Domain>& domains, size_t n_atoms) : domains_(domains), n_(n_atoms) {}

  // of[d] [n_owned][width] -> the ghosts of each domain [n_ghosts][width]
  std::vector<Numbers> to_ghosts(const std::vector<Numbers>& of, int width) const {
    Numbers all(n_ * width);
    for (size_t d = 0; d < domains_.size(); ++d)
      for (int32_t i = 0; i < domains_[d].n_owned; ++i)
        for (int k = 0; k < width; ++k) all[domains_[d].atom[i] * width + k] = of[d][i * width + k];
    std::vector<Numbers> out;
    for (const Domain& d : domains_) {
      out.emplace_back();
      for (size_t i = d.n_owned; i < d.atom.size(); ++i)
        append(out.back(), all.data() + d.atom[i] * width, width);
    }
    return out;
  }

  // ghosts[d] [n_ghosts][width] -> their sums for the owned atoms of each domain
  std::vector<Numbers> to_owners(const std::vector<Numbers>& ghosts, int width) const {
    Numbers all(n_ * width, 0.0);
    for (size_t d = 0; d < domains_.size(); ++d)
      for (int32_t g = 0; g < domains_[d].n_ghosts(); ++g)
        for (int k = 0; k < width; ++k)
          all[domains_[d].atom[domains_[d].n_owned + g] * width + k] += ghosts[d][g * width + k];
    std::vector<Numbers> out;
    for (const Domain& d : domains_) {
      out.emplace_back();
      for (int32_t i = 0; i < d.n_owned; ++i)
        append(out.back(), all.data() + d.atom[i] * width, width);
    }
    return out;
  }

 private:
  const std::vector<Domain>& domains_;
  const size_t n_;
};

// One buffer of `width` numbers for each owned atom or ghost of each domain.
static std::vector<Numbers> buffers(const std::vector<Domain>& domains, int width, bool ghosts) {
  std::vector<Numbers> out;
  out.reserve(domains.size());
  for (const Domain& d : domains)
    out.emplace_back(size_t(ghosts ? d.n_ghosts() : d.n_owned) * width + 1);
  return out;
}

static cf_atoms owned(const Domain& d) { return {d.n_owned, 0, nullptr}; }
static cf_atoms ghosts(const Domain& d) { return {d.n_ghosts(), d.n_owned, nullptr}; }

static void exchange_messages(std::vector<Domain>& domains, const Exchange& exchange,
                              const cf_model* model, int t) {
  const int width = cf_model_message_size(model, t);
  std::vector<Numbers> rows = buffers(domains, width, false);
  for (size_t d = 0; d < domains.size(); ++d) {
    const cf_atoms atoms = owned(domains[d]);
    check(cf_pack_messages(domains[d].state, t, &atoms, 64, rows[d].data()), "cf_pack_messages");
  }
  const std::vector<Numbers> arrived = exchange.to_ghosts(rows, width);
  for (size_t d = 0; d < domains.size(); ++d) {
    const cf_atoms atoms = ghosts(domains[d]);
    check(cf_unpack_messages(domains[d].state, t, &atoms, 64, arrived[d].data()),
          "cf_unpack_messages");
  }
}

static void exchange_gradients(std::vector<Domain>& domains, const Exchange& exchange,
                               const cf_model* model, int t) {
  const int width = cf_model_message_size(model, t);
  std::vector<Numbers> rows = buffers(domains, width, true);
  for (size_t d = 0; d < domains.size(); ++d) {
    const cf_atoms atoms = ghosts(domains[d]);
    check(cf_pack_gradients(domains[d].state, t, &atoms, 64, rows[d].data()), "cf_pack_gradients");
  }
  const std::vector<Numbers> arrived = exchange.to_owners(rows, width);
  for (size_t d = 0; d < domains.size(); ++d) {
    const cf_atoms atoms = owned(domains[d]);
    check(cf_unpack_gradients(domains[d].state, t, &atoms, 64, arrived[d].data()),
          "cf_unpack_gradients");
  }
}

// One Ewald term: every domain puts in its own atoms, what they give is added up (one all-reduce in a
// parallel host), and each domain finishes for its own atoms.  `q` and `slopes` are all charges of the
// owned atoms of each domain [n_owned][n_charges], and dE/dq of the terms so far.  Returns the energy.
static double long_range(std::vector<Domain>& domains, const Box& box, const cf_long_range& term,
                         int n_charges, const std::vector<Numbers>& q, std::vector<Numbers>& slopes,
                         Numbers& forces) {
  char error[CF_ERROR_LENGTH];
  cf_ewald* ewald;
  check(cf_ewald_create(&term.ewald, &ewald, error), error);
  int64_t size, n_all = 0;
  for (const Domain& d : domains) n_all += d.n_owned;
  const int n_q = term.n_charges;
  check(cf_ewald_cell(ewald, box.cell, 1, n_all, n_q, &size, error), error);
  Numbers total(size, 0.0);
  std::vector<Numbers> own = buffers(domains, n_q, false);
  for (size_t k = 0; k < domains.size(); ++k) {
    const Domain& d = domains[k];
    for (int32_t i = 0; i < d.n_owned; ++i)
      for (int c = 0; c < n_q; ++c)
        own[k][i * n_q + c] = term.fixed ? (d.species[i] < 0 ? 0.0 : term.fixed[d.species[i]])
                                         : q[k][i * n_charges + term.first_charge + c];
    check(cf_ewald_sums(ewald, d.n_owned, own[k].data(), d.positions.data(), total.data(), error),
          error);
  }
  double energy = 0.0;
  for (size_t k = 0; k < domains.size(); ++k) {
    Domain& d = domains[k];
    Numbers energies(size_t(d.n_owned) * n_q), s(energies.size()), f(3 * size_t(d.n_owned));
    check(cf_ewald_finish(ewald, d.n_owned, own[k].data(), d.positions.data(), total.data(),
                          energies.data(), s.data(), f.data(), nullptr, error),
          error);
    for (double e : energies) energy += term.weight * e;
    for (size_t i = 0; i < f.size(); ++i) forces[3 * d.atom[i / 3] + i % 3] += term.weight * f[i];
    if (term.fixed) continue;
    for (int32_t i = 0; i < d.n_owned; ++i)
      for (int c = 0; c < n_q; ++c)
        slopes[k][i * n_charges + term.first_charge + c] += term.weight * s[i * n_q + c];
  }
  cf_ewald_free(ewald);
  return energy;
}

// All Ewald terms of the model.  Returns their energy.
static double all_long_range(std::vector<Domain>& domains, const Box& box, const cf_model* model,
                             Numbers& forces) {
  int32_t n_terms;
  const cf_long_range* terms = cf_model_terms(model, &n_terms);
  const int n_charges = int(cf_model_query(model, "n_charges"));
  std::vector<Numbers> q = buffers(domains, n_charges, false), slopes = q;
  for (size_t d = 0; d < domains.size() && n_charges; ++d)
    check(cf_charges(domains[d].state, q[d].data()), "cf_charges");
  double energy = 0.0;
  for (int32_t k = 0; k < n_terms; ++k)
    energy += long_range(domains, box, terms[k], n_charges, q, slopes, forces);
  for (size_t d = 0; d < domains.size() && n_charges; ++d)
    check(cf_set_charge_gradient(domains[d].state, slopes[d].data()), "cf_set_charge_gradient");
  return energy;
}

static std::vector<Domain> make_domains(const Box& box, const cf_model* model, int n_domains) {
  const size_t n = box.species.size();
  std::vector<int> owner(n);
  for (size_t i = 0; i < n; ++i) {
    const int slab = int(box.positions[3 * i] / box.cell[0] * n_domains);
    owner[i] = slab < 0 ? 0 : slab >= n_domains ? n_domains - 1 : slab;
  }
  std::vector<Domain> domains(n_domains);
  for (int k = 0; k < n_domains; ++k) {
    Domain& d = domains[k];
    fill(d, box, cf_model_cutoff(model), owner, k);
    make_pairs(d, cf_model_cutoff(model));
    d.frame = {};
    d.frame.n_owned = d.n_owned;
    d.frame.n_all = int32_t(d.atom.size());
    d.frame.n_systems = 1;
    d.frame.species = d.species.data();
    d.frame.positions = d.positions.data();
    d.frame.list = &d.list;
    char error[CF_ERROR_LENGTH];
    check(cf_state_create(model, 64, &d.state, error), error);
    check(cf_begin(d.state, &d.frame), cf_state_error(d.state));
  }
  return domains;
}

// Returns the read-outs' energy and adds the forces on owned atoms and ghosts to those of the box.
static double finish(std::vector<Domain>& domains, Numbers& forces) {
  double energy = 0.0;
  for (Domain& d : domains) {
    Numbers energies(d.n_owned + 1), f(3 * d.atom.size() + 1);
    const cf_result result{energies.data(), f.data(), nullptr, nullptr};
    check(cf_finish(d.state, &result), cf_state_error(d.state));
    for (int32_t i = 0; i < d.n_owned; ++i) energy += energies[i];
    for (size_t i = 0; i < 3 * d.atom.size(); ++i) forces[3 * d.atom[i / 3] + i % 3] += f[i];
    cf_state_free(d.state);
    cf_pairs_free(d.pairs);
  }
  return energy;
}

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) check(CF_INVALID, "3 or 4 arguments are needed");
  char error[CF_ERROR_LENGTH];
  cf_model* model = nullptr;
  check(cf_model_open(argv[1], argc == 5 ? argv[4] : nullptr, -1, &model, error), error);
  const Box box = read_box(argv[2], model);
  const size_t n = box.species.size();
  std::vector<Domain> domains = make_domains(box, model, int(std::strtol(argv[3], nullptr, 10)));
  const Exchange exchange(domains, n);
  const int stages = int(cf_model_query(model, "n_stages"));
  const bool turns =
      cf_model_query(model, "n_charges") == 0;  // nothing is between the last two passes
  for (int t = 0; t < stages; ++t) {
    for (Domain& d : domains)
      check(turns && t == stages - 1 ? cf_turn(d.state) : cf_forward(d.state, t),
            cf_state_error(d.state));
    if (t < stages - 1) exchange_messages(domains, exchange, model, t);
  }
  Numbers forces(3 * n, 0.0);
  double energy = all_long_range(domains, box, model, forces);
  for (int32_t species : box.species) energy += cf_model_isolated(model, species);
  for (int t = turns ? stages - 2 : stages - 1; t >= 0; --t) {
    if (t < stages - 1) exchange_gradients(domains, exchange, model, t);
    for (Domain& d : domains) check(cf_backward(d.state, t), cf_state_error(d.state));
  }
  energy += finish(domains, forces);
  cf_model_free(model);
  std::printf("%.15g\n", energy);
  for (size_t i = 0; i < n; ++i)
    std::printf("%.15g %.15g %.15g\n", forces[3 * i], forces[3 * i + 1], forces[3 * i + 2]);
  return 0;
}
