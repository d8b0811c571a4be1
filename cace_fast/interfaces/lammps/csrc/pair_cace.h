// pair_style cace: CACE potentials, with messages and latent charges, on any number of ranks.
//
//   pair_style cace [keyword value ...]
//   pair_coeff * * model.safetensors [more.safetensors ...] ELEMENT-or-NULL for each type
//
// docs/user/lammps.md of cace-fast explains the keywords.
#ifdef PAIR_CLASS
// clang-format off
PairStyle(cace,PairCACE);
// clang-format on
#else

#ifndef LMP_PAIR_CACE_H
#define LMP_PAIR_CACE_H

#include <memory>
#include <string>
#include <vector>

#include "cace_model.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairCACE : public Pair, public CaceModel::Border {
 public:
  explicit PairCACE(LAMMPS* lmp);
  ~PairCACE() override;

  void settings(int narg, char** arg) override;
  void coeff(int narg, char** arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  void finish() override;

  int pack_forward_comm(int n, int* atoms, double* buffer, int pbc_flag, int* pbc) override;
  void unpack_forward_comm(int n, int first, double* buffer) override;
  int pack_reverse_comm(int n, int first, double* buffer) override;
  void unpack_reverse_comm(int n, int* atoms, double* buffer) override;
  void to_ghosts(CaceModel& model, int t) override;
  void to_owners(CaceModel& model, int t) override;
  void placed_to_owners(double* rows, int width, int axis, double origin) override;

  void* extract_peratom(const char* name, int& n_columns) override;
  double memory_usage() override;

 private:
  struct Input {
    std::string name;
    bool integer;
    int columns, index;
  };

  void allocate();
  void set_kspace(const std::string& word);
  int set_keyword(const std::string& key, int narg, char** arg);
  void require_boundaries();
  void find_inputs();
  void take_lists();
  void take_inputs();
  CaceDomain domain_now();
  void stop_if_failed();
  void reverse(double* rows, int width);
  void place(double* row, int i, double sign) const;
  void add_results();
  void add_energies(const CaceModel& model, double share);
  void add_virials(CaceModel& model, double share);
  void find_spread();
  void write_charges();
  void find_totals();

  CaceSettings settings_;
  std::vector<std::string> input_names_;
  std::vector<Input> inputs_;
  enum class Charges { kNone, kAtom, kProperty } charges_ = Charges::kNone;
  double unit_ = 1.0;  // of LAMMPS' energy in an eV
  bool timing_ = false, listed_ = false;
  std::vector<std::unique_ptr<CaceModel> > models_;
  CaceOutcome outcome_;
  bigint n_taking_part_ = 0;

  // what crosses the border of ranks now: messages of a model, or rows of numbers
  CaceModel* crossing_ = nullptr;
  int generation_ = 0, width_ = 0;
  bool back_ = false;
  double* rows_ = nullptr;
  int axis_ = -1;  // of rows that are weighted with places
  double origin_ = 0.0;

  std::vector<double> given_, spread_, forces_std_, charge_, latent_;
  std::vector<double*> forces_std_rows_, latent_rows_;
  double totals_[6] = {0.0};  // total charge, dipole; energy_std, largest spread of forces
  double seconds_[3] = {0.0, 0.0, 0.0};
  bigint n_calls_ = 0, n_lists_ = 0;
};

}  // namespace LAMMPS_NS

#endif
#endif
