// The mesh of a periodic sum: charges spread on a grid, potentials and fields gathered from it
// (docs/theory.md, "The mesh"). The Fourier transforms between the two are the host's.
// Coordinates are located in double; the grid is float or double. Each number is a sum in an order that
// depends on the input alone, never on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cace_fast {

constexpr int MESH_WIDEST = 16;  // points of a window, and of its rows with pads

// A window as kernels/window.py has it; windows_generated.h holds all of them.
struct MeshWindow {
  double error;  // of forces, relative to max(max |F|, F0)
  int width;
  double oversampling;
  int degree[2];                        // of the polynomials for float and for double grids
  const double *values[2], *slopes[2];  // [degree + 1][width]
  int n_nodes;                          // of the quadrature of its transform
  const double *nodes, *weights;
};

// Where stencils of atoms may begin: `count` points along each axis of a periodic grid of `size` points,
// from `first` on. The whole grid is {0, size}.
struct MeshBrick {
  int64_t size[3], first[3], count[3];
};

// An atom: where its stencil begins, in the brick; where it stands between points, in [-1, 1).
struct MeshPoint {
  double x[3];
  int32_t first[3];
  int32_t atom;
};

// Strides of a grid with halo [n_q][count + width - 1]..., whose rows are padded to whole vectors.
struct MeshLayout {
  int64_t points[3];  // with halo
  int64_t row, plane, channel;
};

// What the kernels of an instruction set are given (mesh_isa.cpp).
struct MeshJob {
  const MeshPoint* points;
  int64_t n;
  int n_q;
  const double* q;  // [atoms][n_q]
  MeshLayout layout;
  int width, n_terms;
  const void *values, *slopes;  // [n_terms][MESH_WIDEST], of the type of the grid
  void* grid;
  double weight;
  double *potential, *forces;  // of gathering
};

class Mesh {
 public:
  Mesh(const MeshWindow& window, int precision);

  // Takes atoms r [n][3] in A, in a cell whose inverse is given. Returns the number of one whose stencil
  // does not begin in the brick, or -1.
  int64_t locate(const MeshBrick& brick, const double* inverse, int64_t n, const double* r,
                 int n_threads);
  const MeshLayout& layout() const { return layout_; }
  int precision() const { return precision_; }
  // Charges [n][n_q] on the grid with halo, which is cleared first.
  void spread(int n_q, const double* q, void* grid) const;
  // Potentials [n][n_q] from a grid with halo, and added to `forces` [n][3], unless null, weight times
  // minus the sum over channels of charge times gradient, in A.
  void gather(int n_q, const double* q, void* grid, double weight, double* potential,
              double* forces) const;
  // Of a brick that is the whole grid: adds the halo to the points that it repeats, [n_q][size]; and back.
  void fold(int n_q, const void* with_halo, void* periodic) const;
  void unfold(int n_q, const void* periodic, void* with_halo) const;

 private:
  MeshJob job(int n_q, const double* q, void* grid) const;

  const MeshWindow& window_;
  int precision_, n_threads_ = 1;
  std::vector<float> single_[2];  // coefficients: values, slopes
  std::vector<double> double_[2];
  MeshBrick brick_ = {};
  MeshLayout layout_ = {};
  double inverse_[9] = {0};
  int64_t blocks_[3] = {1, 1, 1};  // atoms of two that are not neighbours never share a point
  std::vector<MeshPoint> unsorted_, points_;
  std::vector<int64_t> first_;  // point of each block
};

// Compiled for each instruction set; `single` tells the type of the grid.
#define CF_MESH_KERNELS(isa)                     \
  namespace isa {                                \
  void mesh_spread(const MeshJob&, bool single); \
  void mesh_gather(const MeshJob&, bool single); \
  }
CF_MESH_KERNELS(base)
#ifdef CF_HAS_AVX2
CF_MESH_KERNELS(avx2)
#endif
#ifdef CF_HAS_AVX512
CF_MESH_KERNELS(avx512)
#endif
#undef CF_MESH_KERNELS

}  // namespace cace_fast
