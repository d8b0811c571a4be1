// What crosses the border of ranks: rows of numbers that owners and ghosts pack and unpack.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cace_fast.h"
#include "engine.h"
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
template <class Row>
void EngineOf<T>::cross(int t, Crossing what, const cf_atoms& atoms, Row* rows) {
  StepData<T>& s = steps_[t];
  const bool ar = s.step->ar, back = what == kGradientsOut || what == kGradientsIn;
  const size_t n_w = s.step->bchi ? s.n_w : 0, width = n_w + (ar ? a_size() : 0);
  for (int32_t k = 0; k < atoms.count; ++k, rows += width) {
    const size_t atom = atoms.numbers ? atoms.numbers[k] : atoms.first + k;
    T* w = n_w ? (back ? s.grad_w : s.w).data() + atom * n_w : nullptr;
    T* a = ar ? (back ? s.grad_a : s.a).data() + atom * s.size() : nullptr;
    Row* moments = rows + n_w;
    switch (what) {
      case kMessagesOut:
      case kGradientsOut:
        for (size_t i = 0; i < n_w; ++i) rows[i] = Row(w[i]);
        if (a) each_moment<T>(m_, [&](int out, int in) { moments[out] = Row(a[in]); });
        break;
      case kMessagesIn:
        for (size_t i = 0; i < n_w; ++i) w[i] = T(rows[i]);
        if (n_w) s.make_factors(m_, h_s_.data() + size_t(frame_.species[atom]) * m_.k, atom);
        for (size_t i = 0; a && i < s.size(); ++i) a[i] = T(0);
        if (a) each_moment<T>(m_, [&](int out, int in) { a[in] = T(moments[out]); });
        break;
      case kGradientsIn:
        for (size_t i = 0; i < n_w; ++i) w[i] += T(rows[i]);
        if (a) each_moment<T>(m_, [&](int out, int in) { a[in] += T(moments[out]); });
    }
  }
}

template <class T>
void EngineOf<T>::exchange(int t, Crossing what, const cf_atoms& atoms, int precision, void* rows) {
  if (precision == 32) cross(t, what, atoms, static_cast<float*>(rows));
  else cross(t, what, atoms, static_cast<double*>(rows));
}

template <class T>
int64_t EngineOf<T>::bytes() const {
  int64_t sum =
      int64_t(pair_gradient_.bytes() + own_.bytes() + energies_.bytes() + charges_.bytes() +
              charge_gradient_.bytes() + rows_.bytes() + grad_rows_.bytes() + sites_.bytes() +
              species_.bytes() + kept_grad_.bytes() + segment_sums_.bytes() + distance_.bytes() +
              pair_dr_.bytes() + receiver_.bytes());
  for (int t = 0; t < m_.stages; ++t) sum += int64_t(kept_a_[t].bytes()) + steps_[t].bytes();
  for (int i = 0; i < n_works_; ++i) sum += works_[i].bytes();
  return sum;
}

}  // namespace CF_ISA
}  // namespace cace_fast
