#include "cace_remap.h"

#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;

namespace {

bool meet(const cf_brick& a, const cf_brick& b, cf_brick& common) {
  for (int k = 0; k < 3; ++k) {
    common.first[k] = std::max(a.first[k], b.first[k]);
    common.count[k] = std::min(a.first[k] + a.count[k], b.first[k] + b.count[k]) - common.first[k];
    if (common.count[k] <= 0) return false;
  }
  return true;
}

// f(place in the brick, points) for each row of a part of it.
template <class F>
void rows(const cf_brick& brick, const cf_brick& part, const F& f) {
  for (int64_t x = part.first[0]; x < part.first[0] + part.count[0]; ++x)
    for (int64_t y = part.first[1]; y < part.first[1] + part.count[1]; ++y)
      f(((x - brick.first[0]) * brick.count[1] + y - brick.first[1]) * brick.count[2] +
            part.first[2] - brick.first[2],
        part.count[2]);
}

}  // namespace

void CaceRemap::setup(MPI_Comm world, const cf_brick& from, const cf_brick& to) {
  world_ = world;
  from_ = from;
  to_ = to;
  int n_ranks;
  MPI_Comm_size(world, &n_ranks);
  const cf_brick own[2] = {from, to};
  std::vector<cf_brick> all(2 * n_ranks);
  MPI_Allgather(own, sizeof own, MPI_BYTE, all.data(), sizeof own, MPI_BYTE, world);
  sent_.clear();
  received_.clear();
  for (int rank = 0; rank < n_ranks; ++rank) {
    Partner partner = {rank, {}};
    if (meet(from, all[2 * rank + 1], partner.common)) sent_.push_back(partner);
    if (meet(all[2 * rank], to, partner.common)) received_.push_back(partner);
  }
}

template <class T>
void CaceRemap::move(const cf_brick& here, const std::vector<Partner>& out, const T* from,
                     const cf_brick& there, const std::vector<Partner>& in, T* to) {
  constexpr int64_t SIZE = 2 * sizeof(T);
  out_.resize(cace_points(here) * SIZE + 1);
  in_.resize(cace_points(there) * SIZE + 1);
  std::vector<MPI_Request> requests;
  char* at = in_.data();
  for (const Partner& partner : in) {
    const int64_t bytes = cace_points(partner.common) * SIZE;
    cace_receive(at, bytes, partner.rank, world_, requests);
    at += bytes;
  }
  char* write = out_.data();
  for (const Partner& partner : out) {
    const char* first = write;
    rows(here, partner.common, [&](int64_t place, int64_t points) {
      std::memcpy(write, from + 2 * place, points * SIZE);
      write += points * SIZE;
    });
    cace_send(first, write - first, partner.rank, world_, requests);
  }
  MPI_Waitall(int(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  const char* read = in_.data();
  for (const Partner& partner : in)
    rows(there, partner.common, [&](int64_t place, int64_t points) {
      std::memcpy(to + 2 * place, read, points * SIZE);
      read += points * SIZE;
    });
}

template <class T>
void CaceRemap::run(const T* from, T* to) {
  move(from_, sent_, from, to_, received_, to);
}

template <class T>
void CaceRemap::back(const T* to, T* from) {
  move(to_, received_, to, from_, sent_, from);
}

template void CaceRemap::run(const float*, float*);
template void CaceRemap::run(const double*, double*);
template void CaceRemap::back(const float*, float*);
template void CaceRemap::back(const double*, double*);
