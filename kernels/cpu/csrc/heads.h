// Networks on the features of an atom, and chains of them: read-outs that take values of others.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cace_fast.h"
#include "json.h"
#include "model.h"

namespace cace_fast {

using Tensors = std::map<std::string, Numbers>;

// Columns that a module takes for each atom: the features, extra inputs from `first` on, or the
// value `first` of the program, which holds outputs of another module.
struct Columns {
  enum Kind { features, extra, outputs } kind;
  int first, width;
};
using Input = std::vector<Columns>;

// Makes a Net on [features, extra inputs]; values are numbered in the order of the calls.
class NetProgram {
 public:
  NetProgram(int n_features, int n_extra) : n_features_(n_features), n_in_(n_features + n_extra) {}

  int take(const Affine& a, const Input& input);  // a of what a module takes
  int pass(const Columns& columns);               // what a module takes, as it is
  int activate(int x, Activation kind) { return apply(Net::activate, x, -1, {}, kind); }
  int affine(int x, Affine a) { return apply(Net::affine, x, -1, std::move(a)); }
  int scale(int x, Affine a) { return apply(Net::scale, x, -1, std::move(a)); }
  int sum(int x, int y) { return apply(Net::add, x, y, {}); }
  int size(int x) const { return sizes_[x]; }
  Net finish(int output);

 private:
  int apply(Net::Kind kind, int from, int other, Affine layer,
            Activation activation = Activation::identity);

  const int n_features_, n_in_;
  Net net_;
  std::vector<int> sizes_;  // of each value
  std::vector<int> order_;  // of each value: its op, or -1 - its first layer
};

// Adds a network whose tensors are called "<prefix>.layers.*" and so on; returns its outputs.
int add_network(NetProgram& program, const Json& mlp, bool linear, const std::string& prefix,
                const Tensors& tensors, const Input& input);

// The same as a separate net, on n_in inputs in their order.
Net read_network(const Json& mlp, bool linear, const std::string& prefix, const Tensors& tensors,
                 int n_in);

// The net of a read-out, or of a sum of values of atoms, with all modules that it depends on. Its
// extra inputs are, module after module, the keys that no earlier module writes, and fixed charges.
Head read_head(const Model& m, const Json& spec, const cf_head& info, const Tensors& tensors);

}  // namespace cace_fast
