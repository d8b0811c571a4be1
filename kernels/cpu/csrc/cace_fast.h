/* cace_fast.h: the C interface of the CPU engine of cace-fast (C99, no other header needed).
 *
 * A host (the Python package, an MD engine) makes one cf_model from a specification and tensors,
 * one cf_state for each thread of its own that evaluates, and then calls either
 *
 *   cf_evaluate                       all of one step, for models without charges; or
 *   cf_begin, cf_forward 0..T-1, [charges: long range by the host or by cf_ewald_*],
 *   cf_backward T-1..0, cf_finish     the same in phases, between which a parallel host exchanges
 *                                     what senders must know of atoms that other ranks own; without
 *                                     charges cf_turn joins the last forward and the first backward.
 *
 * Units: A, eV, internal charge units.  Arrays are C-ordered and belong to the caller; a state
 * keeps pointers to those of cf_begin until cf_finish.  All numbers that cross this interface are
 * double whatever the working precision.  Results are bit-identical for any number of threads.
 *
 * d = r_receiver - r_sender + shift is the vector of a pair; forces are -dE/dr; a virial is
 * -dE/dstrain = -sum d (x) dE/dd.
 */
// clang-format Language: C
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define CF_API __attribute__((visibility("default")))
#else
#define CF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Semantic version of this interface: what a host that was compiled with one major version calls is in
 * every later minor one.  Compare with cf_version(). */
#define CF_VERSION_MAJOR 5
#define CF_VERSION_MINOR 0
#define CF_VERSION (100 * CF_VERSION_MAJOR + CF_VERSION_MINOR)
#define CF_ERROR_LENGTH 512

/* Return codes of functions that can fail; the text is in the error buffer or cf_state_error. */
enum {
  CF_OK = 0,
  CF_INVALID = 1,     /* an argument is wrong; the text names it, cf_invalid its parts */
  CF_UNSUPPORTED = 2, /* the model uses a part that this engine does not have */
  CF_NOT_FINITE = 3,  /* a position or a result is NaN or infinite; cf_state_bad_atom names it */
  CF_MEMORY = 4,      /* out of memory */
  CF_ORDER = 5        /* phases called in another order than begin, forward, backward, finish */
};

/* After CF_INVALID, in the same thread: the name of the argument (part 0), what was expected (1) and
 * what came (2); empty texts if the error has no such parts. */
CF_API const char *cf_invalid(int32_t part);

typedef struct cf_model cf_model;
typedef struct cf_state cf_state;

/* One read-out to evaluate.  Its module is submodels[submodel].modules[module] of the
 * specification, its tensors are called "outputs.<submodel>.<module>.*".
 *   energy_column  output that is an energy, or -1 when no output is
 *   energy_weight  factor of that output in the energy
 *   average        divide the energy by the number of atoms of the atom's system (aggregation avg)
 *   charges        all outputs are latent charges: exported by cf_charges, dE/dq is taken back
 * Other modules of the sub-model whose values it takes are computed with it; a sum (Add) of such
 * values can be a head as well.  Its extra inputs are, for these modules in order and then for its
 * own module, the keys that no earlier module writes, and the fixed charges of atoms. */
typedef struct {
  int32_t submodel, module, energy_column, average, charges;
  double energy_weight;
} cf_head;

/* The pairs of a step: sorted by receiver and, within a receiver, by the sender's species (row of
 * the embedding).  Pairs beyond the cutoff are allowed: the engine drops them, exactly.
 * sent/sent_first is the same list seen from the senders, ascending pair numbers for each atom:
 * it makes the sums of forces deterministic without atomics.  cf_pairs_* builds all of this. */
typedef struct {
  int64_t n_pairs;
  int32_t n_owned, n_all;    /* of the frames that it is for */
  const int64_t *first;      /* [n_owned + 1] first pair of each receiver */
  const int32_t *sender;     /* [n_pairs] */
  const int32_t *shift;      /* [n_pairs] row of shift_vectors, or NULL: no shifts */
  const int64_t *sent_first; /* [n_all + 1] */
  const int32_t *sent;       /* [n_pairs] pair numbers */
} cf_list;

/* The atoms of a step.  Receivers are the first n_owned atoms; atoms n_owned..n_all-1 are ghosts
 * (copies of atoms that other ranks own), which only send.  Several systems may be evaluated at
 * once: system numbers ascend, pairs join atoms of one system.  An atom of species -1 takes no part: no
 * pair may have it, and its energy, charges and forces are 0. */
