// A model in the form of the engine: sizes, tables and weights in double, independent of the
// instruction set.  Symbols are those of docs/theory.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cace_fast.h"

namespace cace_fast {

using Numbers = std::vector<double>;

// A part of a model that this engine does not have.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Activation { silu, relu, tanh, sigmoid, elu, gelu, softplus, mish, identity };

// W x + b, or s x + b elementwise where w holds one number for each output.
struct Affine {
  int out = 0, in = 0;
  Numbers w, b;
};

// Networks as straight-line code over values.  The first values are the first layers: affine maps of
// the features, which all networks of a model compute together in one product.
struct Net {
  enum Kind { affine, activate, scale, add };
  struct Op {
    Kind kind;
    int to, from, other;  // values; `other` is the second summand of add
    int layer;            // index into layers, for affine and scale
    Activation activation;
  };
  int n_in = 0;
  std::vector<Affine> first_layers, layers;
  std::vector<int> sizes;  // of each value, first layers first
  std::vector<Op> ops;
  int output = 0;

  int n_out() const { return sizes[output]; }
  int n_first_rows() const;
};

struct Step {
  bool memory = false, ar = false, bchi = false, shared_l = false, shared_channels = false;
  std::vector<Numbers> memory_weight, ar_prefactor, ar_inverse_range;  // [l][R C]
  Net net;                                                             // the Bchi network
};

struct Head {
  cf_head info;
  Net net;
  int n_extra = 0;
  int first_charge = 0;  // column of its first output among the charges
};

struct Model {
  int n_z = 0, k = 0, c = 0, r = 0, n_b = 0, l_max = 0, nu_max = 0, n_a = 0, n_inv = 0, stages = 1;
  double cutoff = 0.0, mp_norm = 1.0;
  std::vector<int> elements;             // [n_z] atomic numbers
  int radial_kind = 0, cutoff_kind = 0;  // places in kRadialBases and kCutoffs
  double radial_prefactor = 1.0;
  Numbers radial_a, radial_b;  // [n_b] of the table of radial functions
  double cutoff_radius = 0.0, p = 6.0, cutoff_extra = 0.0;  // eps, or where the switch begins
  Numbers h_s, h_r;                                         // [n_z][K]
  std::vector<Numbers> mixing;                              // [l][n_b][R][C]
  std::vector<Step> steps;
  std::vector<Head> heads;
  int n_charges = 0;

  int n_features() const { return r * n_inv * c; }  // of one generation
  // Few elements: a sum of outer products for each; many: one for each embedding channel.
  bool grouped() const { return n_z <= kMaxGroups; }
  static constexpr int kMaxGroups = 8;
};

Model make_model(const std::string& spec_json, const std::map<std::string, Numbers>& tensors,
                 const std::vector<cf_head>& heads);

// Content of a native model file; throws JsonError for other files.
struct ModelFile {
  std::string spec_json;
  std::map<std::string, Numbers> tensors;
};
ModelFile read_model_file(const std::string& path);
ModelFile read_model_bytes(const char* bytes, size_t size, const std::string& name);

constexpr int kMaxEmbedding = 16;  // kernels keep so many vectors on the stack
// As in cace_fast/spec/representation.py: products of these are counted in int.
constexpr int64_t kMaxSteps = 100, kMaxFeatures = 1000000, kMaxRadial = 100000;

int n_monomials(int l_max);
int n_invariants(int l_max, int nu_max);

}  // namespace cace_fast
