// Pair lists in the order of the engine: by receiver, then the sender's element.
#pragma once

#include <cstdint>
#include <vector>

#include "cace_fast_step.h"

namespace cace_fast {

struct Pairs {
  int64_t n_receivers = 0, n_all = 0;
  std::vector<int64_t> first{0};       // [n_receivers + 1]
  std::vector<int32_t> sender;         // [n_pairs]
  std::vector<int32_t> shift;          // [n_pairs] row of the shifts, or number of the pair
  std::vector<int64_t> sent_first{0};  // [n_all + 1]
  std::vector<int32_t> sent;           // [n_pairs] pairs that an atom sends, ascending
  std::vector<int32_t> shifts;         // [n_shifts][3] integer cell shifts S
  std::vector<int32_t> shift_system;   // [n_shifts] system whose cell S multiplies
  // of the sorting, kept because fresh memory costs more than the sorting
  std::vector<uint64_t> keys;
  std::vector<int32_t> number;
};

enum PairsStatus { PAIRS_OK = 0, PAIRS_BAD_ATOM = 1, PAIRS_BAD_SHIFT = 2, PAIRS_TOO_MANY = 3 };

// Sorts pairs given in any order by (receiver, sender's species, sender, shift), so that the result
// depends on the set of pairs alone. d = r_receiver - r_sender + S h.  Pairs of an atom of species -1 are
// left out.
//   species  [n_all] row of the embedding
//   system   [n_all] ascending, or null: one system
//   receivers, senders [n_pairs]
//   shifts   [n_pairs][3], or null: each pair has its own, numbered as the pairs are given
// On an error the number of the pair is in `bad`.
PairsStatus build_pairs(Pairs& pairs, int64_t n_receivers, int64_t n_all, const int32_t* species,
                        const int32_t* system, int64_t n_pairs, const int64_t* receivers,
                        const int64_t* senders, const int64_t* shifts, int n_threads, int64_t& bad);

// The same from rows of neighbours without shifts; on an error the receiver is in `bad`.
PairsStatus build_pairs_of_rows(Pairs& pairs, int64_t n_receivers, int64_t n_all,
                                const int32_t* species, const cf_neighbor_rows& rows, int n_threads,
                                int64_t& bad);

}  // namespace cace_fast
