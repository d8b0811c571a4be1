// What has gone wrong on this rank in a step.  A rank that has failed goes on to take part in every exchange,
// so that no other waits for it, and does nothing else; codes are joined once all have done their part.
#ifndef LMP_CACE_OUTCOME_H
#define LMP_CACE_OUTCOME_H

#include <mpi.h>

#include <new>
#include <string>

#include "cace_fast.h"

namespace LAMMPS_NS {

class CaceOutcome {
 public:
  int code = CF_OK;
  std::string text;
  int atoms[2] = {-1, -1};  // here, whose fault it is; -1: none

  void reset() { *this = CaceOutcome(); }
  bool good() const { return code == CF_OK; }

  // Runs f(text) -> code, unless something has failed here before.
  template <class F> void part(const F& f) {
    if (!good()) return;
    char error[CF_ERROR_LENGTH] = "";
    try {
      code = f(error);
      text = error;
    } catch (const std::bad_alloc&) {
      code = CF_MEMORY;
      text = "out of memory";
    }
  }
  // The same for functions that leave their text in a state.
  template <class F> void phase(const cf_state* state, const F& f) {
    part([&](char*) { return f(); });
    if (good() || !text.empty()) return;
    text = cf_state_error(state);
    atoms[0] = int(cf_state_bad_atom(state));
  }
  // Collective: whether nothing has failed anywhere; `flag` becomes the largest of all ranks.
  bool all_good(MPI_Comm world, int& flag) const {
    int own[2] = {code, flag}, worst[2];
    MPI_Allreduce(own, worst, 2, MPI_INT, MPI_MAX, world);
    flag = worst[1];
    return worst[0] == CF_OK;
  }
};

}  // namespace LAMMPS_NS

#endif
