#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "cace_fast_step.h"
#include "engine.h"

namespace cace_fast {
namespace base {
double machine_peak(int precision);
}
namespace avx2 {
double machine_peak(int precision);
}
namespace avx512 {
double machine_peak(int precision);
}

namespace {
struct Moment {
  std::chrono::steady_clock::time_point time = std::chrono::steady_clock::now();
  uint64_t tick = ticks();
};
const Moment loaded;
}  // namespace

double seconds_of(uint64_t count) {
  const Moment now;
  const std::chrono::duration<double> since = now.time - loaded.time;
  return count * (since.count() / (now.tick - loaded.tick));
}
}  // namespace cace_fast

extern "C" {

double cf_machine_peak(int32_t precision) {
  const char* name = cf_isa(nullptr);
  if (name == nullptr) return 0.0;
#ifdef CF_HAS_AVX512
  if (std::strcmp(name, "avx512") == 0) return cace_fast::avx512::machine_peak(precision);
#endif
#ifdef CF_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0) return cace_fast::avx2::machine_peak(precision);
#endif
  return cace_fast::base::machine_peak(precision);
}

double cf_machine_bandwidth(void) {
  try {
    const size_t n = size_t(1) << 27;  // 128 MB: more than any cache
    std::vector<char> from(n, 1), to(n, 2);
    double best = 0.0;
    for (int run = 0; run < 4; ++run) {
      const auto start = std::chrono::steady_clock::now();
      std::memcpy(to.data(), from.data(), n);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      const double rate = 2.0 * n / took.count();
      if (rate > best) best = rate;
    }
    return best;
  } catch (const std::bad_alloc&) {
    return 0.0;
  }
}

}  // extern "C"
