// Networks: from layers, norms and skips to the straight-line code of Net.
#include <cmath>

#include "model.h"

namespace cace_fast {
namespace {

constexpr double kNormEps = 1e-5;

class NetBuilder {
 public:
  NetBuilder(const std::string& prefix, const std::map<std::string, Numbers>& tensors)
      : prefix_(prefix), tensors_(tensors) {}

  Net net;

  const Numbers* find(const std::string& name) const {
    const auto found = tensors_.find(prefix_ + name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  Affine load(const std::string& name, int out, int in) const {
    const Numbers* w = find(name + ".weight");
    const Numbers* b = find(name + ".bias");
    if (!w || w->size() != size_t(out) * in || (b && b->size() != size_t(out)))
      throw JsonError("tensor '" + prefix_ + name + ".weight': missing or of another size");
    return {out, in, *w, b ? *b : Numbers(out, 0.0)};
  }

  // Batch normalisation with stored statistics is an elementwise s x + b; empty without one.
  Affine norm(const std::string& name, int size) const {
    Affine scale{0, 0, {}, {}};
    const Numbers* mean = find(name + ".norm.mean");
    if (!mean) return scale;
    const Numbers *variance = find(name + ".norm.variance"), *w = find(name + ".norm.weight"),
                  *b = find(name + ".norm.bias");
    if (!variance || !w || !b) throw JsonError("tensor '" + prefix_ + name + ".norm': incomplete");
    scale = {size, size, Numbers(size), Numbers(size)};
    for (int i = 0; i < size; ++i) {
      scale.w[i] = w->at(i) / std::sqrt(variance->at(i) + kNormEps);
      scale.b[i] = b->at(i) - mean->at(i) * scale.w[i];
    }
    return scale;
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

  int root(Affine a) {
    net.sizes.push_back(a.out);
    net.roots.push_back(std::move(a));
    return int(net.sizes.size()) - 1;
  }

  int apply(Net::Kind kind, int from, int other, Affine layer) {
    const int size = kind == Net::affine ? layer.out : net.sizes[from];
    const bool has = kind == Net::affine || kind == Net::scale;
    const int to = int(net.sizes.size()), at = has ? int(net.layers.size()) : -1;
    net.ops.push_back({kind, to, from, other, at});
    if (has) net.layers.push_back(std::move(layer));
    net.sizes.push_back(size);
    return int(net.sizes.size()) - 1;
  }

  int activate(int x) { return apply(Net::activate, x, -1, {}); }
  int affine(int x, Affine a) { return apply(Net::affine, x, -1, std::move(a)); }
  int sum(int x, int y) { return apply(Net::add, x, y, {}); }

  int normed(int x, const std::string& name) {
    Affine s = norm(name, net.sizes[x]);
    return s.out ? apply(Net::scale, x, -1, std::move(s)) : x;
  }

 private:
  const std::string prefix_;
  const std::map<std::string, Numbers>& tensors_;
};

Affine identity(int n) {
  Affine a{n, n, Numbers(size_t(n) * n, 0.0), Numbers(n, 0.0)};
  for (int i = 0; i < n; ++i) a.w[size_t(i) * n + i] = 1.0;
  return a;
}

std::string layer(int k) { return ".layers." + std::to_string(k); }

// Layers one after the other; all roots must come before the first op (see Net).
int plain(NetBuilder& b, const std::vector<int>& widths, int linear_root, int first) {
  const int last = int(widths.size()) - 2;
  int x = first;
  for (int k = 1; k <= last; ++k) {
    x = b.activate(x);
    x = b.affine(x, k < last ? b.folded(layer(k), widths[k + 1], widths[k])
                             : b.load(layer(k), widths[k + 1], widths[k]));
  }
  return linear_root < 0 ? x : b.sum(x, linear_root);
}

int residual(NetBuilder& b, const std::vector<int>& widths, bool batch_norm, int linear_root,
             int first, int first_skip) {
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
  return linear_root < 0 ? x : b.sum(x, linear_root);
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

}  // namespace

int Net::n_root_rows() const {
  int rows = 0;
  for (const Affine& a : roots) rows += a.out;
  return rows;
}

Net make_net(const Json& mlp, bool linear, const std::string& prefix,
             const std::map<std::string, Numbers>& tensors) {
  NetBuilder b(prefix, tensors);
  std::vector<int> widths;
  for (const Json& w : mlp.at("widths").items()) widths.push_back(w.integer());
  if (widths.size() < 2) throw JsonError("specification: MLP.widths has fewer than two entries");
  b.net.activation = activation_named(mlp.at("activation").text());
  b.net.n_in = widths[0];
  const bool is_residual = mlp.at("residual").truth(), norm = mlp.at("batch_norm").truth();
  const bool single = widths.size() == 2;
  int first, skip = -1;
  if (is_residual) {
    const int in = widths[0], out = widths[2];
    first = b.root(b.load(layer(0), out, in));
    skip = b.root(in == out ? identity(in) : b.folded(".skips.0", out, in));
  } else {
    first = b.root(single ? b.load(layer(0), widths[1], widths[0])
                          : b.folded(layer(0), widths[1], widths[0]));
  }
  const int linear_root = linear ? b.root(b.folded(".linear", widths.back(), widths[0])) : -1;
  b.net.output = is_residual ? residual(b, widths, norm, linear_root, first, skip)
                             : plain(b, widths, linear_root, first);
  return b.net;
}

}  // namespace cace_fast