typedef struct {
  int32_t n_owned, n_all, n_systems, n_shifts;
  const int32_t *species;      /* [n_all] row of the embedding, not the atomic number; -1: none */
  const double *positions;     /* [n_all][3] */
  const int32_t *system;       /* [n_all] or NULL: all in system 0 */
  const double *shift_vectors; /* [n_shifts][3] A: S h of the pair's system; NULL: none */
  const double *system_size;   /* [n_systems] atoms in each whole system, or NULL: counted here */
  const double *const *extras; /* [n_heads] -> [n_owned][n_extra] further inputs, or NULL */
  const cf_list *list;
} cf_frame;

/* Results; a NULL pointer means not wanted. */
typedef struct {
  double *energies; /* [n_owned] read-out energies */
  double *forces;   /* [n_all][3] short-range part, on ghosts too (to be added to their owners) */
  double *virials;  /* [n_systems][3][3] pair virial */
  /* [n_all][3][3] -d_a (dE/dd)_b summed over the pairs that an atom sends, on ghosts too: r_a F_b of atoms,
   * whose sum is the virial */
  double *atom_virials;
} cf_result;

/* --- library ------------------------------------------------------------------------------- */

CF_API int cf_version(void); /* CF_VERSION of the library */

/* Name of the instruction set in use, "base", "avx2" or "avx512".  Chosen once, at the first call:
 * the best of the processor, or what the environment variable CACE_FAST_ISA names.  NULL with a
 * text in error when that names an unknown or missing one. */
CF_API const char *cf_isa(char error[CF_ERROR_LENGTH]);

/* --- models -------------------------------------------------------------------------------- */

/* Make a model from the JSON text of a specification (cace_fast.spec.to_json) and its tensors
 * (cace_fast.weights.expected_shapes), float64, C order.  Everything is copied. */
CF_API int cf_model_create(const char *spec_json, int32_t n_tensors, const char *const *names,
                           const double *const *data, const int64_t *sizes, int32_t n_heads,
                           const cf_head *heads, cf_model **model, char error[CF_ERROR_LENGTH]);
/* The same from a file of cace_fast.Potential.save or "cace-fast convert" (.safetensors). */
CF_API int cf_model_load(const char *path, int32_t n_heads, const cf_head *heads, cf_model **model,
                         char error[CF_ERROR_LENGTH]);
/* The same without a list of heads: the file (version 2) says what its energies are made of.
 *   energy_key    which energy, UTF-8; NULL: the total energy
 *   output_index  which of several energies of a read-out; -1: it has one
 * Heads are numbered as for cf_model_create: energies first, then charges.  A file of version 1 is
 * CF_UNSUPPORTED: "cace-fast convert" writes it again.  What is inconsistent is CF_INVALID. */
CF_API int cf_model_open(const char *path, const char *energy_key, int32_t output_index,
                         cf_model **model, char error[CF_ERROR_LENGTH]);
CF_API int cf_model_open_bytes(const void *bytes, int64_t size, const char *energy_key,
                               int32_t output_index, cf_model **model, char error[CF_ERROR_LENGTH]);
CF_API void cf_model_free(cf_model *model);

/* Integers that describe a model; -1 for an unknown name.
 *   "n_elements" "n_radial" "n_monomials" "n_invariants" "n_channels" "n_stages" "n_features"
 *   "n_charges"  charges per atom, all charge heads together
 *   "n_heads"    read-outs
 *   "unrolled"   1 where the contraction runs generated straight-line code, 0 on the general loop
 *   "grouped"    1 where neighbours are summed by element, 0 by embedding channel */
CF_API int64_t cf_model_query(const cf_model *model, const char *name);
/* Atomic number of a species, counted from 0; -1 beyond them. */
CF_API int32_t cf_model_element(const cf_model *model, int32_t species);
/* Species of an atomic number, -1 where the model does not know the element. */
CF_API int32_t cf_model_row(const cf_model *model, int32_t atomic_number);
/* Of an opened model: energy of an isolated atom of a species (to be added to the energies here),
 * and e per internal unit of charge; 0 where there is none. Ewald terms: cf_model_terms. */
CF_API double cf_model_isolated(const cf_model *model, int32_t species);
CF_API double cf_model_charge_unit(const cf_model *model);
CF_API double cf_model_cutoff(const cf_model *model);
/* Extra inputs that head number `head` takes beside the features. */
CF_API int32_t cf_model_extras(const cf_model *model, int32_t head);
/* Of an opened model: what the k-th of these are called in a structure, how many numbers they are for each
 * atom, and the charge of each species where they are fixed charges (else NULL).  NULL beyond the last. */
