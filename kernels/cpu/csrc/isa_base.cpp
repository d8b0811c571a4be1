#include "engine.h"
#define CF_ISA isa_base
#define CF_VECTOR_BYTES 16
#include "isa_unit.inl"

namespace cace_fast {
const IsaCode code_base = isa_base::kCode;
}  // namespace cace_fast
