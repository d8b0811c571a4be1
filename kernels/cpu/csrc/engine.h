// Interface of an engine to the C functions; one is compiled per instruction set and precision.
#pragma once

#include <cstdint>
#include <ctime>
#include <new>
#include <stdexcept>
#include <string>

#include "cace_fast.h"
#include "model.h"

namespace cace_fast {

// Classes that files of one instruction set see have their destructors in dispatch.cpp: the linker
// could choose an inline one, compiled for that set, for code that runs on any processor.

class OutOfMemory : public std::bad_alloc {
 public:
  ~OutOfMemory() override;
};

// A number that is not finite, and the atom that it belongs to.
class NotFinite : public std::runtime_error {
 public:
  NotFinite(const std::string& text, int64_t atom) : std::runtime_error(text), atom(atom) {}
  ~NotFinite() override;
  const int64_t atom;
};

// A clock that takes some nanoseconds to read; seconds_of (machine.cpp) knows its ticks.
static inline uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t now;
  asm volatile("mrs %0, cntvct_el0" : "=r"(now));
  return now;
#else
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return uint64_t(now.tv_sec) * 1000000000u + uint64_t(now.tv_nsec);
#endif
}
double seconds_of(uint64_t ticks);

// Parts of the work that are timed.
enum Part { kPairs, kRadial, kSums, kMix, kContract, kReadout, kEdges, kMessages, kForces, kParts };
inline const char* part_name(int part) {
  static const char* const names[kParts] = {"pairs",   "radial", "sums",     "mix",   "contract",
                                            "readout", "edges",  "messages", "forces"};
  return names[part];
}

// What crosses the border of ranks: messages leave and arrive, and their gradients on the way back.
enum Crossing { kMessagesOut, kMessagesIn, kGradientsOut, kGradientsIn };

class Engine {
 public:
  virtual ~Engine();
  virtual void threads(int n) = 0;
  virtual void begin(const cf_frame& frame) = 0;
  // With `backward_too`, the last generation's backward runs on each block while it is in cache.
  // Energies are made by the last backward, or by finish() where there was none.
  virtual void forward(int t, bool backward_too, double* features) = 0;
  virtual void backward(int t) = 0;
  virtual void finish(const cf_result& result) = 0;
  virtual void charges(double* q) const = 0;
  virtual void set_charge_gradient(const double* de_dq) = 0;
  // Whether backward passes include the energies of read-outs; begin() sets it to true.
  virtual void energies_count(bool too) = 0;
  // Weights [n_owned] of energies in backward passes; null, as after begin(): 1.
  virtual void energy_weights(const double* weights) = 0;
  // Rows of atoms that cross the border of ranks after generation t; precision is that of `rows`.
  virtual void exchange(int t, Crossing what, const cf_atoms& atoms, int precision, void* rows) = 0;
  // Single operations on the edges of begin(), whose shifts are numbers of edges: gradients are
  // written in the order of these numbers.
  virtual void op_moments(double* a) = 0;
  virtual void op_moments_gradient(const double* grad_out, double* grad_vectors) = 0;
  virtual void op_messages(const cf_message& in, double* out) = 0;
  virtual void op_messages_gradient(const cf_message& in, const double* grad_out, double* grad_a,
                                    double* grad_b, double* grad_vectors) = 0;
  virtual int64_t bytes() const = 0;
  virtual double seconds(int part) const = 0;
};

// A single network; it has no buffers, so threads may share it.
class Network {
 public:
  virtual ~Network();
  virtual void run(int64_t n, const double* x, double* y) const = 0;
  virtual void gradient(int64_t n, const double* x, const double* grad_out,
                        double* grad_x) const = 0;
};

// B of A [n][n_A][n_channels], or with grad_out = dE/dB the gradient dE/dA.
struct ContractionCall {
  int l_max, nu_max;
  int64_t n, n_channels;
  const double *a, *grad_out;
  double* out;
};

// Number of threads to use: 1 in a child forked after a parallel region, where OpenMP would hang.
int team_size(int wanted);

// The instruction set in use; null and a text if the user's choice does not run here.
const char* isa_name(std::string& error);

// Functions compiled for one instruction set; a precision is 32 or 64.
struct IsaCode {
  Engine* (*engine)(const Model& model, int precision);
  Network* (*network)(const Net& net, int precision);
  void (*contract)(const ContractionCall& call, int precision);
};
// Functions of the instruction set in use; throws Invalid with that text.
const IsaCode& isa_code();

extern const IsaCode code_base;
#ifdef CF_HAS_AVX2
extern const IsaCode code_avx2;
#endif
#ifdef CF_HAS_AVX512
extern const IsaCode code_avx512;
#endif

}  // namespace cace_fast
