// Parts of the C interface: the objects behind its handles, and errors as codes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <string>

#include "cace_fast.h"
#include "engine.h"  // IWYU pragma: export
#include "error.h"   // IWYU pragma: export
#include "json.h"
#include "model.h"
#include "program.h"  // IWYU pragma: export

struct cf_model {
  cace_fast::Model model;
  cace_fast::Program program;  // empty unless the model was opened
};

struct cf_state {
  const cace_fast::Model* model;
  std::unique_ptr<cace_fast::Engine> engine;
  std::string error;
  int64_t bad_atom = -1;
  int n_threads = 1, n_all = 0, n_owned = 0;
  // Of the frame that the engine holds: generations that may follow, -1: none; and what is complete.
  int next_forward = -1, next_backward = -1;
  bool all_forward = false, all_backward = false;

  void forget() {
    next_forward = next_backward = -1;
    all_forward = all_backward = false;
  }
};

namespace cace_fast {

inline void say(char* error, const std::string& text) {
  if (error) std::snprintf(error, CF_ERROR_LENGTH, "%s", text.c_str());
}

// Runs f and turns its exceptions into a code and a text.
template <class F>
int guarded(std::string& text, int64_t* bad_atom, const F& f) {
  remember(nullptr);
  try {
    return f();
  } catch (const Invalid& e) {
    remember(&e);
    text = e.what();
    return CF_INVALID;
  } catch (const OutOfOrder& e) {
    text = e.what();
    return CF_ORDER;
  } catch (const JsonError& e) {
    const Invalid error("specification", "the text of a model that this engine has", e.what());
    remember(&error);
    text = error.what();
    return CF_INVALID;
  } catch (const NotFinite& e) {
    text = std::string(e.what()) + ", atom " + std::to_string(e.atom);
    if (bad_atom) *bad_atom = e.atom;
    return CF_NOT_FINITE;
  } catch (const Unsupported& e) {
    text = std::string("not in this engine: ") + e.what();
    return CF_UNSUPPORTED;
  } catch (const std::bad_alloc&) {
    text = "out of memory";
    return CF_MEMORY;
  } catch (const std::exception& e) {
    text = e.what();
    return CF_INVALID;
  }
}

// The same for functions that return the text to the caller.
template <class F>
int told(char* error, const F& f) {
  std::string text;
  const int code = guarded(text, nullptr, f);
  if (code != CF_OK) say(error, text);
  return code;
}

// The same for a state: an error ends its step, unless it is a call at the wrong time.
template <class F>
int phase(cf_state* state, const F& f) {
  if (!state) return told(nullptr, [] { return need({nullptr}, "state"), int(CF_OK); });
  state->error.clear();
  state->bad_atom = -1;
  const int code = guarded(state->error, &state->bad_atom, f);
  if (code != CF_OK && code != CF_ORDER) state->forget();
  return code;
}

// Copies of the tensors of a caller, by name.
inline std::map<std::string, Numbers> tensors_of(const std::string& prefix, int32_t n_tensors,
                                                 const char* const* names,
                                                 const double* const* data, const int64_t* sizes) {
  std::map<std::string, Numbers> tensors;
  if (n_tensors < 0) throw Invalid("n_tensors", "0 or more", std::to_string(n_tensors));
  if (n_tensors > 0) need({names, data, sizes}, "names data sizes");
  for (int i = 0; i < n_tensors; ++i) {
    need({names[i], data[i]}, "names data");
    if (sizes[i] < 0) throw Invalid("sizes", "0 or more", std::to_string(sizes[i]));
    tensors[prefix + names[i]] = Numbers(data[i], data[i] + sizes[i]);
  }
  return tensors;
}

[[noreturn]] void invalid(const std::string& argument, const std::string& expected,
                          const std::string& got);
void check_precision(int32_t precision);

// Gives a state its atoms and pairs.
void begin(cf_state* state, const cf_frame* frame);

}  // namespace cace_fast
