// A network after its first layers, forward and backward, for one block of atoms.
#pragma once

#include <math.h>
#include <stddef.h>

#include "model.h"
#include "packed.inl"
#include "simd.inl"
#include "tiles.inl"
#include "vmath.inl"

namespace cace_fast {
namespace CF_ISA {

// Activations that no published model uses: one number at a time, by functions of the C++ library.
inline void activate_one(Activation kind, double x, double& y, double& slope) {
  const double positive = x > 0 ? 1.0 : 0.0;
  const double sigmoid = 1 / (1 + ::exp(-x));
  const double softplus = x > 20 ? x : ::log1p(::exp(x));  // 20 as in torch
  switch (kind) {
    case Activation::relu:
      y = positive * x, slope = positive;
      break;
    case Activation::tanh:
      y = ::tanh(x), slope = 1 - y * y;
      break;
    case Activation::elu:
      y = x > 0 ? x : ::expm1(x), slope = x > 0 ? 1.0 : ::exp(x);
      break;
    case Activation::gelu: {
      const double phi = 0.5 * ::erfc(-x * M_SQRT1_2);
      y = x * phi, slope = phi + x * ::exp(-0.5 * x * x) * M_SQRT1_2 / ::sqrt(M_PI);
      break;
    }
    case Activation::softplus:
      y = softplus, slope = x > 20 ? 1.0 : sigmoid;
      break;
    default: {  // mish
      const double t = ::tanh(softplus);
      y = x * t, slope = t + x * (1 - t * t) * (x > 20 ? 1.0 : sigmoid);
    }
  }
}

template <class T>
inline void activate(Activation kind, Vec<T> x, Vec<T>& y, Vec<T>& slope) {
  if (kind == Activation::silu || kind == Activation::sigmoid) {
    const Vec<T> s = T(1) / (T(1) + exponential<T>(-x));
    y = kind == Activation::silu ? x * s : s;
    slope = kind == Activation::silu ? s + y * (T(1) - s) : s * (T(1) - s);
  } else if (kind == Activation::identity) {
    y = x;
    slope = splat<T>(T(1));
  } else {
    for (int i = 0; i < Simd<T>::width; ++i) {
      double value, derivative;
      activate_one(kind, x[i], value, derivative);
      y[i] = T(value);
      slope[i] = T(derivative);
    }
  }
}

template <class T>
class MlpProgram {
  typedef Vec<T> V;

 public:
  void prepare(const Net& net) {
    net_ = &net;
    int total = 0;
    const int n_values = int(net.sizes.size());
    first_.ensure(n_values);
    for (int v = 0; v < n_values; ++v) {
      first_[v] = total;
      total += net.sizes[v];
    }
    size_ = total;
    T* bias = bias_.ensure(n_first_rows() + 1);
    for (const Affine& layer : net.first_layers)
      for (int i = 0; i < layer.out; ++i) *bias++ = T(layer.b[i]);
    const size_t n_layers = net.layers.size();
    forward_ = new Packed<T>[n_layers];
    backward_ = new Packed<T>[n_layers];
    for (size_t k = 0; k < n_layers; ++k) {
      const Affine& a = net.layers[k];
      if (a.w.size() != size_t(a.in) * a.out) continue;  // an elementwise scale
      forward_[k].fill(a.out, a.in, kTile, [&](int i, int j) { return a.w[size_t(i) * a.in + j]; });
      backward_[k].fill(a.in, a.out, kTile,
                        [&](int i, int j) { return a.w[size_t(j) * a.in + i]; });
    }
  }
  MlpProgram() = default;
  MlpProgram(const MlpProgram&) = delete;
  MlpProgram& operator=(const MlpProgram&) = delete;
  ~MlpProgram() {
    delete[] forward_;
    delete[] backward_;
  }

  int size() const { return size_; }  // vectors for all values
  int output() const { return first_[net_->output]; }
  int n_out() const { return net_->n_out(); }
  int n_first_rows() const { return net_->n_first_rows(); }

  // Adds the biases of the first layers to their sums.  A bias may be larger than the whole sum: a
  // sum that began with it would round every part to its size.
  void begin(const V* sums, V* values) const {
    for (int i = 0; i < n_first_rows(); ++i) values[i] = sums[i] + bias_[i];
  }

  // values [size]: first layers are given, the rest is computed; backward needs slopes [size].
  void forward(V* values, V* slopes) const {
    for (const Net::Op& op : net_->ops) {
      const V* from = values + first_[op.from];
      V* to = values + first_[op.to];
      const int n = net_->sizes[op.to];
      if (op.kind == Net::activate) {
        for (int i = 0; i < n; ++i)
          activate<T>(op.activation, from[i], to[i], slopes[first_[op.to] + i]);
      } else if (op.kind == Net::add) {
        const V* other = values + first_[op.other];
        for (int i = 0; i < n; ++i) to[i] = from[i] + other[i];
      } else {
        const Affine& layer = net_->layers[op.layer];
        for (int i = 0; i < n; ++i) {
          to[i] = splat<T>(T(layer.b[i]));
          if (op.kind == Net::scale) to[i] += from[i] * T(layer.w[i]);
        }
        if (op.kind == Net::affine) add_weighted(forward_[op.layer], from, to);
      }
    }
  }

  // gradients [size]: that of the output is given and all others are zero; on return those of the
  // first layers are right.
  void backward(const V* slopes, V* gradients) const {
    for (size_t k = net_->ops.size(); k-- > 0;) {
      const Net::Op& op = net_->ops[k];
      const V* of = gradients + first_[op.to];
      V* to = gradients + first_[op.from];
      const int n = net_->sizes[op.to];
      if (op.kind == Net::activate) {
        for (int i = 0; i < n; ++i) to[i] += of[i] * slopes[first_[op.to] + i];
      } else if (op.kind == Net::add) {
        V* other = gradients + first_[op.other];
        for (int i = 0; i < n; ++i) {
          to[i] += of[i];
          other[i] += of[i];
        }
      } else if (op.kind == Net::scale) {
        for (int i = 0; i < n; ++i) to[i] += of[i] * T(net_->layers[op.layer].w[i]);
      } else {
        add_weighted(backward_[op.layer], of, to);
      }
    }
  }

 private:
  const Net* net_ = nullptr;
  Buffer<int> first_;
  Buffer<T> bias_;  // of the first layers
  int size_ = 0;
  Packed<T>*forward_ = nullptr, *backward_ = nullptr;
};

}  // namespace CF_ISA
}  // namespace cace_fast
