#include "threads.h"

#include <atomic>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace cace {
namespace {

std::atomic<bool> forked{false};

#ifndef _WIN32
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

}  // namespace

int usable_threads(int wanted) {
#ifndef _WIN32
  (void)registered;
#endif
  return wanted < 1 || forked.load(std::memory_order_relaxed) ? 1 : wanted;
}

}  // namespace cace
