#include "engine.h"
#include "model.h"
#define CF_ISA isa_base
#define CF_VECTOR_BYTES 16
#include "isa_unit.inl"

namespace cace_fast {
Engine* make_engine_base(const Model& model, int precision) {
  return isa_base::make(model, precision);
}
}  // namespace cace_fast
