// Buffers of one thread for one block of atoms, and the first two stages of a block: the
// neighbours within the cutoff, and their radial functions.
//
// Slots: slot k of a group holds, in each lane, the k-th neighbour of that lane's atom; lanes with
// fewer neighbours have padding there, whose cutoff function is zero.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cace_fast.h"
#include "constants_generated.h"
#include "engine.h"
#include "model.h"
#include "radial.inl"
#include "simd.inl"

namespace cace_fast {
namespace CF_ISA {

// Position and element of an atom, read by one load for each candidate neighbour.
struct alignas(32) AtomRecord {
  double x, y, z;
  int64_t species;
};

// Stored components of a slot's geometry.
enum { kUx, kUy, kUz, kInverse, kR, kFc, kSlope, kGeometry };
constexpr int kRow = 4;     // numbers of a pair's gradient: x, y, z, and one unused
constexpr int kFew = 500;   // atoms whose sums are not worth waking threads
constexpr int kChunk = 16;  // slots whose monomials stay in the first cache together

// The pairs of one atom in Ar (ar.inl).
template <class T>
struct ArPairs {
  typedef Vec<T> V;
  int64_t n = 0;
  Buffer<T> r, f, df;     // distance, cutoff function and its slope, or none
  Buffer<V> dr;           // dE/dr, lanes not summed
  Buffer<const V*> from;  // what the other atom of the pair has
  Buffer<int64_t> pair;

  void begin(int64_t most) {
    n = 0;
    for (Buffer<T>* list : {&r, &f, &df}) list->reserve_slack(most + Simd<T>::width);
    dr.reserve_slack(most + 1);
    from.reserve_slack(most + 1);
    pair.reserve_slack(most + 1);
  }
  void add(T distance, const V* other) {
    r[n] = distance;
    from[n++] = other;
  }
  int64_t bytes() const {
    return int64_t(r.bytes() + f.bytes() + df.bytes() + dr.bytes() + from.bytes() + pair.bytes());
  }
};

// Memory that is given out in pieces, and taken back all at once to be given out again.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (Chunk* chunk = first_; chunk;) {
      Chunk* next = chunk->next;
      ::free(chunk);
      chunk = next;
    }
  }

  void reset() {
    current_ = first_;
    used_ = 0;
  }
  void* get(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    while (current_ && used_ + bytes > current_->size) {
      if (!current_->next) break;
      current_ = current_->next;
      used_ = 0;
    }
    if (!current_ || used_ + bytes > current_->size) add(bytes > kChunkBytes ? bytes : kChunkBytes);
    void* found = reinterpret_cast<char*>(current_) + kHeader + used_;
    used_ += bytes;
    return found;
  }
  int64_t bytes() const { return total_; }

 private:
  static constexpr size_t kChunkBytes = size_t(1) << 20, kHeader = 64;
  struct Chunk {
    Chunk* next;
    size_t size;
  };

  void add(size_t bytes) {
    void* made = nullptr;
    if (::posix_memalign(&made, 64, kHeader + bytes)) throw OutOfMemory();
    Chunk* chunk = static_cast<Chunk*>(made);
    chunk->next = nullptr;
    chunk->size = bytes;
    (current_ ? current_->next : first_) = chunk;
    current_ = chunk;
    used_ = 0;
    total_ += int64_t(bytes);
  }

  Chunk *first_ = nullptr, *current_ = nullptr;
  size_t used_ = 0;
  int64_t total_ = 0;
};

// Slots of a block that a later pass takes as they are: d of each, and its pairs.
template <class T>
struct KeptSlots {
  int n_slots;  // -1: none
  int group[Model::kMaxGroups + 1];
  Vec<T>* d;  // [slot][3]
  int* pair;  // [slot][lane]
};

template <class T>
struct ThreadWorkspace {
  typedef Vec<T> V;
  static constexpr int W = Simd<T>::width;

  int n_slots = 0, group[Model::kMaxGroups + 1];  // first slot of each group
  Buffer<T> lane_d;                               // [lane][candidate][3]
  Buffer<int> lane_pair, pair;                    // [lane][candidate]; [slot][lane], -1: padding
  Buffer<V> geometry, g, dg;                      // [slot][kGeometry], [slot][n_b] twice
  Buffer<V> rho, rho_mixed, grad_rho;             // [group or x][n_b][n_A]
  Buffer<V> a, grad_a, b, grad_b;                 // [R][C][n_A], [R][C][n_B]
  Buffer<V> rows, grad_rows, values, slopes, gradients, scratch;
  Buffer<V> y, grad_y, outer, grad_g, factor, grad_factor;  // of a chunk of slots
  Buffer<V> ar, more_dr;  // sums of a block's atoms; dE/dr of each slot by Ar
  ArPairs<T> ar_pairs;
  Arena kept_slots;
  uint64_t ticks_of[kParts] = {};
  int64_t bad_atom = INT64_MAX;
  bool unsorted = false;
  alignas(64) T nowhere[kRow] = {};

