#include "pairs.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cace_fast_step.h"
#include "engine.h"

namespace cace_fast {
namespace {

using Shift = std::array<int32_t, 4>;  // system, S

// Numbers distinct shifts in the order of their appearance.
class ShiftTable {
 public:
  ShiftTable() : slots_(64, -1) {}

  int32_t number(const Shift& shift) {
    if (last_ >= 0 && found_[last_] == shift) return last_;
    size_t at = hash(shift) & (slots_.size() - 1);
    while (slots_[at] >= 0 && found_[slots_[at]] != shift) at = (at + 1) & (slots_.size() - 1);
    if (slots_[at] < 0) {
      slots_[at] = static_cast<int32_t>(found_.size());
      found_.push_back(shift);
      last_ = slots_[at];
      if (2 * found_.size() > slots_.size()) enlarge();
    } else {
      last_ = slots_[at];
    }
    return last_;
  }

  const std::vector<Shift>& found() const { return found_; }

 private:
  static size_t hash(const Shift& s) {
    uint64_t h = 0;
    for (int32_t x : s) h = (h ^ static_cast<uint32_t>(x)) * 0x9E3779B97F4A7C15ull;
    return static_cast<size_t>(h ^ (h >> 29));
  }

  void enlarge() {
    slots_.assign(4 * slots_.size(), -1);
    for (size_t k = 0; k < found_.size(); ++k) {
      size_t at = hash(found_[k]) & (slots_.size() - 1);
      while (slots_[at] >= 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = static_cast<int32_t>(k);
    }
  }

  std::vector<int32_t> slots_;  // a power of two, at most half full
  std::vector<Shift> found_;
  int32_t last_ = -1;
};

// Rank of each atom when all are ordered by (species, number).
std::vector<int32_t> ranks_of(int64_t n_all, const int32_t* species, std::vector<int32_t>& order) {
  order.resize(n_all);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [species](int32_t a, int32_t b) { return species[a] < species[b]; });
  std::vector<int32_t> rank(n_all);
  for (int64_t k = 0; k < n_all; ++k) rank[order[k]] = static_cast<int32_t>(k);
  return rank;
}

// Part of the pairs: their shifts numbered by `table`; the first bad pair, or n_pairs.
int64_t number_part(ShiftTable& table, const int32_t* system, int64_t begin, int64_t end,
                    const int64_t* receivers, const int64_t* shifts, int32_t* number) {
  for (int64_t e = begin; e < end; ++e) {
    Shift shift{system == nullptr ? 0 : system[receivers[e]], 0, 0, 0};
    for (int a = 0; a < 3; ++a) {
      const int64_t s = shifts[3 * e + a];
      if (s != static_cast<int32_t>(s)) return e;
      shift[a + 1] = static_cast<int32_t>(s);
    }
    number[e] = table.number(shift);
  }
  return end;
}

// Numbers all shifts by their order, which depends on the set of them alone.
PairsStatus number_shifts(Pairs& pairs, const int32_t* system, int64_t n_pairs,
                          const int64_t* receivers, const int64_t* shifts, int parts,
                          int64_t& bad) {
  std::vector<ShiftTable> tables(parts);
  std::vector<int64_t> ends(parts);
  pairs.number.resize(n_pairs);
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int k = 0; k < parts; ++k)
    ends[k] = number_part(tables[k], system, n_pairs * k / parts, n_pairs * (k + 1) / parts,
                          receivers, shifts, pairs.number.data());
  std::vector<Shift> found;
  for (int k = 0; k < parts; ++k) {
    if (ends[k] < n_pairs * (k + 1) / parts) {
      bad = ends[k];
      return PAIRS_BAD_SHIFT;
    }
    found.insert(found.end(), tables[k].found().begin(), tables[k].found().end());
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  pairs.shifts.resize(3 * found.size());
  pairs.shift_system.resize(found.size());
  for (size_t k = 0; k < found.size(); ++k) {
    pairs.shift_system[k] = found[k][0];
    for (int a = 0; a < 3; ++a) pairs.shifts[3 * k + a] = found[k][a + 1];
  }
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int k = 0; k < parts; ++k) {
    std::vector<int32_t> place;
    for (const Shift& shift : tables[k].found()) {
      const auto at = std::lower_bound(found.begin(), found.end(), shift);
      place.push_back(static_cast<int32_t>(at - found.begin()));
    }
    for (int64_t e = n_pairs * k / parts; e < n_pairs * (k + 1) / parts; ++e)
      pairs.number[e] = place[pairs.number[e]];
  }
  return PAIRS_OK;
}

// Rank of the sender, and number of the shift: pairs of a receiver in their order.
uint64_t key_of(int32_t rank, int32_t number) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(number);
}

// Sizes of a list whose pairs have yet to be counted.
bool begin_pairs(Pairs& pairs, int64_t n_receivers, int64_t n_all) {
  if (n_receivers < 0 || n_all < n_receivers || n_all > std::numeric_limits<int32_t>::max())
    return false;
  pairs.n_receivers = n_receivers;
  pairs.n_all = n_all;
  pairs.first.assign(n_receivers + 1, 0);
  pairs.sent_first.assign(n_all + 1, 0);
  return true;
}

// From counts of pairs to the places of first ones.
int64_t add_up(std::vector<int64_t>& counts) {
  std::partial_sum(counts.begin(), counts.end(), counts.begin());
  return counts.back();
}

