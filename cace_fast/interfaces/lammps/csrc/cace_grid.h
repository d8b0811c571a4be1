// Grids of a mesh on ranks: from the bricks where atoms are to the bricks that are transformed, and back.
#ifndef LMP_CACE_GRID_H
#define LMP_CACE_GRID_H

#include <mpi.h>

#include <array>
#include <cstdint>
#include <vector>

#include "cace_fast_step.h"

namespace LAMMPS_NS {

class CaceGrid {
 public:
  typedef std::array<int64_t, 3> Place;
  // A box of points: here, in an array with rows of its own strides, and on its owner.
  struct Block {
    Place here, there, count;
  };

  CaceGrid() = default;
  CaceGrid(const CaceGrid&) = delete;
  CaceGrid& operator=(const CaceGrid&) = delete;

  // Collective: the mesh, the points along each axis that this rank's atoms spread to, without halo, and
  // the brick of the grid that this rank owns.
  void setup(MPI_Comm world, const cf_mesh& mesh, const cf_brick& atoms, const cf_brick& owned);
  const cf_brick& atoms() const { return atoms_; }
  const cf_brick& owned() const { return owned_; }
  int64_t n_owned() const { return owned_.count[0] * owned_.count[1] * owned_.count[2]; }
  // Numbers of one grid of this rank's atoms, halo and pad included.
  int64_t n_held() const { return held_[0] * held_[1] * held_[2]; }

  // Collective.  Adds charges of n grids to those of their owners, zero at first.
  template <class T>
  void to_owners(int n, const T* grids, T* owned);
  // Collective.  Potentials of n grids from their owners, halos too.
  template <class T>
  void from_owners(int n, const T* owned, T* grids);
  double bytes() const;

 private:
  struct Partner {
    int rank;
    int64_t points;
    std::vector<Block> blocks;
  };

  void meet(std::vector<Partner>& partners, int rank, const cf_brick& atoms,
            const cf_brick& owner) const;
  template <class T, class Pack, class Unpack>
  void move(int n, const std::vector<Partner>& to, const std::vector<Partner>& from,
            const Pack& pack, const Unpack& unpack);

  MPI_Comm world_ = MPI_COMM_NULL;
  cf_mesh mesh_ = {};
  cf_brick atoms_ = {}, owned_ = {};
  Place held_ = {};
  std::vector<Partner> owners_, holders_;  // of what is held here; of what is owned here
  std::vector<char> out_, in_;
};

}  // namespace LAMMPS_NS

#endif