CF_API const char *cf_model_extra(const cf_model *model, int32_t head, int32_t k, int32_t *width,
                                  const double **fixed);
/* Numbers that senders export after generation t, for each atom: w [nl nc], then A [R n_A C] (with Ar).
 * 0: the step has memory alone, and nothing is exchanged. */
CF_API int32_t cf_model_message_size(const cf_model *model, int32_t t);
/* Half the distance in A that two atoms of a species keep at least: the least distance of two atoms is
 * the sum of theirs, 0.35 times that of their covalent radii. */
CF_API double cf_model_half_distance(const cf_model *model, int32_t species);

/* --- states -------------------------------------------------------------------------------- */

/* precision is 32 or 64.  A state is not thread safe; several states of one model are. */
CF_API int cf_state_create(const cf_model *model, int32_t precision, cf_state **state,
                           char error[CF_ERROR_LENGTH]);
CF_API void cf_state_free(cf_state *state);
CF_API void cf_state_threads(cf_state *state, int32_t n_threads); /* 1 at first */
CF_API const char *cf_state_error(const cf_state *state);
CF_API int64_t cf_state_bad_atom(const cf_state *state); /* after CF_NOT_FINITE, else -1 */
CF_API int64_t cf_state_bytes(const cf_state *state);    /* memory held by the buffers */
/* Seconds spent in a part (pairs, radial, sums, mix, contract, readout, edges, messages, forces)
 * since the number of threads was set, threads added up; -1 for an unknown part. */
CF_API double cf_state_seconds(const cf_state *state, const char *part);

/* --- one step ------------------------------------------------------------------------------ */

/* All of a step of a model without charges (CF_INVALID otherwise). */
CF_API int cf_evaluate(cf_state *state, const cf_frame *frame, const cf_result *result);

/* The invariants [n_owned][n_radial][n_invariants][n_channels][n_stages]. */
CF_API int cf_features(cf_state *state, const cf_frame *frame, double *features);

/* --- a step in phases ---------------------------------------------------------------------- */

CF_API int cf_begin(cf_state *state, const cf_frame *frame);
/* Generation t of the features, t = 0 .. n_stages-1; after the last one charges are known. */
CF_API int cf_forward(cf_state *state, int32_t t);
/* Of a model without charges, in the place of cf_forward and cf_backward of generation n_stages-1: both
 * at once, which costs less. */
CF_API int cf_turn(cf_state *state);
/* Some of the atoms of a frame, owned ones or ghosts. */
typedef struct {
  int32_t count, first;
  const int32_t *numbers; /* [count], or NULL: first, first + 1, ... */
} cf_atoms;
/* Rows [count][cf_model_message_size] of precision 32 or 64 (float or double).  Between cf_forward t and
 * t+1 (t < n_stages-1) owners pack their messages and ghosts unpack them. */
CF_API int cf_pack_messages(cf_state *state, int32_t t, const cf_atoms *atoms, int32_t precision,
                            void *rows);
CF_API int cf_unpack_messages(cf_state *state, int32_t t, const cf_atoms *atoms, int32_t precision,
                              const void *rows);
/* q [n_owned][n_charges], and dE_lr/dq of the same shape (with the energy's weight) back. */
CF_API int cf_charges(cf_state *state, double *q);
CF_API int cf_set_charge_gradient(cf_state *state, const double *de_dq);
/* Weights [n_owned] of atoms' energies in the backward passes to come, after cf_rewind too, until the next
 * cf_begin; NULL: 1, as at first.  Those of positions give what is made of sum_j r_j dE_j/dr_i. */
CF_API int cf_energy_weights(cf_state *state, const double *weights);
/* Backward of generation t, t = n_stages-1 .. 0. */
CF_API int cf_backward(cf_state *state, int32_t t);
/* Between cf_backward t+1 and t: ghosts pack the gradients of the messages that they sent, and their
 * owners unpack them, which adds. */
CF_API int cf_pack_gradients(cf_state *state, int32_t t, const cf_atoms *atoms, int32_t precision,
                             void *rows);
CF_API int cf_unpack_gradients(cf_state *state, int32_t t, const cf_atoms *atoms, int32_t precision,
                               const void *rows);
/* After the last cf_backward; energies alone are there after the last cf_forward too. */
CF_API int cf_finish(cf_state *state, const cf_result *result);
/* Return to the state in which charges are known, at any time after the last cf_forward until the
 * next cf_begin: cf_set_charge_gradient, cf_backward and cf_finish may follow once more.  With
 * charges_only forces and virials are then those of sum_i de_dq_i q_i alone, without the energies of
 * read-outs. */
