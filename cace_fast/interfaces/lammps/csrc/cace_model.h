// One model on the atoms of this rank: lists, phases, long-range sums.
#ifndef LMP_CACE_MODEL_H
#define LMP_CACE_MODEL_H

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cace_sum.h"

namespace LAMMPS_NS {

class NeighList;

struct CaceSettings {
  int precision = 32, threads = 1, output_index = -1;
  std::string energy_key;  // empty: the total energy
  double min_dist = 0.0;   // A; 0: by elements, below 0: any
  CaceKspace kspace;
};

// The atoms of this rank in a step.
struct CaceDomain {
  int n_owned, n_all;
  const double* x;  // [n_all][3]
  CaceBox box;
  bool virial, atom_virials, centroid_virials;
};

class CaceModel : protected Pointers {
 public:
  // Moves what phases leave at the border of ranks; PairCACE does it by LAMMPS' communication.
  class Border {
   public:
    virtual void to_ghosts(CaceModel& model, int t) = 0;
    virtual void to_owners(CaceModel& model, int t) = 0;
    // Adds rows [n_all][2 width] of ghosts to those of their owners: a gradient, and the same weighted with
    // places along an axis, x - origin, which is told by the ghost's place and becomes one by the owner's.
    virtual void placed_to_owners(double* rows, int width, int axis, double origin) = 0;

   protected:
    ~Border() = default;
  };

  // elements[type - 1]: "NULL" where a type takes no part.  Throws std::runtime_error.
  CaceModel(LAMMPS* lmp, const std::string& path, const std::vector<std::string>& elements,
            const CaceSettings& settings);
  ~CaceModel() override;
  CaceModel(const CaceModel&) = delete;
  CaceModel& operator=(const CaceModel&) = delete;

  bool takes(int type) const { return species_of_[type] >= 0; }
  double cutoff() const { return cf_model_cutoff(model_); }
  int n_messages() const { return n_stages_ - 1; }
  // Doubles of an atom's message of generation t as LAMMPS sends it.
  int message_doubles(int t) const;
  int n_charges() const { return n_charges_; }
  bool long_range() const { return !sums_.empty(); }
  double charge_unit() const { return cf_model_charge_unit(model_); }
  // Keys of the inputs of atoms that a host has to give, and how many numbers they are.
  int n_inputs(std::string& keys) const;

  // Takes the list of a step in which LAMMPS has built one.
  void take_list(int n_owned, int n_all, const int* type, const NeighList& list,
                 CaceOutcome& outcome);
  // Collective.  `inputs` [n_owned][n_inputs].
  void evaluate(const CaceDomain& domain, const double* inputs, Border& border,
                CaceOutcome& outcome);

  // Results of the step: eV, A, internal units of charge.
  std::vector<double> energies, long_range_energies;  // [n_owned]; isolated atoms are in the first
  std::vector<double> forces, atom_virials;           // [n_all][3], [n_all][9]
  std::vector<double> charges;                        // [n_owned][n_charges]
  double virial[9], long_range_virial[9];             // this rank's parts

  // For the Border: messages of generation t, or their gradients on the way back, in buffers of LAMMPS.
  // They return how many doubles they fill.
  int pack(int t, bool back, const cf_atoms& atoms, double* buffer, CaceOutcome& outcome);
  void unpack(int t, bool back, const cf_atoms& atoms, const double* buffer, CaceOutcome& outcome);

  double bytes() const;
  // Seconds of the parts of the library's work, then of long-range sums, by name.
  std::vector<std::pair<std::string, double>> seconds() const;
  const std::vector<std::unique_ptr<CaceSum>>& sums() const { return sums_; }

 private:
  void check_distances(const CaceDomain& domain, CaceOutcome& outcome);
  void take_inputs(int n_owned, const double* inputs);
  void sum_long_range(const CaceDomain& domain, CaceOutcome& outcome);
  void keep_gradients(const CaceDomain& domain, int t, CaceOutcome& outcome);
  void resolve_virials(const CaceDomain& domain, Border& border, CaceOutcome& outcome);

  const CaceSettings settings_;
  cf_model* model_ = nullptr;
  cf_state* state_ = nullptr;
  cf_pairs* pairs_ = nullptr;
  int n_stages_ = 1, n_charges_ = 0;
  const cf_long_range* terms_ = nullptr;
  std::vector<std::unique_ptr<CaceSum>> sums_;
  std::vector<int32_t> species_of_, species_;  // of types, of atoms
  std::vector<double> half_;                   // half distances of species
  std::vector<std::vector<double>> extras_;    // of each head
  std::vector<const double*> extras_of_head_;
  std::vector<std::vector<double>> gradients_;  // of each generation's messages, of all atoms
  std::vector<double> slopes_, q_, own_energies_, own_slopes_, own_forces_, long_range_forces_;
};

}  // namespace LAMMPS_NS

#endif
