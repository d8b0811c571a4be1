// Choice of the instruction set and of the number of threads.
#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "engine.h"
#include "error.h"

namespace cace_fast {

OutOfMemory::~OutOfMemory() = default;
NotFinite::~NotFinite() = default;
Engine::~Engine() = default;
Network::~Network() = default;

namespace {

bool forked_after_threads = false, threads_ran = false;

void after_fork_in_child() { forked_after_threads = threads_ran; }

}  // namespace

int team_size(int wanted) {
  static const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);
  (void)registered;
  if (forked_after_threads || wanted < 1) return 1;
  threads_ran |= wanted > 1;
  return wanted;
}

namespace {

struct Isa {
  const char* name;
  const IsaCode* code;
  bool (*runs)();
};

// The best one first.
const Isa kIsas[] = {
#ifdef CF_HAS_AVX512
    {"avx512", &code_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("fma");
     }},
#endif
#ifdef CF_HAS_AVX2
    {"avx2", &code_avx2,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"base", &code_base, [] { return true; }},
};

const Isa* choose_isa(std::string& error) {
  const char* wanted = std::getenv("CACE_FAST_ISA");
  std::string names;
  for (const Isa& isa : kIsas) {
    if (!isa.runs()) continue;
    if (!wanted || !*wanted || !std::strcmp(wanted, isa.name)) return &isa;
    names += std::string(names.empty() ? "" : ", ") + isa.name;
  }
  error = "CACE_FAST_ISA: expected one of " + names + " on this machine, got '" + wanted + "'";
  return nullptr;
}

struct Choice {
  std::string error;
  const Isa* isa;
  Choice() : isa(choose_isa(error)) {}
};

const Choice& chosen() {
  static const Choice choice;
  return choice;
}

}  // namespace

const char* isa_name(std::string& error) {
  const Choice& choice = chosen();
  if (!choice.isa) error = choice.error;
  return choice.isa ? choice.isa->name : nullptr;
}

const IsaCode& isa_code() {
  const Choice& choice = chosen();
  if (!choice.isa)
    throw Invalid("CACE_FAST_ISA", "instructions that this machine has", choice.error);
  return *choice.isa->code;
}

}  // namespace cace_fast
