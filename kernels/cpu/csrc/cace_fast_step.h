/* cace_fast_step.h: pair lists, long range, and a whole step in one call; see cace_fast.h.
 *
 * A program that owns all atoms needs cf_step only.  A parallel host builds its lists with cf_pairs,
 * runs the phases of cace_fast.h, and between cf_forward and cf_backward the sums of cf_ewald:
 *
 *   cf_ewald_cell      the box, the method, and how many numbers ranks add up
 *   cf_ewald_sums      what the atoms here put in; the host adds those of other ranks
 *   cf_ewald_finish    energies, dE/dq, forces of the atoms here, a part of the virial
 */
// clang-format Language: C
#pragma once

#include <stdint.h>

#include "cace_fast.h" /* IWYU pragma: export */

#ifdef __cplusplus
extern "C" {
#endif

/* --- pair lists ---------------------------------------------------------------------------- */

/* Search of all pairs within `reach` A of one system, d = r_receiver - r_sender + S h; an atom is no pair with
 * itself.  cell [3][3]: rows of open directions have to be independent of the others, and are not
 * used otherwise; periodic [3].  The arrays of cf_search_pairs, [n_pairs] and [n_pairs][3], belong to the
 * search until its next run. */
typedef struct cf_search cf_search;
CF_API int cf_search_create(cf_search **search, char error[CF_ERROR_LENGTH]);
CF_API void cf_search_free(cf_search *search);
CF_API int cf_search_run(cf_search *search, int64_t n, const double *positions, const double *cell,
                         const int32_t *periodic, double reach, int32_t n_threads, int64_t *n_pairs,
                         char error[CF_ERROR_LENGTH]);
CF_API void cf_search_pairs(const cf_search *search, const int64_t **receivers,
                            const int64_t **senders, const int64_t **shifts);

typedef struct cf_pairs cf_pairs;

CF_API int cf_pairs_create(cf_pairs **pairs, char error[CF_ERROR_LENGTH]);
CF_API void cf_pairs_free(cf_pairs *pairs);

/* Take pairs in any order, all of them within the cutoff and any beyond it; valid until atoms have
 * moved so far that one is missing.  The result depends on the set of pairs alone.
 *   species [n_all], system [n_all] ascending or NULL as in cf_frame; pairs of species -1 are left out
 *   receivers, senders [n_pairs], shifts [n_pairs][3]: d = r_receiver - r_sender + S h */
CF_API int cf_pairs_set(cf_pairs *pairs, int32_t n_owned, int32_t n_all, const int32_t *species,
                        const int32_t *system, int64_t n_pairs, const int64_t *receivers,
                        const int64_t *senders, const int64_t *shifts, int32_t n_threads,
                        char error[CF_ERROR_LENGTH]);
/* The same from rows of neighbours, as MD engines have them, whose periodic images are ghosts: without
 * shifts. */
typedef struct {
  int32_t n_rows, mask;            /* mask: bits of a neighbour that are its number */
  const int32_t *atoms;            /* [n_rows] receiver of each row, or NULL: 0, 1, ... */
  const int32_t *n_neighbors;      /* [n_owned] by receiver */
  const int32_t *const *neighbors; /* [n_owned] by receiver -> [n_neighbors] senders */
} cf_neighbor_rows;
CF_API int cf_pairs_set_rows(cf_pairs *pairs, int32_t n_owned, int32_t n_all,
                             const int32_t *species, const cf_neighbor_rows *rows,
                             int32_t n_threads, char error[CF_ERROR_LENGTH]);
CF_API int32_t cf_pairs_n_shifts(const cf_pairs *pairs);
/* The list for cf_frame; it belongs to `pairs` and changes with the next cf_pairs_set. */
CF_API void cf_pairs_list(const cf_pairs *pairs, cf_list *list);
/* S h of every row of shifts [n_shifts][3] for cells [n_systems][3][3] (rows: lattice vectors). */
CF_API void cf_pairs_vectors(const cf_pairs *pairs, const double *cells, double *shift_vectors);
/* The closest pair: returns its distance in A, infinity without pairs, 0 where an argument is NULL.  shift_vectors NULL: no shifts. */
CF_API double cf_pairs_closest(const cf_pairs *pairs, const double *positions,
                               const double *shift_vectors, int32_t n_threads, int32_t atoms[2]);
/* The pair that is closest for its kind: returns the smallest distance / (half[i] + half[j]), the
 * `half` [n_elements] of the species of its atoms in A; infinity without pairs. */
CF_API double cf_pairs_closest_of_kind(const cf_pairs *pairs, const double *positions,
                                       const double *shift_vectors, const int32_t *species,
                                       int32_t n_elements, const double *half, int32_t n_threads,
                                       int32_t atoms[2]);

/* --- long range ---------------------------------------------------------------------------- */

/* Parameters of an Ewald module as in the specification; field 0 and neutral_lambda 0: none. */
typedef struct {
  double dl, sigma, norm, field, neutral_lambda;
  int32_t exponent, remove_self, field_direction;
} cf_ewald_spec;

typedef struct cf_ewald cf_ewald;

CF_API int cf_ewald_create(const cf_ewald_spec *spec, cf_ewald **ewald,
                           char error[CF_ERROR_LENGTH]);
CF_API void cf_ewald_free(cf_ewald *ewald);
CF_API void cf_ewald_threads(cf_ewald *ewald, int32_t n_threads); /* 1 at first */
/* Take the integer vectors n of the sphere of `cell` [3][3] in every cell h from now on, with
 * k = 2 pi n h^-T: a smooth energy for variable cells.  NULL: the sphere of each cell, the default. */
CF_API void cf_ewald_freeze(cf_ewald *ewald, const double *cell);
/* Vacuum of slabs in A; 0, the default, refuses slabs.  A slab has periodic = 2 + a if it is periodic
 * along all lattice vectors but a: its box has the two others and, along the normal, the height of
 * vector a above them plus `vacuum`.  Sums in parts do not know slabs: a host gives cf_ewald_cell the
 * box, and adds equations 36 and 37 of docs/theory.md, whose three moments add up over ranks. */
CF_API void cf_ewald_slab(cf_ewald *ewald, double vacuum);

/* Fourier transforms, which a mesh takes from its host.  They connect n_grids periodic grids
 * [size 0][size 1][size 2] of real numbers with their complex modes [2 m0 + 1][2 m1 + 1][m2 + 1]: wave
 * numbers 0 .. m, -m .. -1 along the first two axes, 0 .. m along the last.  Forward: sums of points
 * times exp(-i k x).  Backward: sums of modes times exp(i k x); modes that are not here are conjugates
 * of these, or zero.  Neither has a factor.  precision, 32 or 64, is that of both.  It is called by the
 * thread that asked for the sum, and returns CF_OK or a code, which ends the sum. */
typedef struct {
  int32_t n_grids, precision;
  int64_t size[3], modes[3];
} cf_grids;
typedef struct {
  int (*run)(void *context, const cf_grids *grids, int32_t forward, void *points, void *modes);
  void *context;
} cf_transform;

/* How periodic systems are summed: directly over the vectors k, by a mesh, or by the cheaper of the two.
 * `tolerance` is the error of forces by the mesh relative to max(max |F|, F0), docs/theory.md.  Without a
 * transform (NULL) all are summed directly, as at first, and CF_EWALD_MESH is refused. */
enum { CF_EWALD_AUTO = 0, CF_EWALD_DIRECT = 1, CF_EWALD_MESH = 2 };
CF_API int cf_ewald_method(cf_ewald *ewald, int32_t method, double tolerance,
                           const cf_transform *transform, char error[CF_ERROR_LENGTH]);

/* One system, all of its atoms here: energies [n][n_q] (they sum to E), slopes [n][n_q] = dE/dq of
 * that sum, forces [n][3] = -dE/dr, virial [3][3] = -dE/dstrain with the k set fixed.  Forces and
 * virial are added to what is there, and may be NULL.  cell is ignored for an open system.
 * periodic: 0 open, 1 in all directions, 2 + a a slab. */
CF_API int cf_ewald_evaluate(cf_ewald *ewald, int64_t n, int32_t n_q, const double *q,
                             const double *r, const double *cell, int32_t periodic,
                             double *energies, double *slopes, double *forces, double *virial,
                             char error[CF_ERROR_LENGTH]);

/* The same in parts, for a periodic system whose atoms lie on several ranks; every rank has a cf_ewald of
 * its own, with the same settings.  cf_ewald_cell begins a sum of n_all atoms with n_q channels, in a box
 * or a slab (periodic as above), and chooses the method.  It tells how many numbers ranks add up: structure
 * factors or grids, and moments of the charges.  Ranks may have no atoms.  Without it: CF_ORDER. */
CF_API int cf_ewald_cell(cf_ewald *ewald, const double *cell, int32_t periodic, int64_t n_all,
                         int32_t n_q, int64_t *size, char error[CF_ERROR_LENGTH]);
/* Adds what n atoms here put into sums [size], zero at first. */
CF_API int cf_ewald_sums(cf_ewald *ewald, int64_t n, const double *q, const double *r, double *sums,
                         char error[CF_ERROR_LENGTH]);
/* From the sums of all ranks: results of the atoms here as cf_ewald_evaluate gives them, with field, penalty
 * and slab.  The virial of all atoms is the sum of the parts that ranks get. */
CF_API int cf_ewald_finish(cf_ewald *ewald, int64_t n, const double *q, const double *r,
                           const double *sums, double *energies, double *slopes, double *forces,
                           double *virial, char error[CF_ERROR_LENGTH]);

/* Where whole grids are too much for a rank, each has a brick of the mesh, and the host transforms.
 * After cf_ewald_cell: the window's width in points (0: the sum is direct), the precision of grids, 32 or
 * 64, the points of the whole grid and the largest wave number along each axis. */
typedef struct {
  int32_t width, precision;
  int64_t size[3], modes[3];
} cf_mesh;
CF_API int cf_ewald_mesh(cf_ewald *ewald, cf_mesh *mesh, char error[CF_ERROR_LENGTH]);
/* Points `first` to first + count - 1 along each axis. */
typedef struct {
  int64_t first[3], count[3];
} cf_brick;
/* Grids of a brick have a halo of width - 1 points after it along each axis: [n_q][count 0 + width - 1]
 * [count 1 + width - 1][row], rows being count 2 + width - 1 + CF_MESH_PAD long, of which the pad is zero.
 * An atom's stencil begins at point ceil(f size - width / 2) along each axis, f its fractional coordinate;
 * the brick must hold that of every atom here.  Writes charges; the host adds halos to the bricks they lie
 * in, and transforms. */
enum { CF_MESH_PAD = 16 };
CF_API int cf_ewald_spread(cf_ewald *ewald, const cf_brick *brick, int64_t n, const double *q,
                           const double *r, void *grid, char error[CF_ERROR_LENGTH]);
/* Multiplies modes [n_q][count 0][count 1][count 2] (complex) of these indices of a transform without
 * factors, of either sign, and adds their part of the virial where that is not NULL.  half: the transform
 * has only indices up to size / 2 along the last axis.  Then the host transforms back, without factors, and
 * fills the halos. */
CF_API int cf_ewald_multiply(cf_ewald *ewald, const cf_brick *modes, int32_t half, void *values,
                             double *virial, char error[CF_ERROR_LENGTH]);
/* Moments [3][n_q] of the atoms here are added to `moments`; ranks add theirs up. */
CF_API int cf_ewald_moments(cf_ewald *ewald, int64_t n, const double *q, const double *r,
                            double *moments, char error[CF_ERROR_LENGTH]);
/* From grids of potentials, halos filled, and the moments of all ranks: as cf_ewald_finish. */
CF_API int cf_ewald_gather(cf_ewald *ewald, const cf_brick *brick, int64_t n, const double *q,
                           const double *r, void *grid, const double *moments, double *energies,
                           double *slopes, double *forces, double *virial,
                           char error[CF_ERROR_LENGTH]);

/* --- a whole step -------------------------------------------------------------------------- */

/* One Ewald term of the energy.  Its charges are columns first_charge .. first_charge + n_charges-1
 * of cf_charges, or one fixed number for each species where `fixed` is not NULL. */
typedef struct {
  cf_ewald_spec ewald;
  double weight;
  int32_t first_charge, n_charges;
  const double *fixed; /* [n_elements] or NULL */
} cf_long_range;

/* The Ewald terms of an opened model for cf_step_create; they live as long as the model. */
CF_API const cf_long_range *cf_model_terms(const cf_model *model, int32_t *n_terms);

/* Structures that are evaluated together: atoms of one system are consecutive. */
typedef struct {
  int32_t n_atoms, n_systems;
  const int32_t *species;    /* [n_atoms] */
  const double *positions;   /* [n_atoms][3] */
  const int32_t *first_atom; /* [n_systems + 1] */
  const double *cells;       /* [n_systems][3][3], zero without a cell */
  /* [n_systems] for the long range: 0 open, 1 in all directions, 2 + a a slab */
  const int32_t *periodic;
  const double *const *extras; /* as in cf_frame */
  double min_dist;             /* A; 0: 0.35 times the sum of two covalent radii; below 0: any */
} cf_structures;

/* NULL: not wanted. */
typedef struct {
  double *energies_sr; /* [n_atoms] */
  double *energies_lr; /* [n_atoms] */
  double *forces;      /* [n_atoms][3] */
  double *virials;     /* [n_systems][3][3] */
  double *charges;     /* [n_atoms][n_charges] */
} cf_step_result;

typedef struct cf_step cf_step;

/* Model and state stay the caller's and must live as long as the step.  Not thread safe. */
CF_API int cf_step_create(const cf_model *model, cf_state *state, int32_t n_terms,
                          const cf_long_range *terms, cf_step **step, char error[CF_ERROR_LENGTH]);
CF_API void cf_step_free(cf_step *step);
/* As cf_ewald_method, cf_ewald_freeze and cf_ewald_slab, for all terms. */
CF_API int cf_step_method(cf_step *step, int32_t method, double tolerance,
                          const cf_transform *transform);
CF_API void cf_step_freeze(cf_step *step, const double *cell);
CF_API void cf_step_slab(cf_step *step, double vacuum);
/* External fields of the structures to come and their directions [n_terms][n_systems], in the place of
 * those of the terms; NULL: those of the terms, as at first. */
CF_API int cf_step_fields(cf_step *step, int32_t n_systems, const double *fields,
                          const int32_t *directions);

CF_API void cf_step_threads(cf_step *step, int32_t n_threads);
/* A new pair list for these structures; positions are not looked at. */
CF_API int cf_step_pairs(cf_step *step, const cf_structures *structures, int64_t n_pairs,
                         const int64_t *receivers, const int64_t *senders, const int64_t *shifts);
CF_API int cf_step_run(cf_step *step, const cf_structures *structures,
                       const cf_step_result *result);
/* After cf_step_run, whose arrays still stand: for each of `count` rows of weights
 * [n_atoms][n_charges] the gradient [n_atoms][3] of sum_i weight_i q_i with respect to positions, which
 * Born charges are made of. */
CF_API int cf_step_charge_gradients(cf_step *step, int32_t count, const double *weights,
                                    double *gradients);
/* sum_j (r_j - r_i)_b dy_j/dr_ia [n_atoms][3][3] (i, a, b) of y_j = sum_c weights_jc q_jc, weights
 * [n_atoms][n_charges], or where they are NULL of the read-out energies y_j; r_j - r_i along the pairs that join j to i (docs/theory.md, section 10).  The list
 * is that of cf_step_pairs for these structures.  It ends what cf_step_run left. */
CF_API int cf_step_weighted_gradients(cf_step *step, const cf_structures *structures,
                                      const double *weights, double *gradients);
/* Invariants as in cf_features. */
CF_API int cf_step_features(cf_step *step, const cf_structures *structures, double *features);
CF_API const char *cf_step_error(const cf_step *step);
/* After CF_TOO_CLOSE: two atoms, their distance and the shortest one allowed. */
CF_API void cf_step_closest(const cf_step *step, int32_t atoms[2], double *distance,
                            double *allowed);

/* --- the machine --------------------------------------------------------------------------- */

/* Peak performance of one core, measured in some milliseconds: multiply-adds in registers with the
 * instruction set in use, in operations per second (two for each), for precision 32 or 64; and
 * copies of memory, bytes read and written per second. */
CF_API double cf_machine_peak(int32_t precision);
CF_API double cf_machine_bandwidth(void);

enum { CF_TOO_CLOSE = 100 }; /* a pair is closer than min_dist */

#ifdef __cplusplus
}
#endif
