#include "engine.h"
#include "model.h"
#define CF_ISA isa_avx512
#define CF_VECTOR_BYTES 64
#include "isa_unit.inl"

namespace cace_fast {
Engine* make_engine_avx512(const Model& model, int precision) {
  return isa_avx512::make(model, precision);
}
}  // namespace cace_fast
