// What one core can do at most, measured: the figures that times are judged by.
#include <chrono>
#include <cstdint>

#if defined(__AVX512F__)
#define CF_BYTES 64
#elif defined(__AVX__)
#define CF_BYTES 32
#else
#define CF_BYTES 16
#endif

namespace cace_fast {
namespace CF_ISA {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Independent multiply-adds on 12 registers; returns the best rate of several short runs.
template <class T>
double peak() {
  typedef T Vector __attribute__((vector_size(CF_BYTES)));
  constexpr int kSums = 12, kTurns = 20000;
  Vector sums[kSums], factor = Vector{} + T(0.999999), added = Vector{} + T(1e-7);
  for (int i = 0; i < kSums; ++i) sums[i] = Vector{} + T(i);
  double best = 0.0;
  for (int run = 0; run < 30; ++run) {
    const double start = now();
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + added;
#if defined(__x86_64__)
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) asm volatile("" : "+x"(sums[i]));
#endif
    }
    const double rate = 2.0 * kSums * kTurns * (CF_BYTES / sizeof(T)) / (now() - start);
    if (rate > best) best = rate;
  }
  volatile T sink = 0;
  for (int i = 0; i < kSums; ++i) sink = sink + sums[i][0];
  return best;
}

}  // namespace

double machine_peak(int precision) { return precision == 64 ? peak<double>() : peak<float>(); }

}  // namespace CF_ISA
}  // namespace cace_fast
