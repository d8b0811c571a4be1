// Networks: from layers, norms and skips to the straight-line code of Net.
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "heads.h"
#include "json.h"
#include "model.h"

namespace cace_fast {
namespace {

constexpr double kNormEps = 1e-5;

// The layers of one network, as parts of a Net.
class NetBuilder {
 public:
  NetBuilder(NetProgram& program, const Input& input, Activation activation,
             const std::string& prefix, const Tensors& tensors)
      : program_(program), input_(input), activation_(activation), prefix_(prefix),
        tensors_(tensors) {}

  Affine load(const std::string& name, int out, int in) const {
    const Numbers* w = find(name + ".weight");
    const Numbers* b = find(name + ".bias");
    if (!w || w->size() != size_t(out) * in || (b && b->size() != size_t(out)))
      throw JsonError("tensor '" + prefix_ + name + ".weight': missing or of another size");
    return {out, in, *w, b ? *b : Numbers(out, 0.0)};
  }

  // An affine map with the norm that follows it directly folded in.
  Affine folded(const std::string& name, int out, int in) const {
    Affine a = load(name, out, in);
    const Affine s = norm(name, out);
    if (s.out)
      for (int i = 0; i < out; ++i) {
        for (int j = 0; j < in; ++j) a.w[size_t(i) * in + j] *= s.w[i];
        a.b[i] = a.b[i] * s.w[i] + s.b[i];
      }
    return a;
  }

  int first(const Affine& a) { return program_.take(a, input_); }
  int activate(int x) { return program_.activate(x, activation_); }
  int affine(int x, Affine a) { return program_.affine(x, std::move(a)); }
  int sum(int x, int y) { return program_.sum(x, y); }

  int normed(int x, const std::string& name) {
    Affine s = norm(name, program_.size(x));
    return s.out ? program_.scale(x, std::move(s)) : x;
  }

