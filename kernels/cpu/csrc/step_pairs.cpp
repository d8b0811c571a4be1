// Pair lists of the C interface.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine.h"
#include "step.h"

using namespace cace_fast;

namespace {

int pairs_code(PairsStatus status, int64_t bad, char* error) {
  switch (status) {
    case PAIRS_OK:
      return CF_OK;
    case PAIRS_BAD_ATOM:
      return invalid(error, "pairs", "numbers of atoms", "others in pair " + std::to_string(bad));
    case PAIRS_BAD_SHIFT:
      return invalid(error, "pairs", "cell shifts in range",
                     "others in pair " + std::to_string(bad));
    default:
      return invalid(error, "pairs", "fewer than 2^31 atoms and pairs", std::to_string(bad));
  }
}

// The smallest weight(i, j) d^2 of all pairs and its atoms; infinity and -1 without pairs.
template <class Weight>
double closest(const Pairs& p, const double* r, const double* shift_vectors, int n_threads,
               int32_t atoms[2], const Weight& weight) {
  static const double no_shift[3] = {0.0, 0.0, 0.0};
  const bool shifted = shift_vectors != nullptr && !p.shift.empty();
  double best = std::numeric_limits<double>::infinity();
  int64_t best_i = -1, best_j = -1;
  const int threads = team_size(n_threads);
#pragma omp parallel num_threads(threads) if (p.n_receivers > 2000)
  {
    double own = std::numeric_limits<double>::infinity();
    int64_t own_i = -1, own_j = -1;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < p.n_receivers; ++i)
      for (int64_t e = p.first[i]; e < p.first[i + 1]; ++e) {
        const int64_t j = p.sender[e];
        if (j < i) continue;  // each pair stands twice
        const double* s = shifted ? shift_vectors + 3 * static_cast<int64_t>(p.shift[e]) : no_shift;
        const double x = r[3 * i] - r[3 * j] + s[0], y = r[3 * i + 1] - r[3 * j + 1] + s[1],
                     z = r[3 * i + 2] - r[3 * j + 2] + s[2];
        const double d2 = (x * x + y * y + z * z) * weight(i, j);
        if (d2 < own) {
          own = d2;
          own_i = i;
          own_j = j;
        }
      }
#pragma omp critical(cace_fast_closest)
    if (own < best || (own == best && own_i >= 0 && own_i < best_i)) {
      best = own;
      best_i = own_i;
      best_j = own_j;
    }
  }
  atoms[0] = static_cast<int32_t>(best_i);
  atoms[1] = static_cast<int32_t>(best_j);
  return best;
}

}  // namespace

