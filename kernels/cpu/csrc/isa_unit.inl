// All that is compiled once for each instruction set, in a namespace of its own.  Included by
// isa_*.cpp, which define CF_ISA (its name) and CF_VECTOR_BYTES.
#pragma once

#include "engine.h"
#include "engine_impl.inl"
#include "exchange.inl"  // IWYU pragma: keep
#include "isa.h"
#include "model.h"
#include "operations.inl"  // IWYU pragma: keep
#include "passes.inl"      // IWYU pragma: keep

namespace cace_fast {
namespace CF_ISA {

inline Engine* make(const Model& model, int precision) {
  if (precision == 32) return new EngineOf<float>(model);
  return new EngineOf<double>(model);
}

}  // namespace CF_ISA
}  // namespace cace_fast
