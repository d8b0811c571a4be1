// Settings of pair_style cace, and the order of a step; pair_cace_results.cpp has what goes to LAMMPS.
#include "pair_cace.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

enum { kAll, kLists, kBorder };  // of seconds_

static const char* const KEYWORDS[] = {"precision",    "threads",     "kspace",   "k_set",
                                       "tolerance",    "slab_vacuum", "min_dist", "energy_key",
                                       "output_index", "charges",     "inputs",   "timing"};

static bool is_keyword(const std::string& word) {
  return std::find(std::begin(KEYWORDS), std::end(KEYWORDS), word) != std::end(KEYWORDS);
}

PairCACE::PairCACE(LAMMPS* lmp) : Pair(lmp) {
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
  nextra = 6;
  pvector = totals_;
}

PairCACE::~PairCACE() {
  pvector = nullptr;  // ours, not memory's
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairCACE::settings(int narg, char** arg) {
  settings_ = CaceSettings();
  input_names_.clear();
  charges_ = Charges::kNone;
  timing_ = false;
  for (int i = 0; i < narg;) {
    if (!is_keyword(arg[i])) {
      std::string known;
      for (const char* word : KEYWORDS) known += (known.empty() ? "" : ", ") + std::string(word);
      error->all(FLERR, "pair_style cace: unknown keyword {}; there are {}", arg[i], known);
    }
    if (i + 1 >= narg) error->all(FLERR, "pair_style cace: keyword {} needs a value", arg[i]);
    i += set_keyword(arg[i], narg - i, arg + i);
  }
  if (settings_.kspace.tolerance == 0.0)
    settings_.kspace.tolerance = settings_.precision == 32 ? 1e-6 : 1e-10;
  settings_.kspace.threads = settings_.threads;
  if (!strcmp(update->unit_style, "metal")) unit_ = 1.0;
  else if (!strcmp(update->unit_style, "real")) unit_ = 23.060549;  // kcal/mol, as LAMMPS has it
  else error->all(FLERR, "pair_style cace needs units metal or real, not {}", update->unit_style);
}

// Takes a keyword and its values; returns how many words these are.
int PairCACE::set_keyword(const std::string& key, int narg, char** arg) {
  const std::string word = arg[1];
  const auto choose = [&](const std::string& first, const std::string& second) {
    if (word != first && word != second)
      error->all(FLERR, "pair_style cace: {} is {} or {}, not {}", key, first, second, word);
    return word == first;
  };
  const auto number = [&] { return utils::numeric(FLERR, arg[1], false, lmp); };
  const auto positive = [&](double value) {
    if (!(value > 0.0))
      error->all(FLERR, "pair_style cace: {} has to be positive, not {}", key, word);
    return value;
  };
  if (key == "precision") settings_.precision = choose("single", "double") ? 32 : 64;
  else if (key == "threads")
    settings_.threads = int(positive(utils::inumeric(FLERR, arg[1], false, lmp)));
  else if (key == "kspace") set_kspace(word);
  else if (key == "k_set") settings_.kspace.frozen = !choose("sphere", "frozen");
  else if (key == "tolerance") settings_.kspace.tolerance = positive(number());
  else if (key == "slab_vacuum") settings_.kspace.slab_vacuum = positive(number());
  else if (key == "min_dist") settings_.min_dist = number();
  else if (key == "energy_key") settings_.energy_key = word;
  else if (key == "output_index")
    settings_.output_index = utils::inumeric(FLERR, arg[1], false, lmp);
  else if (key == "charges")
    charges_ = choose("atom", "property") ? Charges::kAtom : Charges::kProperty;
  else if (key == "timing") timing_ = utils::logical(FLERR, arg[1], false, lmp);
  else {
    int n = 1;
    while (n < narg && !is_keyword(arg[n])) input_names_.push_back(arg[n++]);
    return n;
  }
  return 2;
}

void PairCACE::set_kspace(const std::string& word) {
  if (word == "auto") settings_.kspace.method = CF_EWALD_AUTO;
  else if (word == "direct") settings_.kspace.method = CF_EWALD_DIRECT;
  else if (word == "mesh") settings_.kspace.method = CF_EWALD_MESH;
  else error->all(FLERR, "pair_style cace: kspace is auto, direct or mesh, not {}", word);
}

void PairCACE::allocate() {
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) setflag[i][j] = 0;
}

