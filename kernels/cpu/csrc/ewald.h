// Long-range sum of latent charges: direct sum over k vectors, and the pair sum of open systems.
// The mathematics is docs/theory.md section 9, the oracle reference/ewald.py. Everything is double.
// Each number is a sum in an order that depends on the input alone, never on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cace_fast_step.h"

namespace cace_fast {

class MeshSum;

struct EwaldSpec {
  double dl = 2.0;     // A: the sum runs over |k| < 2 pi / dl
  double sigma = 1.0;  // A
  int exponent = 1;    // 1: charges, 6: dispersion
  bool remove_self = false;
  double norm = 1.0;
  double field = 0.0;  // external field along direction, for exponent 1
  int field_direction = 0;
  double neutral_lambda = 0.0;
  // A, of the boxes of slabs beyond the height of their cells; 0 refuses slabs
  double slab_vacuum = 0.0;
  // frozen: the integer vectors of `reference` [3][3] whatever the cell, not those of its own sphere.
  bool frozen = false;
  double reference[9] = {0};
  // How periodic systems are summed: CF_EWALD_AUTO is the cheaper way. A mesh needs transforms.
  int method = CF_EWALD_AUTO;
  double tolerance = 1e-10;  // of the mesh: error of forces, relative to max(max |F|, F0)
  cf_transform transform = {nullptr, nullptr};
};

// The inverse and volume of a cell [3][3]; false if its vectors are not independent.
bool ewald_invert(const double* cell, double* inverse, double& volume);
double ewald_norm2(const double* inverse, const double* n);  // k^2 of k = 2 pi n h^-T

void ewald_freeze(EwaldSpec& spec, const double* cell);  // null: the sphere of each cell

// The vectors n of the sphere, one of each pair +-n, as rows of consecutive third components. Rows
// are padded to whole SIMD vectors; pads have factor 0.
struct KVectors {
  struct Row {
    int32_t n0, n1, first, count, offset;  // third components first, first + 1, ...
  };
  double cell[9] = {0};
  EwaldSpec spec;
  bool selected = false;
  double inverse[9] = {0};
  int32_t limits[3] = {0, 0, 0};
  std::vector<Row> rows;
  int64_t size = 0;            // with pads
  int64_t count = 0;           // without
  std::vector<double> factor;  // [size] g(k) / volume
  std::vector<double> slope;   // [size] d g / d k^2 / volume
};

// How a system is periodic: EWALD_SLAB + a in all directions but lattice vector a.
enum EwaldBoundary { EWALD_OPEN = 0, EWALD_PERIODIC = 1, EWALD_SLAB = 2 };

// The box that is summed for a slab, and what that sum gave.
struct EwaldSlab {
  bool present = false;
  double cell[9], normal[3], height, period, volume;
  std::vector<double> along;   // [n] places along the normal, from their mean
  std::vector<double> forces;  // [n][3]
  double virial[9];
};

// Memory that grows and is reused; one for each concurrent call.
struct EwaldWork {
  int n_threads = 1;
  KVectors k;
  std::vector<double> structure;  // [2 n_q size] real parts of all channels, then imaginary parts
  std::vector<double> weighted;   // structure times 4 g / volume
  std::vector<double> phases;     // exp(i n theta) of a block of atoms
  std::vector<std::vector<double>> own;  // the same for one atom, of each thread
  EwaldSlab slab;
  std::vector<double> moments;  // [3][n_q]
  std::shared_ptr<MeshSum> mesh;
  int transform_code = 0;  // what the host's transform returned, if not CF_OK
};

enum EwaldStatus {
  EWALD_OK = 0,
  EWALD_SINGULAR_CELL = 1,
  EWALD_OPEN_EXPONENT = 2,
  EWALD_TOO_MANY = 3,
  EWALD_SLAB_VACUUM = 4,
  EWALD_SLAB_EXTENT = 5,
  EWALD_TRANSFORM = 6
};

// Chooses the k vectors of a cell [3][3] (rows are lattice vectors) and their factors; nothing to do
// when they are those of the last call.
EwaldStatus ewald_select(KVectors& k, const EwaldSpec& spec, const double* cell);

// Adds sum_i q_i exp(i k r_i) of n atoms to `structure` [2][n_q][size]; parts of different atoms add.
void ewald_structure_factors(EwaldWork& work, int64_t n, int n_q, const double* q, const double* r,
                             double* structure);

// Potentials [n][n_q] of the charges behind `structure` at n atoms, without self terms and norm, and
// the force [n][3] of sum_c q_c; forces are added, times `weight`.
void ewald_potentials(EwaldWork& work, int64_t n, int n_q, const double* q, const double* r,
                      const double* structure, double weight, double* potential, double* forces);

// The pair sum of an open system: potentials without norm; forces and virial are added where not null,
// times weight and norm.
void ewald_open_sum(const EwaldSpec& spec, int n_threads, int64_t n, int n_q, const double* q,
                    const double* r, double weight, double* potential, double* forces,
                    double* virial);

// Energies [n][n_q] and slopes of charges from the potentials in `slopes`: self terms and norm.
void ewald_finish(const EwaldSpec& spec, int64_t n, int n_q, const double* q, bool periodic,
                  double* energies, double* slopes);

// Adds weight times -dE/dstrain [3][3] of the k sum, its k set fixed.
void ewald_virial(const KVectors& k, int n_q, const double* structure, double weight,
                  double* virial);

// What all atoms of a system share, where a call has a part of them.
struct EwaldTotals {
  int64_t n;              // atoms
  double share;           // of what belongs to all atoms, such as a virial: shares add up to 1
  const double* moments;  // [3][n_q] sums of q, q z and q z^2, z along the normal of a slab
};

// Adds the moments of atoms to `moments`; those of z are zero without a slab.
void ewald_moments(const EwaldSlab& slab, int64_t n, int n_q, const double* q, double* moments);

// What is left when the potentials of all atoms are in `slopes`, and weight times the forces and
// virial of sum q phi / 2 have been added: ewald_finish, external field, neutrality.
void ewald_complete(const EwaldSpec& spec, const EwaldTotals& all, int64_t n, int n_q,
                    const double* q, const double* r, bool periodic, double weight,
                    double* energies, double* slopes, double* forces, double* virial);

// A slab takes the sum over k of `slab.cell`, with `slab.forces` and `slab.virial`, which are zero at
// first, in the places of its own. Nothing happens (present is false) for other boundaries.
EwaldStatus ewald_slab_begin(EwaldSlab& slab, const EwaldSpec& spec, const double* cell,
                             int boundary, int64_t n, const double* r);
// The places of atoms along its normal, from their mean if `centred`; the cell is that of begin.
EwaldStatus ewald_slab_places(EwaldSlab& slab, int64_t n, const double* r, bool centred);
// Then: what is missing is added to the potentials in `slopes`, and the forces and virial of the slab
// are added, where not null. `weight` is that of the sum, norm included.
void ewald_slab_finish(EwaldSlab& slab, const EwaldSpec& spec, double weight,
                       const EwaldTotals& all, int64_t n, int n_q, const double* q, double* slopes,
                       double* forces, double* virial);

// Energies and slopes of one system.
//   energies [n][n_q]: of each atom and channel, eV; they sum to E
//   slopes   [n][n_q]: dE/dq of that sum
//   forces   [n][3]:   -dE/dr, ADDED times weight; may be null
//   virial   [3][3]:   -dE/dstrain, ADDED times weight; may be null
EwaldStatus ewald_evaluate(const EwaldSpec& spec, EwaldWork& work, int64_t n, int n_q,
                           const double* q, const double* r, const double* cell, int boundary,
                           double weight, double* energies, double* slopes, double* forces,
                           double* virial);

// What is written once for each instruction set (ewald_isa.cpp).
struct EwaldRows {
  const KVectors* k;
  int64_t n_atoms;
  int n_q;
  const double* q;  // [n_atoms][n_q]
  // [n_atoms][stride]: axis 0 (re, im interleaved), axis 1, axis 2 re, axis 2 im
  const double* phases;
  int64_t stride;
};
using EwaldAccumulate = void (*)(const EwaldRows&, int64_t row, double* structure);
using EwaldGather = void (*)(const EwaldRows&, int64_t atom, const double* weighted,
                             double* potential, double* gradient);

namespace base {
void ewald_accumulate(const EwaldRows&, int64_t row, double* structure);
void ewald_gather(const EwaldRows&, int64_t atom, const double* weighted, double* potential,
                  double* gradient);
}  // namespace base
#ifdef CF_HAS_AVX2
namespace avx2 {
void ewald_accumulate(const EwaldRows&, int64_t row, double* structure);
void ewald_gather(const EwaldRows&, int64_t atom, const double* weighted, double* potential,
                  double* gradient);
}  // namespace avx2
#endif
#ifdef CF_HAS_AVX512
namespace avx512 {
void ewald_accumulate(const EwaldRows&, int64_t row, double* structure);
void ewald_gather(const EwaldRows&, int64_t atom, const double* weighted, double* potential,
                  double* gradient);
}  // namespace avx512
#endif

constexpr int EWALD_PAD = 8;      // doubles in the widest vector
constexpr int EWALD_BLOCK = 128;  // atoms whose phases are held together

}  // namespace cace_fast
