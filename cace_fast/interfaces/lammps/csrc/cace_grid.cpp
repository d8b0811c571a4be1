#include "cace_grid.h"

#include <algorithm>
#include <cstring>

#include "cace_remap.h"

using namespace LAMMPS_NS;

namespace {

typedef CaceGrid::Place Place;

// A run of points that neither the border of the grid nor that of an owner cuts.
struct Run {
  int64_t here, there, count;
};

// Where points first .. first + n - 1 of a periodic axis lie in the part of an owner.
std::vector<Run> runs(int64_t first, int64_t n, int64_t size, int64_t owner_first,
                      int64_t owner_count) {
  std::vector<Run> out;
  for (int64_t turn = 0; turn * size < first + n; ++turn) {
    const int64_t low = std::max(first, owner_first + turn * size);
    const int64_t high = std::min(first + n, owner_first + owner_count + turn * size);
    if (low < high) out.push_back({low - first, low - turn * size - owner_first, high - low});
  }
  return out;
}

// f(offset here, offset there, points) for every row of a block.
template <class F>
void rows(const CaceGrid::Block& block, const Place& here, const int64_t there[3], const F& f) {
  for (int64_t i = 0; i < block.count[0]; ++i)
    for (int64_t j = 0; j < block.count[1]; ++j)
      f(((block.here[0] + i) * here[1] + block.here[1] + j) * here[2] + block.here[2],
        ((block.there[0] + i) * there[1] + block.there[1] + j) * there[2] + block.there[2],
        block.count[2]);
}

}  // namespace

void CaceGrid::setup(MPI_Comm world, const cf_mesh& mesh, const cf_brick& atoms,
                     const cf_brick& owned) {
  world_ = world;
  mesh_ = mesh;
  atoms_ = atoms;
  owned_ = owned;
  for (int a = 0; a < 3; ++a)
    held_[a] = atoms.count[a] + mesh.width - 1 + (a == 2 ? int(CF_MESH_PAD) : 0);
  int n_ranks;
  MPI_Comm_size(world, &n_ranks);
  const cf_brick mine[2] = {atoms, owned};
  std::vector<cf_brick> all(2 * n_ranks);
  MPI_Allgather(mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, world);
  owners_.clear();
  holders_.clear();
  for (int rank = 0; rank < n_ranks; ++rank) {
    meet(owners_, rank, atoms_, all[2 * rank + 1]);
    meet(holders_, rank, all[2 * rank], owned_);
  }
}

// The blocks that a rank's atoms and an owner share; both of them count the blocks in this order.
void CaceGrid::meet(std::vector<Partner>& partners, int rank, const cf_brick& atoms,
                    const cf_brick& owner) const {
  Partner partner = {rank, 0, {}};
  std::vector<Run> along[3];
  for (int a = 0; a < 3; ++a) {
    const int64_t n = atoms.count[a] > 0 ? atoms.count[a] + mesh_.width - 1 : 0;
    along[a] = runs(atoms.first[a], n, mesh_.size[a], owner.first[a], owner.count[a]);
  }
  for (const Run& x : along[0])
    for (const Run& y : along[1])
      for (const Run& z : along[2]) {
        partner.blocks.push_back(
            {{x.here, y.here, z.here}, {x.there, y.there, z.there}, {x.count, y.count, z.count}});
        partner.points += x.count * y.count * z.count;
      }
  if (partner.points > 0) partners.push_back(partner);
}

// Sends what `pack` writes for the blocks of each partner, and reads what arrives in the same order.
template <class T, class Pack, class Unpack>
void CaceGrid::move(int n, const std::vector<Partner>& to, const std::vector<Partner>& from,
                    const Pack& pack, const Unpack& unpack) {
  const auto size = [&](const std::vector<Partner>& partners) {
    int64_t points = 0;
    for (const Partner& partner : partners) points += partner.points;
    return points * n * sizeof(T);
  };
  out_.resize(size(to) + 1);
  in_.resize(size(from) + 1);
  std::vector<MPI_Request> requests;
  T* at = reinterpret_cast<T*>(in_.data());
  for (const Partner& partner : from) {
    cace_receive(at, partner.points * n * int64_t(sizeof(T)), partner.rank, world_, requests);
    at += partner.points * n;
  }
  T* write = reinterpret_cast<T*>(out_.data());
  for (const Partner& partner : to) {
    const T* first = write;
    for (const Block& block : partner.blocks)
      for (int grid = 0; grid < n; ++grid) write = pack(block, grid, write);
    cace_send(first, partner.points * n * int64_t(sizeof(T)), partner.rank, world_, requests);
  }
  MPI_Waitall(int(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  const T* read = reinterpret_cast<const T*>(in_.data());
  for (const Partner& partner : from)
    for (const Block& block : partner.blocks)
      for (int grid = 0; grid < n; ++grid) read = unpack(block, grid, read);
}

template <class T> void CaceGrid::to_owners(int n, const T* grids, T* owned) {
  move<T>(
      n, owners_, holders_,
      [&](const Block& block, int grid, T* to) {
        const T* from = grids + grid * n_held();
        rows(block, held_, owned_.count, [&](int64_t here, int64_t, int64_t count) {
          std::memcpy(to, from + here, count * sizeof(T));
          to += count;
        });
        return to;
      },
      [&](const Block& block, int grid, const T* from) {
        T* to = owned + grid * n_owned();
        rows(block, held_, owned_.count, [&](int64_t, int64_t there, int64_t count) {
          for (int64_t k = 0; k < count; ++k) to[there + k] += from[k];
          from += count;
        });
        return from;
      });
}

template <class T> void CaceGrid::from_owners(int n, const T* owned, T* grids) {
  move<T>(
      n, holders_, owners_,
      [&](const Block& block, int grid, T* to) {
        const T* from = owned + grid * n_owned();
        rows(block, held_, owned_.count, [&](int64_t, int64_t there, int64_t count) {
          for (int64_t k = 0; k < count; ++k) to[k] = from[there + k];
          to += count;
        });
        return to;
      },
      [&](const Block& block, int grid, const T* from) {
        T* to = grids + grid * n_held();
        rows(block, held_, owned_.count, [&](int64_t here, int64_t, int64_t count) {
          std::memcpy(to + here, from, count * sizeof(T));
          from += count;
        });
        return from;
      });
}

double CaceGrid::bytes() const { return double(out_.capacity() + in_.capacity()); }

template void CaceGrid::to_owners(int, const float*, float*);
template void CaceGrid::to_owners(int, const double*, double*);
template void CaceGrid::from_owners(int, const float*, float*);
template void CaceGrid::from_owners(int, const double*, double*);
