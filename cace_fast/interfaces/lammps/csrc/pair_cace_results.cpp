// What pair_style cace gives to LAMMPS after a step.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "pair_cace.h"
#include "utils.h"

using namespace LAMMPS_NS;

// Places of xx, yy, zz, xy, xz, yz, yx, zx, zy in a matrix [3][3].
static const int PLACE[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};

void PairCACE::add_results() {
  const double share = 1.0 / double(models_.size());
  // otherwise LAMMPS adds what ghosts got to their owners
  const bool send_home = !force->newton_pair || models_.size() > 1;
  const int n = send_home ? atom->nlocal : atom->nlocal + atom->nghost;
  double** f = atom->f;
  for (const auto& model : models_) {
    if (send_home) reverse(model->forces.data(), 3);
    for (int i = 0; i < n; ++i)
      for (int a = 0; a < 3; ++a) f[i][a] += unit_ * share * model->forces[3 * size_t(i) + a];
    add_energies(*model, share);
    add_virials(*model, share);
  }
  if (models_.size() > 1) find_spread();
  if (models_[0]->n_charges()) {
    write_charges();
    find_totals();
  }
}

void PairCACE::add_energies(const CaceModel& model, double share) {
  for (int i = 0; i < atom->nlocal; ++i) {
    const double own = unit_ * share * model.energies[i];
    const double far = unit_ * share * model.long_range_energies[i];
    if (eflag_global) {
      eng_vdwl += own;
      eng_coul += far;
    }
    if (eflag_atom) eatom[i] += own + far;
  }
}

void PairCACE::add_virials(CaceModel& model, double share) {
  if (vflag_global)
    for (int k = 0; k < 6; ++k)
      virial[k] += unit_ * share * (model.virial[PLACE[k]] + model.long_range_virial[PLACE[k]]);
  if (!vflag_atom && !cvflag_atom) return;
  const bool send_home = !force->newton_pair || models_.size() > 1;
  if (send_home) reverse(model.atom_virials.data(), 9);
  const int n = send_home ? atom->nlocal : atom->nlocal + atom->nghost;
  // the long range has no virials of atoms: equal shares, which sum to the total
  double all[9], far[9];
  MPI_Allreduce(model.long_range_virial, all, 9, MPI_DOUBLE, MPI_SUM, world);
  for (int k = 0; k < 9; ++k) far[k] = n_taking_part_ ? all[k] / double(n_taking_part_) : 0.0;
  for (int i = 0; i < n; ++i) {
    double w[9];
    const bool here = i < atom->nlocal && model.takes(atom->type[i]);
    for (int k = 0; k < 9; ++k)
      w[k] = unit_ * share * (model.atom_virials[9 * size_t(i) + k] + (here ? far[k] : 0.0));
    for (int k = 0; vflag_atom && k < 6; ++k)
      vatom[i][k] += k < 3 ? w[PLACE[k]] : 0.5 * (w[PLACE[k]] + w[PLACE[k + 3]]);
    for (int k = 0; cvflag_atom && k < 9; ++k) cvatom[i][k] += w[PLACE[k]];
  }
}

// Standard deviations of a committee: forces of each atom, their length, and the energy.
void PairCACE::find_spread() {
  const size_t n = atom->nlocal, n_models = models_.size();
  forces_std_.assign(3 * n + 3, 0.0);
  spread_.assign(atom->nmax + 1, 0.0);
  double largest = 0.0;
  for (size_t i = 0; i < n; ++i) {
    for (int a = 0; a < 3; ++a) {
      double mean = 0.0, square = 0.0;
      for (const auto& model : models_) mean += model->forces[3 * i + a] / double(n_models);
      for (const auto& model : models_) {
        const double d = model->forces[3 * i + a] - mean;
        square += d * d / double(n_models);
      }
      forces_std_[3 * i + a] = unit_ * std::sqrt(square);
      spread_[i] += unit_ * unit_ * square;
    }
    spread_[i] = std::sqrt(spread_[i]);
    largest = std::max(largest, spread_[i]);
  }
  std::vector<double> energies(n_models, 0.0);
  for (size_t k = 0; k < n_models; ++k)
    for (size_t i = 0; i < n; ++i)
      energies[k] += models_[k]->energies[i] + models_[k]->long_range_energies[i];
  MPI_Allreduce(MPI_IN_PLACE, energies.data(), int(n_models), MPI_DOUBLE, MPI_SUM, world);
  MPI_Allreduce(MPI_IN_PLACE, &largest, 1, MPI_DOUBLE, MPI_MAX, world);
  double mean = 0.0, square = 0.0;
  for (double e : energies) mean += e / double(n_models);
  for (double e : energies) square += (e - mean) * (e - mean) / double(n_models);
  // compute pair adds up what ranks have
  totals_[4] = comm->me == 0 ? unit_ * std::sqrt(square) : 0.0;
  totals_[5] = comm->me == 0 ? largest : 0.0;
}

