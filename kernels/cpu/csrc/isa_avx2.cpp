#include "engine.h"
#include "model.h"
#define CF_ISA isa_avx2
#define CF_VECTOR_BYTES 32
#include "isa_unit.inl"

namespace cace_fast {
Engine* make_engine_avx2(const Model& model, int precision) {
  return isa_avx2::make(model, precision);
}
}  // namespace cace_fast