// Sorts the keys of each receiver, and lists what each atom sends.
void sort_pairs(Pairs& pairs, const std::vector<int32_t>& order, bool shifted, int threads) {
  const size_t n_pairs = pairs.keys.size();
  std::vector<uint64_t>& keys = pairs.keys;
  pairs.sender.resize(n_pairs);
  pairs.shift.resize(shifted ? n_pairs : 0);
  pairs.sent.resize(n_pairs);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < pairs.n_receivers; ++i) {
    std::sort(keys.begin() + pairs.first[i], keys.begin() + pairs.first[i + 1]);
    for (int64_t e = pairs.first[i]; e < pairs.first[i + 1]; ++e) {
      pairs.sender[e] = order[keys[e] >> 32];
      if (shifted) pairs.shift[e] = static_cast<int32_t>(keys[e] & 0xffffffffu);
    }
  }
  std::vector<int64_t> next(pairs.sent_first.begin(), pairs.sent_first.end() - 1);
  for (size_t e = 0; e < n_pairs; ++e)
    pairs.sent[next[pairs.sender[e]]++] = static_cast<int32_t>(e);
}

int threads_of(int64_t n_pairs, int n_threads) {
  return n_pairs > 10000 ? team_size(n_threads) : 1;
}

}  // namespace

PairsStatus build_pairs(Pairs& pairs, int64_t n_receivers, int64_t n_all, const int32_t* species,
                        const int32_t* system, int64_t n_pairs, const int64_t* receivers,
                        const int64_t* senders, const int64_t* shifts, int n_threads,
                        int64_t& bad) {
  bad = n_pairs;
  if (n_pairs < 0 || n_pairs > std::numeric_limits<int32_t>::max() ||
      !begin_pairs(pairs, n_receivers, n_all))
    return PAIRS_TOO_MANY;
  const auto counts = [&](int64_t e) {
    return species[receivers[e]] >= 0 && species[senders[e]] >= 0;
  };
  for (int64_t e = 0; e < n_pairs; ++e) {
    const int64_t i = receivers[e], j = senders[e];
    if (i < 0 || i >= n_receivers || j < 0 || j >= n_all) {
      bad = e;
      return PAIRS_BAD_ATOM;
    }
    if (!counts(e)) continue;
    ++pairs.first[i + 1];
    ++pairs.sent_first[j + 1];
  }
  add_up(pairs.sent_first);
  const int threads = threads_of(n_pairs, n_threads);
  if (shifts == nullptr) {
    pairs.number.resize(n_pairs);
    std::iota(pairs.number.begin(), pairs.number.end(), 0);
  } else {
    const PairsStatus status =
        number_shifts(pairs, system, n_pairs, receivers, shifts, threads, bad);
    if (status != PAIRS_OK) return status;
  }
  std::vector<int32_t> order;
  const std::vector<int32_t> rank = ranks_of(n_all, species, order);
  pairs.keys.resize(add_up(pairs.first));
  std::vector<int64_t> next(pairs.first.begin(), pairs.first.end() - 1);
  for (int64_t e = 0; e < n_pairs; ++e)
    if (counts(e)) pairs.keys[next[receivers[e]]++] = key_of(rank[senders[e]], pairs.number[e]);
  sort_pairs(pairs, order, true, threads);
  return PAIRS_OK;
}

PairsStatus build_pairs_of_rows(Pairs& pairs, int64_t n_receivers, int64_t n_all,
                                const int32_t* species, const cf_neighbor_rows& rows, int n_threads,
                                int64_t& bad) {
  bad = n_all;
  if (!begin_pairs(pairs, n_receivers, n_all)) return PAIRS_TOO_MANY;
  pairs.shifts.clear();
  pairs.shift_system.clear();
  std::vector<int32_t> order;
  const std::vector<int32_t> rank = ranks_of(n_all, species, order);
  // twice over the rows: to count, and to fill; f is called for every pair that counts
  const auto each_pair = [&](int32_t row, const auto& f) {
    const int64_t i = rows.atoms == nullptr ? row : rows.atoms[row];
    if (i < 0 || i >= n_receivers) return false;
    if (species[i] < 0) return true;
    for (int32_t k = 0; k < rows.n_neighbors[i]; ++k) {
      const int32_t j = rows.neighbors[i][k] & rows.mask;
      if (j < 0 || j >= n_all) return false;
      if (species[j] >= 0) f(i, j);
    }
    return true;
  };
  for (int32_t row = 0; row < rows.n_rows; ++row)
    if (!each_pair(row, [&](int64_t i, int32_t j) {
          ++pairs.first[i + 1];
          ++pairs.sent_first[j + 1];
        })) {
      bad = row;
      return PAIRS_BAD_ATOM;
    }
  add_up(pairs.sent_first);
  const int64_t n_pairs = bad = add_up(pairs.first);
  if (n_pairs > std::numeric_limits<int32_t>::max()) return PAIRS_TOO_MANY;
  pairs.keys.resize(n_pairs);
  std::vector<int64_t> next(pairs.first.begin(), pairs.first.end() - 1);
  for (int32_t row = 0; row < rows.n_rows; ++row)
    each_pair(row, [&](int64_t i, int32_t j) { pairs.keys[next[i]++] = key_of(rank[j], 0); });
  sort_pairs(pairs, order, false, threads_of(n_pairs, n_threads));
  return PAIRS_OK;
}

}  // namespace cace_fast