// Charges in e, of the first model, where the user wants them.
void PairCACE::write_charges() {
  const CaceModel& model = *models_[0];
  const int n = atom->nlocal, n_q = model.n_charges();
  const double e = n_q == 1 ? model.charge_unit() : 0.0;
  charge_.assign(atom->nmax + 1, 0.0);
  latent_.assign(size_t(atom->nmax + 1) * n_q, 0.0);
  std::copy_n(model.charges.begin(), size_t(n) * n_q, latent_.begin());
  for (int i = 0; i < n; ++i) charge_[i] = e * latent_[size_t(i) * n_q];
  if (charges_ == Charges::kNone) return;
  double* to = atom->q;
  if (charges_ == Charges::kProperty) {
    int is_double, columns;
    const int index = atom->find_custom("cace_charge", is_double, columns);
    if (index < 0 || !is_double || columns)
      error->all(
          FLERR,
          "pair_style cace: charges property needs 'fix ID all property/atom d_cace_charge'");
    to = atom->dvector[index];
  }
  if (n_q != 1)
    error->all(FLERR,
               "pair_style cace: this model has {} charges for each atom: take latent_charges by "
               "fix pair",
               n_q);
  for (int i = 0; i < n; ++i)
    if (model.takes(atom->type[i])) to[i] = charge_[i];
}

// This rank's part of the total charge and of the dipole of unwrapped positions.
void PairCACE::find_totals() {
  std::fill_n(totals_, 4, 0.0);
  for (int i = 0; i < atom->nlocal; ++i) {
    double r[3];
    domain->unmap(atom->x[i], atom->image[i], r);
    totals_[0] += charge_[i];
    for (int a = 0; a < 3; ++a) totals_[1 + a] += charge_[i] * r[a];
  }
}

// For fix pair: charge (e) and latent_charges (internal units) of the first model, spread and forces_std of
// a committee.
void* PairCACE::extract_peratom(const char* name, int& n_columns) {
  const std::string wanted = name;
  const size_t n = atom->nmax + 1;
  const auto rows = [&](std::vector<double>& values, std::vector<double*>& of, int columns) {
    n_columns = columns;
    values.resize(n * columns);
    of.resize(n);
    for (size_t i = 0; i < n; ++i) of[i] = values.data() + i * columns;
    return of.data();
  };
  const auto vector = [&](std::vector<double>& values) {
    n_columns = 0;
    values.resize(n);
    return values.data();
  };
  const int n_q = models_.empty() ? 0 : models_[0]->n_charges();
  if (wanted == "charge" && n_q == 1) return vector(charge_);
  if (wanted == "latent_charges" && n_q) return rows(latent_, latent_rows_, n_q);
  if (wanted == "spread" && models_.size() > 1) return vector(spread_);
  if (wanted == "forces_std" && models_.size() > 1) return rows(forces_std_, forces_std_rows_, 3);
  return nullptr;
}

double PairCACE::memory_usage() {
  double sum = Pair::memory_usage();
  for (const auto& model : models_) sum += model->bytes();
  return sum;
}

// With timing yes: seconds of a step by part, the mean of ranks and the longest.
void PairCACE::finish() {
  if (!timing_ || n_calls_ == 0) return;
  std::vector<std::pair<std::string, double>> parts = {{"whole pair style", seconds_[0]},
                                                       {"lists", seconds_[1]},
                                                       {"exchange of messages", seconds_[2]}};
  for (const auto& model : models_)
    for (const auto& part : model->seconds()) parts.push_back(part);
  std::string text = fmt::format("pair_style cace, ms a step over {} steps ({} lists, {} atoms):\n",
                                 n_calls_, n_lists_, n_taking_part_);
  for (const auto& part : parts) {
    double sum, most;
    MPI_Allreduce(&part.second, &sum, 1, MPI_DOUBLE, MPI_SUM, world);
    MPI_Allreduce(&part.second, &most, 1, MPI_DOUBLE, MPI_MAX, world);
    if (most > 0.0)
      text +=
          fmt::format("  {:22} {:10.4f} mean {:10.4f} longest\n", part.first,
                      1e3 * sum / comm->nprocs / double(n_calls_), 1e3 * most / double(n_calls_));
  }
  for (const auto& model : models_)
    for (const auto& sum : model->sums())
      text += fmt::format("  long range: {}, {:.3f} MB exchanged a step\n", sum->method(),
                          1e-6 * sum->bytes_exchanged());
  utils::logmesg(lmp, text);
}
