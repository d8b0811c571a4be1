// Vectors of T whose width is that of the instruction set of this translation unit.
// A lane is an atom everywhere; kernels are the same text for every width and precision.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "isa.h"  // IWYU pragma: export

namespace cace_fast {
namespace CF_ISA {

template <class T>
struct Simd {
  typedef T type __attribute__((vector_size(CF_VECTOR_BYTES)));
  static constexpr int width = CF_VECTOR_BYTES / int(sizeof(T));
};

template <class T>
using Vec = typename Simd<T>::type;

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  typedef int32_t type;
};
template <>
struct IntegerOf<double> {
  typedef int64_t type;
};
template <class T>
using IntVec = typename Simd<typename IntegerOf<T>::type>::type;

template <class T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}

template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

template <class T>
inline Vec<T> sqrt(Vec<T> x) {
  Vec<T> y;
  for (int i = 0; i < Simd<T>::width; ++i) y[i] = __builtin_sqrt(x[i]);
  return y;
}
template <>
inline Vec<float> sqrt<float>(Vec<float> x) {
  Vec<float> y;
  for (int i = 0; i < Simd<float>::width; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

// Memory aligned to vectors that only grows.  Not std::vector: its functions compiled here, for one
// instruction set, could be chosen by the linker for code that runs on any processor.
template <class E>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::free(data_); }

  // At least n elements; contents are lost when it grows.
  E* ensure(size_t n) {
    if (n > size_) {
      ::free(data_);
      data_ = nullptr;
      size_ = 0;
      void* found = nullptr;
      if (::posix_memalign(&found, 64, (n * sizeof(E) + 63) / 64 * 64)) throw OutOfMemory();
      data_ = static_cast<E*>(found);
      size_ = n;
    }
    return data_;
  }
  E* zeros(size_t n) {
    ::memset(static_cast<void*>(ensure(n)), 0, n * sizeof(E));
    return data_;
  }
  // Like ensure, but with a quarter more than asked, for sizes that fluctuate from step to step.
  E* reserve_slack(size_t n) { return n > size_ ? ensure(n + n / 4) : data_; }

  E* data() { return data_; }
  const E* data() const { return data_; }
  E& operator[](size_t i) { return data_[i]; }
  const E& operator[](size_t i) const { return data_[i]; }
  size_t bytes() const { return size_ * sizeof(E); }

 private:
  E* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace CF_ISA
}  // namespace cace_fast
