// Peak performance of one core, measured; times are compared with it.
#include <chrono>

#include "isa.h"

// One step of a sum, and a statement that keeps the compiler from combining steps.
#define CF_STEP(sum) sum = sum * factor + added;
#if defined(__x86_64__)
#define CF_KEEP(sum) asm volatile("" : "+v"(sum));
#elif defined(__aarch64__)
#define CF_KEEP(sum) asm volatile("" : "+w"(sum));
#else
#define CF_KEEP(sum)
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
  typedef T Vector __attribute__((vector_size(CF_VECTOR_BYTES)));
  constexpr int kSums = 12, kTurns = 20000, kLanes = CF_VECTOR_BYTES / sizeof(T);
  Vector factor = Vector{} + T(0.999999), added = Vector{} + T(1e-7);
  // named one by one: an array would be kept in memory
  Vector a = added, b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
  double best = 0.0;
  for (int run = 0; run < 30; ++run) {
    const double start = now();
    for (int turn = 0; turn < kTurns; ++turn) {
      // clang-format off
      CF_STEP(a) CF_STEP(b) CF_STEP(c) CF_STEP(d) CF_STEP(e) CF_STEP(f)
      CF_STEP(g) CF_STEP(h) CF_STEP(i) CF_STEP(j) CF_STEP(k) CF_STEP(l)
      CF_KEEP(a) CF_KEEP(b) CF_KEEP(c) CF_KEEP(d) CF_KEEP(e) CF_KEEP(f)
      CF_KEEP(g) CF_KEEP(h) CF_KEEP(i) CF_KEEP(j) CF_KEEP(k) CF_KEEP(l)
      // clang-format on
    }
    const double rate = 2.0 * kSums * kTurns * kLanes / (now() - start);
    if (rate > best) best = rate;
  }
  volatile T sink = (a + b + c + d + e + f + g + h + i + j + k + l)[0];
  (void)sink;
  return best;
}

}  // namespace

double machine_peak(int precision) { return precision == 64 ? peak<double>() : peak<float>(); }

}  // namespace CF_ISA
}  // namespace cace_fast