CF_API int cf_rewind(cf_state *state, int32_t charges_only);

/* --- single operations --------------------------------------------------------------------- */

/* Shapes and meaning are those of cace_fast.reference; numbers are double outside and of the given
 * precision, 32 or 64, inside.  Gradients are of sum(grad_out * out).  Functions without a state run
 * in this thread and report errors by their code and cf_invalid. */

/* B [n][n_B][n_channels] of A [n][n_A][n_channels], for l_max 0 to 6 and nu_max 1 to 4. */
CF_API int cf_contraction(int32_t l_max, int32_t nu_max, int32_t precision, int64_t n,
                          int64_t n_channels, const double *a, double *b);
CF_API int cf_contraction_gradient(int32_t l_max, int32_t nu_max, int32_t precision, int64_t n,
                                   int64_t n_channels, const double *a, const double *grad_out,
                                   double *grad_a);

/* A single network: the JSON text of a read-out (cace_fast.spec.readout_to_json) and its tensors,
 * "layers.0.weight" and so on, which are copied.  It does not change: threads may share it.
 * y [n][n_out] of x [n][n_in], the inputs as the read-out lists them. */
typedef struct cf_network cf_network;
CF_API int cf_network_create(const char *readout_json, int32_t n_tensors, const char *const *names,
                             const double *const *data, const int64_t *sizes, int32_t precision,
                             cf_network **network, char error[CF_ERROR_LENGTH]);
CF_API void cf_network_free(cf_network *network);
CF_API int cf_network_run(const cf_network *network, int64_t n, const double *x, double *y);
CF_API int cf_network_gradient(const cf_network *network, int64_t n, const double *x,
                               const double *grad_out, double *grad_x);

/* Edges in any order, d from sender to receiver in A.  Beyond the cutoff is allowed, 0 is not. */
typedef struct {
  int64_t n_edges, n_atoms;
  const double *vectors;              /* [n_edges][3] d */
  const int64_t *senders, *receivers; /* [n_edges] atoms */
  const int64_t *species;             /* [n_atoms] row of the embedding */
} cf_edges;

/* A [n_atoms][R][n_A][C] of the model of a state; grad_vectors [n_edges][3] in the order of the
 * edges, 0 beyond the cutoff.  Each of these ends the step that the state was in. */
CF_API int cf_moments(cf_state *state, const cf_edges *edges, double *a);
CF_API int cf_moments_gradient(cf_state *state, const cf_edges *edges, const double *grad_out,
                               double *grad_vectors);

/* Input of a message passing step: the generation before. */
typedef struct {
  int32_t step;        /* from 0 */
  const double *a, *b; /* A [n_atoms][R][n_A][C], B [n_atoms][R][n_B][C] */
} cf_message;

/* A of the next generation, and gradients by A, B and the vectors. */
CF_API int cf_messages(cf_state *state, const cf_edges *edges, const cf_message *message,
                       double *out);
CF_API int cf_messages_gradient(cf_state *state, const cf_edges *edges, const cf_message *message,
                                const double *grad_out, double *grad_a, double *grad_b,
                                double *grad_vectors);

/* --- sums over edges for training, in double ---------------------------------------------------- */

/* Radial and cutoff functions and monomials, numbered as in cace_fast.kernels: table
 * [2 n_b + 4] is a_n, b_n, prefactor, r_c, 1/r_c, and the mollifier's eps or the begin of the switch;
 * monomial m is monomial parent[m] times the component axis[m] of the direction. */
typedef struct cf_edge_functions {
  int32_t kind, cutoff, n_b, n_a;
  double p;
  const double *table;
  const int32_t *parent, *axis;
} cf_edge_functions;

/* Segment s has the edges first[s] to first[s + 1], vectors [n_edges][3] in A.  Without grad_sums:
 * sums [n_segments][n_b][n_A] of R_n f_c Y_m.  With grad_sums = dE/dsums: grad_vectors
 * [n_edges][3], and grad_table [n_segments][2 n_b] = dE/da_n, dE/db_n of the edges of a segment.
 * With along [n_edges][3] not NULL: all results are derivatives along this change of the vectors,
 * grad_sums fixed. */
typedef struct cf_edge_sums {
  int64_t n_segments;
  const int64_t *first;
  const double *vectors, *along, *grad_sums;
  double *sums, *grad_vectors, *grad_table;
} cf_edge_sums;

CF_API int cf_edge_sums_run(const cf_edge_functions *functions, const cf_edge_sums *sums,
                            int32_t n_threads);

#ifdef __cplusplus
}
#endif
