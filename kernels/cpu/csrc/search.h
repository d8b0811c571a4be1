// All pairs of atoms within a distance, by cells.
#pragma once

#include <cstdint>
#include <vector>

namespace cace_fast {

// Pairs of one system: d = r_receiver - r_sender + S h, |d| < reach; an atom is no pair with itself, but with
// its images. In the order of the cells, whatever the number of threads.
struct FoundPairs {
  std::vector<int64_t> receivers, senders, shifts;  // [n], [n], [n][3]
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
