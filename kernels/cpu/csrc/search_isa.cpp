// The inner loop of the search, compiled once for each instruction set.
#include <cstdint>

#include "isa.h"  // IWYU pragma: keep
#include "search.h"

namespace cace_fast {
namespace CF_ISA {

// Distances of a chunk first, by vectors; then the few that are near, without a branch to guess wrong.
int sites_near(const SearchSites& sites, int32_t first, int32_t end, const double* at, double limit,
               int32_t* out) {
  const double x = at[0], y = at[1], z = at[2];
  double distance[SEARCH_CHUNK];
  int found = 0;
  for (int32_t start = first; start < end; start += SEARCH_CHUNK) {
    const int n = end - start < SEARCH_CHUNK ? end - start : SEARCH_CHUNK;
    const double *sx = sites.x + start, *sy = sites.y + start, *sz = sites.z + start;
    for (int k = 0; k < n; ++k) {
      const double dx = sx[k] - x, dy = sy[k] - y, dz = sz[k] - z;
      distance[k] = dx * dx + dy * dy + dz * dz;
    }
    for (int k = 0; k < n; ++k) {
      out[found] = start + k;
      found += distance[k] < limit;
    }
  }
  return found;
}

}  // namespace CF_ISA
}  // namespace cace_fast
