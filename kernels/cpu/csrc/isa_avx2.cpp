#include "engine.h"
#define CF_ISA isa_avx2
#define CF_VECTOR_BYTES 32
#include "isa_unit.inl"

namespace cace_fast {
const IsaCode code_avx2 = isa_avx2::kCode;
}  // namespace cace_fast