  int64_t bytes() const {
    return int64_t(lane_d.bytes() + lane_pair.bytes() + pair.bytes() + geometry.bytes() +
                   g.bytes() + dg.bytes() + rho.bytes() + rho_mixed.bytes() + grad_rho.bytes() +
                   a.bytes() + grad_a.bytes() + b.bytes() + grad_b.bytes() + rows.bytes() +
                   grad_rows.bytes() + values.bytes() + slopes.bytes() + gradients.bytes() +
                   scratch.bytes() + y.bytes() + grad_y.bytes() + outer.bytes() + grad_g.bytes() +
                   factor.bytes() + grad_factor.bytes() + ar.bytes() + more_dr.bytes() +
                   ar_pairs.bytes() + kept_slots.bytes());
  }
};

// Adds the time of a scope to a part of the work.
class ScopedTimer {
 public:
  ScopedTimer(uint64_t* parts, Part part) : to_(parts + part), start_(ticks()) {}
  ~ScopedTimer() { *to_ += ticks() - start_; }

 private:
  uint64_t* to_;
  uint64_t start_;
};

// Receivers first .. first+n_lanes-1 in lanes 0 .. n_lanes-1.
struct Block {
  int64_t number, first;
  int n_lanes, segment;  // segment: a fixed run of blocks, see kSegments
};

// Number of parts in which gradients of senders are summed, each by one thread in the order of its
// blocks: the same bits for any number of threads, and less memory than a row for every pair.
constexpr int kSegments = 16;

// Lockstep slots of the block's pairs within the cutoff.
template <class T>
void find_slots(ThreadWorkspace<T>& work, const Block& block, const cf_list& list,
                const AtomRecord* sites, const double* shifts, double cutoff, int n_groups) {
  constexpr int W = ThreadWorkspace<T>::W;
  ScopedTimer timer(work.ticks_of, kPairs);
  int64_t capacity = 1;
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    const int64_t* range = list.first + block.first + lane;
    capacity = range[1] - range[0] > capacity ? range[1] - range[0] : capacity;
  }
  T* lane_d = work.lane_d.reserve_slack(size_t(W) * capacity * 3 + 4);
  int* lane_pair = work.lane_pair.reserve_slack(size_t(W) * capacity + 1);
  int count[W][Model::kMaxGroups] = {};
  const double limit = cutoff * cutoff;
  const int64_t base = list.first[block.first];
  bool unsorted = false;
  for (int lane = 0; lane < block.n_lanes; ++lane) {
    const AtomRecord center = sites[block.first + lane];
    const int64_t end = list.first[block.first + lane + 1];
    T* d_to = lane_d + size_t(lane) * capacity * 3;
    int* pair_to = lane_pair + size_t(lane) * capacity;
    int64_t last_species = 0;
    for (int64_t e = list.first[block.first + lane]; e < end; ++e) {
      const AtomRecord& site = sites[list.sender[e]];
      const double* shift = shifts + (list.shift ? 3 * int64_t(list.shift[e]) : 0);
      const double dx = center.x - site.x + shift[0], dy = center.y - site.y + shift[1],
                   dz = center.z - site.z + shift[2];
      const int inside = dx * dx + dy * dy + dz * dz < limit;
      // written always, kept or overwritten by the next: no branch to guess wrong
      d_to[0] = T(dx);
      d_to[1] = T(dy);
      d_to[2] = T(dz);
      *pair_to = int(e - base);
      d_to += 3 * inside;
      pair_to += inside;
      const int64_t species = n_groups > 1 ? site.species : 0;
      count[lane][species] += inside;
      unsorted |= species < last_species;
      last_species = species;
    }
  }
  work.unsorted |= unsorted;
  int total = 0;
  for (int s = 0; s < n_groups; ++s) {
    int most = 0;
    for (int lane = 0; lane < block.n_lanes; ++lane)
      most = count[lane][s] > most ? count[lane][s] : most;
    work.group[s] = total;
    total += most;
  }
  work.group[n_groups] = work.n_slots = total;
  // d goes where u will stand
  T* geometry = reinterpret_cast<T*>(work.geometry.reserve_slack(size_t(total) * kGeometry + 1));
  int* pair = work.pair.reserve_slack(size_t(total) * W + 1);
  for (int lane = 0; lane < W; ++lane) {
    const T* d_from = lane_d + size_t(lane) * capacity * 3;
    const int* pair_from = lane_pair + size_t(lane) * capacity;
    for (int s = 0; s < n_groups; ++s) {
      const int n = lane < block.n_lanes ? count[lane][s] : 0;
      int slot = work.group[s];
      for (int k = 0; k < n; ++k, ++slot, d_from += 3, ++pair_from) {
        T* to = geometry + size_t(slot) * kGeometry * W + lane;
        to[0] = d_from[0];
        to[W] = d_from[1];
        to[2 * W] = d_from[2];
        pair[size_t(slot) * W + lane] = *pair_from;
      }
      for (; slot < work.group[s + 1]; ++slot) {
        T* to = geometry + size_t(slot) * kGeometry * W + lane;
        to[0] = T(2.0 * cutoff);  // beyond the cutoff: contributes exactly zero
        to[W] = to[2 * W] = T(0);
        pair[size_t(slot) * W + lane] = -1;
      }
    }
  }
}

