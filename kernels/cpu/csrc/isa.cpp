#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace cace {
namespace {

bool has(Isa isa) {
#ifdef CF_ONLY_BASE
  return isa == Isa::base;
#else
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  return isa == Isa::base || (isa == Isa::avx2 && avx2) || (isa == Isa::avx512 && avx512);
#endif
}

struct Choice {
  Isa isa = Isa::base;
  std::string error;

  Choice() {
    for (Isa each : {Isa::avx2, Isa::avx512})
      if (has(each)) isa = each;
    const char* asked = std::getenv("CACE_FAST_ISA");
    if (asked == nullptr || *asked == 0) return;
    for (Isa each : {Isa::base, Isa::avx2, Isa::avx512})
      if (std::strcmp(asked, isa_name(each)) == 0) {
        if (has(each)) {
          isa = each;
        } else {
          error = std::string("CACE_FAST_ISA: this processor does not have '") + asked + "'";
        }
        return;
      }
    error = std::string("CACE_FAST_ISA: expected base, avx2 or avx512, got '") + asked + "'";
  }
};

const Choice& choice() {
  static const Choice made;
  return made;
}

}  // namespace

Isa isa() { return choice().isa; }

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base";
}

const char* isa_error() { return choice().error.empty() ? nullptr : choice().error.c_str(); }

}  // namespace cace
