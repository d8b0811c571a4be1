// All pairs of atoms within a distance, by cells.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

namespace cace_fast {

// Numbers without a beginning value, in memory that grows and is kept.
class PairNumbers {
 public:
  int64_t* data() { return data_.get(); }
  const int64_t* data() const { return data_.get(); }
  // Room for n numbers, the first `kept` of which stay.
  void reserve(int64_t n, int64_t kept) {
    if (n <= room_) return;
    std::unique_ptr<int64_t[]> more(new int64_t[n]);
    std::copy_n(data_.get(), kept, more.get());
    data_ = std::move(more);
    room_ = n;
  }

 private:
  std::unique_ptr<int64_t[]> data_;
  int64_t room_ = 0;
};

// Pairs of one system: d = r_receiver - r_sender + S h, |d| < reach; an atom is no pair with itself, but with
// its images. In the order of the cells, whatever the number of threads.
struct FoundPairs {
  int64_t n = 0;
  PairNumbers receivers, senders, shifts;  // [n], [n], [n][3]

  void reserve(int64_t most) {
    receivers.reserve(most, n);
    senders.reserve(most, n);
    shifts.reserve(3 * most, 3 * n);
    room = std::max(room, most);
  }
  int64_t room = 0;
};

struct SearchSystem {
  int64_t n;
  const double* positions;  // [n][3]
  const double* cell;       // [3][3], of three dimensions; rows of open directions are any
  const int32_t* periodic;  // [3]
  double reach;
};

// Throws Invalid for a cell without volume.
void search_pairs(const SearchSystem& in, int n_threads, FoundPairs& found);

// Numbers of sites first .. end - 1 closer than the root of `limit` to (x, y, z), in order; how many.
struct SearchSites {
  const double *x, *y, *z;
};
constexpr int SEARCH_CHUNK = 256;

#define CF_SEARCH_KERNEL(isa)                                                                    \
  namespace isa {                                                                                \
  int sites_near(const SearchSites&, int32_t first, int32_t end, const double* at, double limit, \
                 int32_t* out);                                                                  \
  }
CF_SEARCH_KERNEL(base)
#ifdef CF_HAS_AVX2
CF_SEARCH_KERNEL(avx2)
#endif
#ifdef CF_HAS_AVX512
CF_SEARCH_KERNEL(avx512)
#endif
#undef CF_SEARCH_KERNEL

}  // namespace cace_fast