 private:
  const Numbers* find(const std::string& name) const {
    const auto found = tensors_.find(prefix_ + name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  // Batch normalisation with stored statistics is an elementwise s x + b; empty without one.
  Affine norm(const std::string& name, int size) const {
    Affine scale{0, 0, {}, {}};
    const Numbers* mean = find(name + ".norm.mean");
    if (!mean) return scale;
    const Numbers *variance = find(name + ".norm.variance"), *w = find(name + ".norm.weight"),
                  *b = find(name + ".norm.bias");
    if (!variance || !w || !b) throw JsonError("tensor '" + prefix_ + name + ".norm': incomplete");
    for (const Numbers* each : {mean, variance, w, b})
      if (each->size() != size_t(size))
        throw JsonError("tensor '" + prefix_ + name + ".norm': of another size");
    scale = {size, size, Numbers(size), Numbers(size)};
    for (int i = 0; i < size; ++i) {
      scale.w[i] = w->at(i) / std::sqrt(variance->at(i) + kNormEps);
      scale.b[i] = b->at(i) - mean->at(i) * scale.w[i];
    }
    return scale;
  }

  NetProgram& program_;
  const Input& input_;
  const Activation activation_;
  const std::string prefix_;
  const Tensors& tensors_;
};

Affine identity(int n) {
  Affine a{n, n, Numbers(size_t(n) * n, 0.0), Numbers(n, 0.0)};
  for (int i = 0; i < n; ++i) a.w[size_t(i) * n + i] = 1.0;
  return a;
}

std::string layer(int k) { return ".layers." + std::to_string(k); }

// Layers one after the other.
int plain(NetBuilder& b, const std::vector<int>& widths, int linear, int first) {
  const int last = int(widths.size()) - 2;
  int x = first;
  for (int k = 1; k <= last; ++k) {
    x = b.activate(x);
    x = b.affine(x, k < last ? b.folded(layer(k), widths[k + 1], widths[k])
                             : b.load(layer(k), widths[k + 1], widths[k]));
  }
  return linear < 0 ? x : b.sum(x, linear);
}

int residual(NetBuilder& b, const std::vector<int>& widths, bool batch_norm, int linear, int first,
             int first_skip) {
  const int n_layers = int(widths.size()) - 1;
  int x = first;
  for (int k = 0; k < n_layers - 1; k += 2) {
    const int in = widths[k], out = widths[k + 2], block = k / 2;
    int skip = first_skip;
    if (block > 0) {
      skip = in == out ? x : b.affine(x, b.folded(".skips." + std::to_string(block), out, in));
      x = b.affine(x, b.load(layer(k), out, in));
    }
    x = b.normed(b.activate(x), layer(k));
    if (batch_norm) x = b.sum(x, skip);
    x = b.normed(b.activate(b.affine(x, b.load(layer(k + 1), out, out))), layer(k + 1));
    x = b.sum(x, skip);
  }
  x = b.affine(x, b.load(layer(n_layers - 1), widths[n_layers], widths[n_layers - 1]));
  return linear < 0 ? x : b.sum(x, linear);
}

Activation activation_named(const std::string& name) {
  static const std::map<std::string, Activation> known = {
      {"silu", Activation::silu},         {"relu", Activation::relu},
      {"tanh", Activation::tanh},         {"sigmoid", Activation::sigmoid},
      {"elu", Activation::elu},           {"gelu", Activation::gelu},
      {"softplus", Activation::softplus}, {"mish", Activation::mish},
      {"identity", Activation::identity}};
  const auto found = known.find(name);
  if (found == known.end()) throw Unsupported("activation '" + name + "'");
  return found->second;
}

std::vector<int> widths_of(const Json& mlp, bool residual) {
  std::vector<int> widths;
  for (const Json& w : mlp.at("widths").items()) widths.push_back(w.integer());
  const size_t n = widths.size();
  if (n < 2 || (residual && (n < 4 || n % 2 != 0)))
    throw JsonError("specification: MLP.widths has too few entries");
  for (int w : widths)
    if (w < 1) throw JsonError("specification: MLP.widths has an entry below 1");
  return widths;
}

}  // namespace

int Net::n_first_rows() const {
  int rows = 0;
  for (const Affine& a : first_layers) rows += a.out;
  return rows;
}

int NetProgram::take(const Affine& a, const Input& input) {
  Affine whole{a.out, n_in_, Numbers(size_t(a.out) * n_in_, 0.0), a.b};
  std::vector<std::pair<int, Affine>> others;
  int column = 0;
  for (const Columns& c : input) {
    if (column + c.width > a.in) break;
    const bool own = c.kind == Columns::outputs;
    const int first = c.kind == Columns::extra ? n_features_ + c.first : 0;
    Affine part{a.out, c.width, Numbers(own ? size_t(a.out) * c.width : 0, 0.0),
                Numbers(a.out, 0.0)};
    for (int i = 0; i < a.out; ++i)
      for (int j = 0; j < c.width; ++j) {
        const double w = a.w[size_t(i) * a.in + column + j];
        if (own) part.w[size_t(i) * c.width + j] = w;
        else whole.w[size_t(i) * n_in_ + first + j] += w;  // what is taken twice counts twice
      }
    if (own) others.emplace_back(c.first, std::move(part));
    column += c.width;
  }
  if (column != a.in)
    throw JsonError("specification: a network does not have the width of its inputs");
  sizes_.push_back(a.out);
  order_.push_back(-1 - int(net_.first_layers.size()));
  net_.first_layers.push_back(std::move(whole));
  int x = int(sizes_.size()) - 1;
  for (auto& [value, part] : others) x = sum(x, affine(value, std::move(part)));
  return x;
}

int NetProgram::pass(const Columns& columns) {
  return columns.kind == Columns::outputs ? columns.first
                                          : take(identity(columns.width), {columns});
}

int NetProgram::apply(Net::Kind kind, int from, int other, Affine layer, Activation activation) {
  const int size = kind == Net::affine ? layer.out : sizes_[from];
  const bool has = kind == Net::affine || kind == Net::scale;
  const int to = int(sizes_.size()), at = has ? int(net_.layers.size()) : -1;
  if ((kind == Net::affine && layer.in != sizes_[from]) ||
      (kind == Net::add && sizes_[other] != size))
    throw JsonError("specification: a network's parts are of different widths");
  order_.push_back(int(net_.ops.size()));
  net_.ops.push_back({kind, to, from, other, at, activation});
  if (has) net_.layers.push_back(std::move(layer));
  sizes_.push_back(size);
  return to;
}

// Values were numbered in the order of the calls; a Net has the first layers first.
Net NetProgram::finish(int output) {
  const int n_first_rows = int(net_.first_layers.size());
  std::vector<int> place(sizes_.size());
  net_.sizes.assign(sizes_.size(), 0);
  for (size_t v = 0; v < sizes_.size(); ++v) {
    place[v] = order_[v] < 0 ? -1 - order_[v] : n_first_rows + order_[v];
    net_.sizes[place[v]] = sizes_[v];
  }
  for (Net::Op& op : net_.ops) {
    op.to = place[op.to];
    op.from = place[op.from];
    if (op.other >= 0) op.other = place[op.other];
  }
  net_.n_in = n_in_;
  net_.output = place[output];
  return std::move(net_);
}

int add_network(NetProgram& program, const Json& mlp, bool linear, const std::string& prefix,
                const Tensors& tensors, const Input& input) {
  const bool is_residual = mlp.at("residual").truth(), norm = mlp.at("batch_norm").truth();
  const std::vector<int> widths = widths_of(mlp, is_residual);
  NetBuilder b(program, input, activation_named(mlp.at("activation").text()), prefix, tensors);
  const bool single = widths.size() == 2;
  int first, skip = -1;
  if (is_residual) {
    const int in = widths[0], out = widths[2];
    first = b.first(b.load(layer(0), out, in));
    skip = b.first(in == out ? identity(in) : b.folded(".skips.0", out, in));
  } else {
    first = b.first(single ? b.load(layer(0), widths[1], widths[0])
                           : b.folded(layer(0), widths[1], widths[0]));
  }
  const int beside = linear ? b.first(b.folded(".linear", widths.back(), widths[0])) : -1;
  return is_residual ? residual(b, widths, norm, beside, first, skip)
                     : plain(b, widths, beside, first);
}

Net read_network(const Json& mlp, bool linear, const std::string& prefix, const Tensors& tensors,
                 int n_in) {
  NetProgram program(n_in, 0);
  const Input input = {{Columns::features, 0, n_in}};
  return program.finish(add_network(program, mlp, linear, prefix, tensors, input));
}

}  // namespace cace_fast
