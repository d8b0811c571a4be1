// Arrays that a parallel host exchanges between owners and ghosts, in double.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine_impl.inl"
#include "messages.inl"
#include "model.h"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

// A is [n_q / W][n_A][W] of an atom inside and [R][n_A][C] at the border.
template <class T, class F>
inline void each_moment(const Model& m, const F& f) {
  constexpr int W = Simd<T>::width;
  for (int q = 0; q < m.r; ++q)
    for (int k = 0; k < m.n_a; ++k)
      for (int c = 0; c < m.c; ++c) {
        const int lane = q * m.c + c;
        f((q * m.n_a + k) * m.c + c, (lane / W * m.n_a + k) * W + lane % W);
      }
}

template <class T>
void EngineOf<T>::get_messages(int t, double* w, double* a) const {
  const StepData<T>& s = steps_[t];
  for (size_t i = 0; w && i < size_t(frame_.n_owned) * s.n_w; ++i) w[i] = s.w[i];
  if (!a || !s.step->ar) return;
  for (size_t i = 0; i < size_t(frame_.n_owned); ++i) {
    const T* from = s.a.data() + i * s.size();
    each_moment<T>(m_, [&](int out, int in) { a[i * a_size() + out] = from[in]; });
  }
}

template <class T>
void EngineOf<T>::set_messages(int t, const double* w, const double* a) {
  StepData<T>& s = steps_[t];
  for (size_t g = 0; g < size_t(frame_.n_all - frame_.n_owned); ++g) {
    const size_t atom = frame_.n_owned + g;
    if (w && s.step->bchi) {
      for (int i = 0; i < s.n_w; ++i) s.w[atom * s.n_w + i] = T(w[g * s.n_w + i]);
      s.make_factors(m_, h_s_.data() + size_t(frame_.species[atom]) * m_.k, atom);
    }
    if (!a || !s.step->ar) continue;
    T* to = s.a.data() + atom * s.size();
    for (size_t i = 0; i < s.size(); ++i) to[i] = T(0);
    each_moment<T>(m_, [&](int out, int in) { to[in] = T(a[g * a_size() + out]); });
  }
}

template <class T>
void EngineOf<T>::get_gradients(int t, double* dw, double* da) const {
  const StepData<T>& s = steps_[t];
  for (size_t g = 0; g < size_t(frame_.n_all - frame_.n_owned); ++g) {
    const size_t atom = frame_.n_owned + g;
    for (int i = 0; dw && i < s.n_w; ++i) dw[g * s.n_w + i] = s.grad_w[atom * s.n_w + i];
    if (!da || !s.step->ar) continue;
    const T* from = s.grad_a.data() + atom * s.size();
    each_moment<T>(m_, [&](int out, int in) { da[g * a_size() + out] = from[in]; });
  }
}

template <class T>
void EngineOf<T>::add_gradients(int t, const double* dw, const double* da) {
  StepData<T>& s = steps_[t];
  for (size_t i = 0; dw && i < size_t(frame_.n_owned) * s.n_w; ++i) s.grad_w[i] += T(dw[i]);
  if (!da || !s.step->ar) return;
  for (size_t i = 0; i < size_t(frame_.n_owned); ++i) {
    T* to = s.grad_a.data() + i * s.size();
    each_moment<T>(m_, [&](int out, int in) { to[in] += T(da[i * a_size() + out]); });
  }
}

template <class T>
int64_t EngineOf<T>::bytes() const {
  int64_t sum =
      int64_t(pair_gradient_.bytes() + own_.bytes() + energies_.bytes() + charges_.bytes() +
              charge_gradient_.bytes() + rows_.bytes() + grad_rows_.bytes() + sites_.bytes() +
              kept_grad_.bytes() + segment_sums_.bytes() + distance_.bytes() + pair_dr_.bytes() +
              receiver_.bytes());
  for (int t = 0; t < m_.stages; ++t) sum += int64_t(kept_a_[t].bytes()) + steps_[t].bytes();
  for (int i = 0; i < n_works_; ++i) sum += works_[i].bytes();
  return sum;
}

}  // namespace CF_ISA
}  // namespace cace_fast