void PairCACE::coeff(int narg, char** arg) {
  if (!allocated) allocate();
  const int n_models = narg - 2 - atom->ntypes;
  if (n_models < 1 || strcmp(arg[0], "*") || strcmp(arg[1], "*"))
    error->all(FLERR,
               "pair_coeff of pair_style cace: expected * * FILE [FILE ...] and an element or "
               "NULL for each of {} types",
               atom->ntypes);
  if (cf_version() / 100 != CF_VERSION_MAJOR || cf_version() < CF_VERSION)
    error->all(FLERR,
               "pair_style cace was compiled for another version of libcace_fast: run "
               "'cace-fast lammps build'");
  const std::vector<std::string> elements(arg + 2 + n_models, arg + narg);
  models_.clear();
  listed_ = false;
  // every rank reads the same file; what one of them cannot read stops all
  std::string text;
  try {
    for (int k = 0; k < n_models; ++k)
      models_.emplace_back(new CaceModel(lmp, arg[2 + k], elements, settings_));
  } catch (const std::exception& failure) {
    text = failure.what();
  }
  outcome_.reset();
  outcome_.part([&](char*) { return text.empty() ? int(CF_OK) : int(CF_INVALID); });
  outcome_.text = text;
  stop_if_failed();
  bool long_range = false;
  for (const auto& model : models_) long_range |= model->long_range();
  centroidstressflag = long_range ? CENTROID_NOTAVAIL : CENTROID_AVAIL;
  for (int i = 1; i <= atom->ntypes; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      setflag[i][j] = models_[0]->takes(i) && models_[0]->takes(j);
}

void PairCACE::init_style() {
  if (models_.empty()) error->all(FLERR, "pair_style cace: pair_coeff is missing");
  if (comm->mode != Comm::SINGLE)
    error->all(FLERR,
               "pair_style cace needs comm_modify mode single: ghosts of all types within the "
               "cutoff");
  if (domain->dimension != 3) error->all(FLERR, "pair_style cace needs dimension 3");
  if (atom->tag_enable == 0) error->all(FLERR, "pair_style cace needs atom IDs");
  for (int k = 1; k <= 3; ++k)
    if (atom->molecular != Atom::ATOMIC && force->special_lj[k] == 0.0 &&
        force->special_coul[k] == 0.0)
      error->all(
          FLERR,
          "pair_style cace needs bonded atoms in its lists: use special_bonds lj/coul 1 1 1");
  comm_forward = comm_reverse = 9;
  for (const auto& model : models_) {
    if (model->long_range()) require_boundaries();
    for (int t = 0; t < model->n_messages(); ++t)
      comm_forward = std::max(comm_forward, model->message_doubles(t));
  }
  comm_reverse = std::max(comm_reverse, 4 * comm_forward);  // placed rows: two of doubles
  comm_reverse_off = comm_reverse;                          // ghosts send with newton off as well
  find_inputs();
  if (charges_ == Charges::kAtom && !atom->q_flag)
    error->all(FLERR, "pair_style cace: charges atom needs an atom_style with charges");
  if (charges_ != Charges::kNone && models_[0]->n_charges() == 0)
    error->all(FLERR, "pair_style cace: this model has no charges");
  neighbor->add_request(this, NeighConst::REQ_FULL);
  listed_ = false;
}

void PairCACE::require_boundaries() {
  int n_periodic = 0;
  for (int a = 0; a < 3; ++a) n_periodic += domain->periodicity[a];
  if (n_periodic == 3) return;
  if (n_periodic == 2 && settings_.kspace.slab_vacuum > 0.0) {
    for (int a = 0; a < 3; ++a)
      if (!domain->periodicity[a] && (domain->boundary[a][0] != 1 || domain->boundary[a][1] != 1))
        error->all(FLERR,
                   "pair_style cace: a slab with charges needs boundary f along its normal: the "
                   "height of its box enters the energy");
    return;
  }
  error->all(FLERR,
             "pair_style cace: a model with charges needs boundary p p p, or two periodic "
             "directions and slab_vacuum");
}

// Where the further inputs of the model come from: fix property/atom of the names given, or of its keys.
void PairCACE::find_inputs() {
  inputs_.clear();
  std::string keys;
  const int wanted = models_[0]->n_inputs(keys);
  std::vector<std::string> names = input_names_;
  if (!wanted && !names.empty())
    error->all(FLERR, "pair_style cace: the model takes no inputs, and inputs names {}",
               utils::join_words(names, " "));
  if (names.empty() && wanted)
    for (const std::string& key : utils::split_words(keys))
      names.push_back(key.back() == ',' ? key.substr(0, key.size() - 1) : key);
  int found = 0;
  for (const std::string& name : names) {
    int is_double, columns;
    const int index = atom->find_custom(name.c_str(), is_double, columns);
    if (index < 0)
      error->all(FLERR,
                 "pair_style cace: the model takes {} of each atom; no fix property/atom has "
                 "the property {} (keyword inputs names others)",
                 keys, name);
    inputs_.push_back({name, is_double == 0, columns, index});
    found += std::max(columns, 1);
  }
  if (found != wanted)
    error->all(FLERR,
               "pair_style cace: the model takes {} numbers of each atom ({}), inputs gives {}",
               wanted, keys, found);
}

double PairCACE::init_one(int, int) {
  double cutoff = 0.0;
  for (const auto& model : models_) cutoff = std::max(cutoff, model->cutoff());
  return cutoff;
}

void PairCACE::compute(int eflag, int vflag) {
  const double start = MPI_Wtime();
  ev_init(eflag, vflag);
  outcome_.reset();
  if (!listed_ || neighbor->ago == 0) take_lists();
  take_inputs();
  const CaceDomain here = domain_now();
  for (const auto& model : models_) model->evaluate(here, given_.data(), *this, outcome_);
  stop_if_failed();
  add_results();
  ++n_calls_;
  seconds_[kAll] += MPI_Wtime() - start;
}

void PairCACE::take_lists() {
  const double start = MPI_Wtime();
  const int n_owned = atom->nlocal, n_all = n_owned + atom->nghost;
  for (const auto& model : models_) model->take_list(n_owned, n_all, atom->type, *list, outcome_);
  bigint here = 0;
  for (int i = 0; i < n_owned; ++i) here += models_[0]->takes(atom->type[i]);
  MPI_Allreduce(&here, &n_taking_part_, 1, MPI_LMP_BIGINT, MPI_SUM, world);
  listed_ = true;
  ++n_lists_;
  seconds_[kLists] += MPI_Wtime() - start;
}

void PairCACE::take_inputs() {
  given_.clear();
  for (int i = 0; !inputs_.empty() && i < atom->nlocal; ++i)
    for (const Input& input : inputs_)
      for (int c = 0; c < std::max(input.columns, 1); ++c) {
        double value;
        if (input.columns)
          value = input.integer ? double(atom->iarray[input.index][i][c])
                                : atom->darray[input.index][i][c];
        else
          value =
              input.integer ? double(atom->ivector[input.index][i]) : atom->dvector[input.index][i];
        given_.push_back(value);
      }
  given_.push_back(0.0);
}

CaceDomain PairCACE::domain_now() {
  CaceDomain here = {};
  here.n_owned = atom->nlocal;
  here.n_all = atom->nlocal + atom->nghost;
  here.x = here.n_all ? atom->x[0] : nullptr;
  const double* h = domain->h;
  const double cell[9] = {h[0], 0.0, 0.0, h[5], h[1], 0.0, h[4], h[3], h[2]};
  std::copy(cell, cell + 9, here.box.cell);
  here.box.periodic = 1;
  for (int a = 0; a < 3; ++a)
    if (!domain->periodicity[a]) here.box.periodic = 2 + a;
  here.box.n_all = n_taking_part_;
  here.virial = vflag_either;
  here.atom_virials = vflag_atom || cvflag_atom;
  here.centroid_virials = cvflag_atom;
  return here;
}

// Collective: an error of one rank becomes that of all, with its text and the tags of its atoms.
void PairCACE::stop_if_failed() {
  int none = 0;
  if (outcome_.all_good(world, none)) return;
  int mine = outcome_.good() ? comm->nprocs : comm->me, first;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  char text[CF_ERROR_LENGTH + 200] = "";
  if (comm->me == first) {
    std::string ids;
    for (int i : outcome_.atoms)
      if (i >= 0 && i < atom->nlocal + atom->nghost)
        ids += (ids.empty() ? "" : ", ") + std::to_string(atom->tag[i]);
    if (!ids.empty()) ids = " (atom ID " + ids + ")";
    snprintf(text, sizeof text, "%s%s", outcome_.text.c_str(), ids.c_str());
  }
  MPI_Bcast(text, sizeof text, MPI_CHAR, first, world);
  error->all(FLERR, "pair_style cace: {}{}", text,
             comm->nprocs > 1 ? fmt::format(", on rank {}", first) : "");
}

void PairCACE::to_ghosts(CaceModel& model, int t) {
  const double start = MPI_Wtime();
  crossing_ = &model;
  generation_ = t;
  back_ = false;
  comm->forward_comm(this, model.message_doubles(t));
  seconds_[kBorder] += MPI_Wtime() - start;
}

void PairCACE::to_owners(CaceModel& model, int t) {
  const double start = MPI_Wtime();
  crossing_ = &model;
  generation_ = t;
  back_ = true;
  comm->reverse_comm(this, model.message_doubles(t));
  seconds_[kBorder] += MPI_Wtime() - start;
}

// Adds rows [n_all][width] of ghosts to those of their owners.
void PairCACE::reverse(double* rows, int width) {
  crossing_ = nullptr;
  rows_ = rows;
  width_ = width;
  comm->reverse_comm(this, width);
}

void PairCACE::placed_to_owners(double* rows, int width, int axis, double origin) {
  axis_ = axis;
  origin_ = origin;
  reverse(rows, 2 * width);
  axis_ = -1;
}

int PairCACE::pack_forward_comm(int n, int* atoms, double* buffer, int, int*) {
  return crossing_->pack(generation_, false, {n, 0, atoms}, buffer, outcome_);
}

void PairCACE::unpack_forward_comm(int n, int first, double* buffer) {
  crossing_->unpack(generation_, false, {n, first, nullptr}, buffer, outcome_);
}

int PairCACE::pack_reverse_comm(int n, int first, double* buffer) {
  if (crossing_) return crossing_->pack(generation_, true, {n, first, nullptr}, buffer, outcome_);
  std::copy_n(rows_ + size_t(first) * width_, size_t(n) * width_, buffer);
  for (int i = 0; axis_ >= 0 && i < n; ++i) place(buffer + size_t(i) * width_, first + i, -1.0);
  return n * width_;
}

void PairCACE::unpack_reverse_comm(int n, int* atoms, double* buffer) {
  if (crossing_) {
    crossing_->unpack(generation_, true, {n, 0, atoms}, buffer, outcome_);
    return;
  }
  for (int i = 0; i < n; ++i, buffer += width_) {
    if (axis_ >= 0) place(buffer, atoms[i], 1.0);
    for (int k = 0; k < width_; ++k) rows_[size_t(atoms[i]) * width_ + k] += buffer[k];
  }
}

// The second half of a placed row gains the first times where an atom is.
void PairCACE::place(double* row, int i, double sign) const {
  const double x = sign * (atom->x[i][axis_] - origin_);
  for (int k = 0; k < width_ / 2; ++k) row[width_ / 2 + k] += x * row[k];
}