extern "C" {

int cf_search_create(cf_search** search, char* error) {
  return guarded(error, [&] {
    need({search}, "search");
    return *search = new cf_search, int(CF_OK);
  });
}

void cf_search_free(cf_search* search) { delete search; }

int cf_search_run(cf_search* search, int64_t n, const double* positions, const double* cell,
                  const int32_t* periodic, double reach, int32_t n_threads, int64_t* n_pairs,
                  char* error) {
  return guarded(error, [&] {
    need({search, cell, periodic, n_pairs}, "search cell periodic n_pairs");
    if (n < 0 || n > std::numeric_limits<int32_t>::max())
      throw Invalid("n", "0 to 2^31 - 1 atoms", std::to_string(n));
    if (n > 0) need({positions}, "positions");
    if (!(reach > 0.0 && reach < std::numeric_limits<double>::infinity()))
      throw Invalid("reach", "a positive distance", std::to_string(reach));
    for (int64_t i = 0; i < 3 * n; ++i)
      if (!std::isfinite(positions[i]))
        throw Invalid("positions", "finite numbers", "others for atom " + std::to_string(i / 3));
    search_pairs({n, positions, cell, periodic, reach}, n_threads, search->found);
    *n_pairs = search->found.n;
    return int(CF_OK);
  });
}

void cf_search_pairs(const cf_search* search, const int64_t** receivers, const int64_t** senders,
                     const int64_t** shifts) {
  if (search == nullptr || receivers == nullptr || senders == nullptr || shifts == nullptr) return;
  *receivers = search->found.receivers.data();
  *senders = search->found.senders.data();
  *shifts = search->found.shifts.data();
}

int cf_pairs_create(cf_pairs** pairs, char* error) {
  return guarded(error, [&] {
    need({pairs}, "pairs");
    return *pairs = new cf_pairs, int(CF_OK);
  });
}

void cf_pairs_free(cf_pairs* pairs) { delete pairs; }

int cf_pairs_set(cf_pairs* pairs, int32_t n_owned, int32_t n_all, const int32_t* species,
                 const int32_t* system, int64_t n_pairs, const int64_t* receivers,
                 const int64_t* senders, const int64_t* shifts, int32_t n_threads, char* error) {
  return guarded(error, [&] {
    need({pairs}, "pairs");
    if (n_all > 0) need({species}, "species");
    if (n_pairs > 0) need({receivers, senders, shifts}, "receivers senders shifts");
    int64_t bad = -1;
    const PairsStatus status = build_pairs(pairs->pairs, n_owned, n_all, species, system, n_pairs,
                                           receivers, senders, shifts, n_threads, bad);
    return pairs_code(status, bad, error);
  });
}

int cf_pairs_set_rows(cf_pairs* pairs, int32_t n_owned, int32_t n_all, const int32_t* species,
                      const cf_neighbor_rows* rows, int32_t n_threads, char* error) {
  return guarded(error, [&] {
    need({pairs, rows}, "pairs rows");
    if (n_all > 0) need({species}, "species");
    if (rows->n_rows > 0) need({rows->n_neighbors, rows->neighbors}, "n_neighbors neighbors");
    int64_t bad = -1;
    const PairsStatus status =
        build_pairs_of_rows(pairs->pairs, n_owned, n_all, species, *rows, n_threads, bad);
    return pairs_code(status, bad, error);
  });
}

int32_t cf_pairs_n_shifts(const cf_pairs* pairs) {
  return pairs == nullptr ? 0 : static_cast<int32_t>(pairs->pairs.shift_system.size());
}

void cf_pairs_list(const cf_pairs* pairs, cf_list* list) {
  if (pairs == nullptr || list == nullptr) return;
  const Pairs& p = pairs->pairs;
  list->n_pairs = static_cast<int64_t>(p.sender.size());
  list->n_owned = static_cast<int32_t>(p.n_receivers);
  list->n_all = static_cast<int32_t>(p.n_all);
  list->first = p.first.data();
  list->sender = p.sender.data();
  list->shift = p.shift.empty() ? nullptr : p.shift.data();
  list->sent_first = p.sent_first.data();
  list->sent = p.sent.data();
}

void cf_pairs_vectors(const cf_pairs* pairs, const double* cells, double* shift_vectors) {
  if (pairs == nullptr || cells == nullptr || shift_vectors == nullptr) return;
  const Pairs& p = pairs->pairs;
  for (size_t k = 0; k < p.shift_system.size(); ++k) {
    const double* h = cells + 9 * static_cast<size_t>(p.shift_system[k]);
    for (int x = 0; x < 3; ++x)
      shift_vectors[3 * k + x] =
          p.shifts[3 * k] * h[x] + p.shifts[3 * k + 1] * h[3 + x] + p.shifts[3 * k + 2] * h[6 + x];
  }
}

double cf_pairs_closest(const cf_pairs* pairs, const double* positions, const double* shift_vectors,
                        int32_t n_threads, int32_t atoms[2]) {
  if (pairs == nullptr || atoms == nullptr) return 0.0;
  if (positions == nullptr && !pairs->pairs.sender.empty()) return 0.0;
  return std::sqrt(closest(pairs->pairs, positions, shift_vectors, n_threads, atoms,
                           [](int64_t, int64_t) { return 1.0; }));
}

double cf_pairs_closest_of_kind(const cf_pairs* pairs, const double* positions,
                                const double* shift_vectors, const int32_t* species,
                                int32_t n_elements, const double* half, int32_t n_threads,
                                int32_t atoms[2]) {
  if (pairs == nullptr || half == nullptr || atoms == nullptr || n_elements < 1) return 0.0;
  const bool given = positions != nullptr && species != nullptr;
  if (!given && !pairs->pairs.sender.empty()) return 0.0;
  const size_t n = static_cast<size_t>(n_elements);
  std::vector<double> weights(n * n);
  for (size_t a = 0; a < n; ++a)
    for (size_t b = 0; b < n; ++b)
      weights[a * n + b] = 1.0 / ((half[a] + half[b]) * (half[a] + half[b]));
  return std::sqrt(
      closest(pairs->pairs, positions, shift_vectors, n_threads, atoms,
              [&](int64_t i, int64_t j) { return weights[species[i] * n + species[j]]; }));
}

}  // extern "C"
