// Everything that is compiled once for each instruction set, in a separate namespace.  isa_*.cpp
// include it and define CF_ISA (its name) and CF_VECTOR_BYTES.
#pragma once

#include "engine.h"
#include "engine_impl.inl"
#include "ghost_exchange.inl"  // IWYU pragma: keep
#include "isa.h"
#include "model.h"
#include "operations.inl"  // IWYU pragma: keep
#include "passes.inl"      // IWYU pragma: keep

namespace cace_fast {
namespace CF_ISA {

template <class Made, template <class> class Of, class From>
inline Made* make(const From& from, int precision) {
  if (precision == 32) return new Of<float>(from);
  return new Of<double>(from);
}

inline void contract(const ContractionCall& call, int precision) {
  precision == 32 ? contract_lanes<float>(call) : contract_lanes<double>(call);
}

constexpr IsaCode kCode = {make<Engine, EngineOf, Model>, make<Network, NetworkOf, Net>, contract};

}  // namespace CF_ISA
}  // namespace cace_fast
