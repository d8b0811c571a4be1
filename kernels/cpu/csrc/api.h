// What the C interface is written with: the model behind its handle, and errors as codes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
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

namespace cace_fast {

inline void say(char* error, const std::string& text) {
  if (error) std::snprintf(error, CF_ERROR_LENGTH, "%s", text.c_str());
}

// Runs f and turns what it throws into a code and a text.
template <class F>
int guarded(std::string& text, int64_t* bad_atom, const F& f) {
  remember(nullptr);
  try {
    return f();
  } catch (const Invalid& e) {
    remember(&e);
    text = e.what();
    return CF_INVALID;
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

}  // namespace cace_fast