// Keeps the slots that find_slots has just made, before geometry takes the place of d.
template <class T>
void keep_slots(ThreadWorkspace<T>& work, int n_groups, KeptSlots<T>& kept) {
  constexpr int W = ThreadWorkspace<T>::W;
  const size_t n = size_t(work.n_slots);
  kept.d = static_cast<Vec<T>*>(work.kept_slots.get(3 * n * sizeof(Vec<T>)));
  kept.pair = static_cast<int*>(work.kept_slots.get(n * W * sizeof(int)));
  for (size_t slot = 0; slot < n; ++slot)
    for (int x = 0; x < 3; ++x) kept.d[3 * slot + x] = work.geometry[slot * kGeometry + x];
  ::memcpy(kept.pair, work.pair.data(), n * W * sizeof(int));
  ::memcpy(kept.group, work.group, sizeof(int) * (n_groups + 1));
  kept.n_slots = work.n_slots;
}

template <class T>
void take_slots(ThreadWorkspace<T>& work, int n_groups, const KeptSlots<T>& kept) {
  constexpr int W = ThreadWorkspace<T>::W;
  ScopedTimer timer(work.ticks_of, kPairs);
  const size_t n = size_t(kept.n_slots);
  Vec<T>* geometry = work.geometry.reserve_slack(n * kGeometry + 1);
  for (size_t slot = 0; slot < n; ++slot)
    for (int x = 0; x < 3; ++x) geometry[slot * kGeometry + x] = kept.d[3 * slot + x];
  ::memcpy(work.pair.reserve_slack(n * W + 1), kept.pair, n * W * sizeof(int));
  ::memcpy(work.group, kept.group, sizeof(int) * (n_groups + 1));
  work.n_slots = kept.n_slots;
}

// Unit vectors, cutoff function, g_n and dg_n/dr of every slot; notes an atom with another on it.
template <class T>
void radial_of_slots(ThreadWorkspace<T>& work, const Block& block, const Radial<T>& radial) {
  typedef Vec<T> V;
  ScopedTimer timer(work.ticks_of, kRadial);
  const int n_b = radial.n_b;
  V* g = work.g.reserve_slack(size_t(work.n_slots) * n_b + 1);
  V* dg = work.dg.reserve_slack(size_t(work.n_slots) * n_b + 1);
  V least = splat<T>(T(1));
  for (int slot = 0; slot < work.n_slots; ++slot) {
    V* geo = work.geometry.data() + size_t(slot) * kGeometry;
    const V x = geo[kUx], y = geo[kUy], z = geo[kUz];
    const V r = sqrt<T>(x * x + y * y + z * z);
    const V inverse = T(1) / (r + T(kLengthShift));
    geo[kUx] = x * inverse;
    geo[kUy] = y * inverse;
    geo[kUz] = z * inverse;
    geo[kInverse] = inverse;
    geo[kR] = r;
    least = min(least, r);
    V f, df;
    radial.cutoff(r, f, df);
    geo[kFc] = f;
    geo[kSlope] = df;
    radial(r, f, df, g + size_t(slot) * n_b, dg + size_t(slot) * n_b);
  }
  for (int lane = 0; lane < block.n_lanes; ++lane)
    if (!(least[lane] > T(0)) && block.first + lane < work.bad_atom)
      work.bad_atom = block.first + lane;
}

}  // namespace CF_ISA
}  // namespace cace_fast
