// Which instruction set the kernels use, chosen once at run time.
#pragma once

namespace cace {

enum class Isa { base, avx2, avx512 };

// The best of this processor, or what the environment variable CACE_FAST_ISA names.
Isa isa();

const char* isa_name(Isa);

// Why CACE_FAST_ISA cannot be followed, or null.
const char* isa_error();

}  // namespace cace
