// Common parts of the files behind cace_fast_step.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cace_fast_step.h"  // IWYU pragma: export
#include "error.h"           // IWYU pragma: export
#include "ewald.h"           // IWYU pragma: export
#include "mesh_sum.h"        // IWYU pragma: export
#include "pairs.h"           // IWYU pragma: export
#include "search.h"          // IWYU pragma: export

struct cf_search {
  cace_fast::FoundPairs found;
};

struct cf_pairs {
  cace_fast::Pairs pairs;
};

struct cf_ewald {
  cace_fast::EwaldSpec spec;
  cace_fast::EwaldWork work;
  // a sum in parts (ewald_parts.cpp)
  bool begun = false;
  int64_t n_all = 0;
  int n_q = 0;
  cace_fast::MeshPlan plan;
  double box[9];
};

struct cf_step {
  cf_state* state = nullptr;
  const cf_model* model = nullptr;
  int n_threads = 1, n_charges = 0;
  struct Term {
    cace_fast::EwaldSpec spec;
    double weight;
    int first, count;
    std::vector<double> fixed;
    std::vector<cace_fast::EwaldWork> works;
  };
  std::vector<Term> terms;
  // of every term and system: external field and its direction; empty: those of the terms
  std::vector<double> fields;
  std::vector<int32_t> directions;
  cf_pairs pairs;
  int64_t n_evaluated = -1;  // atoms of the last run, while its list is here
  // buffers of a step; they grow and are reused
  std::vector<double> shift_vectors, charges, slopes, own_q, own_energies, own_slopes, forces,
      virials;
  std::vector<int32_t> system;
  std::vector<char> done;
  char error[CF_ERROR_LENGTH] = {0};
  int32_t closest[2] = {-1, -1};
  double distance = 0.0, allowed = 0.0;
  std::vector<double> half;  // of each element, A: the least of its share in a distance
};

namespace cace_fast {

inline int fail(char* error, int code, const std::string& text) {
  if (error != nullptr) {
    std::strncpy(error, text.c_str(), CF_ERROR_LENGTH - 1);
    error[CF_ERROR_LENGTH - 1] = 0;
  }
  return code;
}

// A wrong argument, in the parts that cf_invalid returns.
inline int invalid(char* error, const std::string& argument, const std::string& expected,
                   const std::string& got) {
  const Invalid parts(argument, expected, got);
  remember(&parts);
  return fail(error, CF_INVALID, parts.what());
}

// A transform of the host returned this code.
struct TransformFailed : std::exception {
  explicit TransformFailed(int code) : code(code) {}
  const char* what() const noexcept override { return "long range: the host's transform failed"; }
  const int code;
};

// Runs `body`, turning what it throws into a code: no exception may cross the C interface.
template <class Body>
int guarded(char* error, Body body) {
  remember(nullptr);
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(error, CF_MEMORY, "out of memory");
  } catch (const Invalid& e) {
    remember(&e);
    return fail(error, CF_INVALID, e.what());
  } catch (const TransformFailed& e) {
    return fail(error, e.code, e.what());
  } catch (const std::exception& e) {
    return fail(error, CF_INVALID, e.what());
  }
}

// The same for a step, which keeps the text.
template <class Body>
int on_step(cf_step* step, Body body) {
  if (step == nullptr) return guarded(nullptr, [] { return need({nullptr}, "step"), int(CF_OK); });
  return guarded(step->error, body);
}

// Throws for atoms and channels of a sum that make no sense.
void ewald_atoms(int64_t n, int n_q, const double* q, const double* r, const double* energies,
                 const double* slopes);
int ewald_check(const cf_ewald_spec& spec, char* error);
// Throws what a status stands for.
void ewald_require(EwaldStatus status, const EwaldWork& work);
EwaldSpec ewald_spec_of(const cf_ewald_spec& spec);
// Throws for structures that make no sense, as far as that is seen without a look at the atoms.
void check_structures(const cf_structures* in);
// What the engine is given of structures whose list the step has; CF_TOO_CLOSE where atoms are.
int frame_of(cf_step& step, const cf_structures& in, cf_frame& frame, cf_list& list);
// A code of the state, with its text.
int of_state(cf_step& step, int code);
// All long-range terms; their energies, slopes of charges, forces and virials are added.
int long_range(cf_step& step, const cf_structures& in, const cf_step_result& out);

}  // namespace cace_fast
