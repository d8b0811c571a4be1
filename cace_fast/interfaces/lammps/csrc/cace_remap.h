// Complex values of a grid on ranks: from one division into bricks to another.
#ifndef LMP_CACE_REMAP_H
#define LMP_CACE_REMAP_H

#include <mpi.h>

#include <cstdint>
#include <vector>

#include "cace_fast_step.h"

namespace LAMMPS_NS {

// Part `part` of `parts` of `size` points.
inline int64_t cace_share(int64_t size, int64_t parts, int64_t part) { return size * part / parts; }
inline int64_t cace_points(const cf_brick& brick) {
  return brick.count[0] * brick.count[1] * brick.count[2];
}

class CaceRemap {
 public:
  // Collective: this rank's brick before and after.
  void setup(MPI_Comm world, const cf_brick& from, const cf_brick& to);
  // Collective: complex values [x][y][z] of the bricks.
  template <class T>
  void run(const T* from, T* to);
  template <class T>
  void back(const T* to, T* from);

 private:
  struct Partner {
    int rank;
    cf_brick common;
  };
  template <class T>
  void move(const cf_brick& here, const std::vector<Partner>& out, const T* from,
            const cf_brick& there, const std::vector<Partner>& in, T* to);

  MPI_Comm world_ = MPI_COMM_NULL;
  cf_brick from_ = {}, to_ = {};
  std::vector<Partner> sent_, received_;
  std::vector<char> out_, in_;
};

}  // namespace LAMMPS_NS

#endif
