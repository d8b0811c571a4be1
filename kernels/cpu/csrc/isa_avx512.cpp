#include "engine.h"
#define CF_ISA isa_avx512
#define CF_VECTOR_BYTES 64
#include "isa_unit.inl"

namespace cace_fast {
const IsaCode code_avx512 = isa_avx512::kCode;
}  // namespace cace_fast
