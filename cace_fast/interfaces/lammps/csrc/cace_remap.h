// Complex values of a grid on ranks: from one division into bricks to another.
#ifndef LMP_CACE_REMAP_H
#define LMP_CACE_REMAP_H

#include <mpi.h>

#include <cstdint>
#include <vector>

#include "cace_fast_step.h"

namespace LAMMPS_NS {

constexpr int64_t CACE_MESSAGE = int64_t(1) << 30;

// Part `part` of `parts` of `size` points.
inline int64_t cace_share(int64_t size, int64_t parts, int64_t part) { return size * part / parts; }
inline int64_t cace_points(const cf_brick& brick) {
  return brick.count[0] * brick.count[1] * brick.count[2];
}

// Messages of any length: MPI counts bytes in an int.
inline void cace_send(const void* from, int64_t bytes, int rank, MPI_Comm world,
                      std::vector<MPI_Request>& requests) {
  for (int64_t done = 0; done < bytes; done += CACE_MESSAGE) {
    const int64_t part = bytes - done < CACE_MESSAGE ? bytes - done : CACE_MESSAGE;
    requests.emplace_back();
    MPI_Isend(static_cast<const char*>(from) + done, int(part), MPI_BYTE, rank, 0, world,
              &requests.back());
  }
}
inline void cace_receive(void* to, int64_t bytes, int rank, MPI_Comm world,
                         std::vector<MPI_Request>& requests) {
  for (int64_t done = 0; done < bytes; done += CACE_MESSAGE) {
    const int64_t part = bytes - done < CACE_MESSAGE ? bytes - done : CACE_MESSAGE;
    requests.emplace_back();
    MPI_Irecv(static_cast<char*>(to) + done, int(part), MPI_BYTE, rank, 0, world, &requests.back());
  }
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
