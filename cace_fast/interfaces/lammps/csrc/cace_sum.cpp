#include "cace_sum.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <stdexcept>

using namespace LAMMPS_NS;

namespace {

enum { kLibrary, kTransform, kExchange };

// Where every rank has all sums: more than this is refused.
constexpr int64_t kMostNumbers = int64_t(1) << 25;  // 256 MiB

// Adds the seconds since it began to a sum.
class Clock {
 public:
  explicit Clock(double& to) : to_(to), start_(MPI_Wtime()) {}
  ~Clock() { to_ += MPI_Wtime() - start_; }

 private:
  double& to_;
  const double start_;
};

// The mesh takes its transforms from this plugin, not from the library: bricks are ours.
int no_transform(void*, const cf_grids*, int32_t, void*, void*) { return CF_ORDER; }

void cross(const double* a, const double* b, double* c) {
  for (int k = 0; k < 3; ++k)
    c[k] = a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3];
}

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// Columns g_a of the inverse of the box that is summed: the fractional coordinate of r is dot(r, g_a).
void dual(const CaceBox& box, double vacuum, double g[3][3]) {
  double h[3][3];
  std::memcpy(h, box.cell, sizeof h);
  if (box.periodic >= 2) {
    const int a = box.periodic - 2;
    double normal[3];
    cross(h[(a + 1) % 3], h[(a + 2) % 3], normal);
    const double length = std::sqrt(dot(normal, normal));
    const double height = std::fabs(dot(normal, h[a])) / length + vacuum;
    for (int k = 0; k < 3; ++k) h[a][k] = normal[k] / length * height;
  }
  for (int a = 0; a < 3; ++a) {
    cross(h[(a + 1) % 3], h[(a + 2) % 3], g[a]);
    const double volume = dot(h[a], g[a]);
    for (double& x : g[a]) x /= volume;
  }
}

}  // namespace

CaceSum::CaceSum(LAMMPS* lmp, const cf_long_range& term, const CaceKspace& settings)
    : Pointers(lmp), n_q_(term.n_charges), slab_vacuum_(settings.slab_vacuum),
      frozen_(settings.frozen) {
  char text[CF_ERROR_LENGTH] = "";
  int code = cf_ewald_create(&term.ewald, &ewald_, text);
  const cf_transform transform = {no_transform, nullptr};
  if (code == CF_OK) {
    cf_ewald_threads(ewald_, settings.threads);
    cf_ewald_slab(ewald_, settings.slab_vacuum);
    code = cf_ewald_method(ewald_, settings.method, settings.tolerance, &transform, text);
  }
  if (code == CF_OK) return;
  cf_ewald_free(ewald_);
  throw std::runtime_error(text);
}

CaceSum::~CaceSum() { cf_ewald_free(ewald_); }

void CaceSum::run(const CaceBox& box, int n, const double* q, const double* r, double* energies,
                  double* slopes, double* forces, double* virial, CaceOutcome& outcome) {
  int moved = 0;
  {
    Clock clock(seconds_[kLibrary]);
    if (frozen_) cf_ewald_freeze(ewald_, box.cell);
    frozen_ = false;
    outcome.part([&](char* text) {
      const int code = cf_ewald_cell(ewald_, box.cell, box.periodic, box.n_all, n_q_, &size_, text);
      return code == CF_OK ? cf_ewald_mesh(ewald_, &mesh_, text) : code;
    });
    outcome.part([&](char* text) {
      if (mesh_.width || size_ <= kMostNumbers) return int(CF_OK);
      snprintf(
          text, CF_ERROR_LENGTH,
          "the box has too many vectors k for ranks to add up (%lld numbers, at most %lld): use "
          "kspace auto or mesh",
          (long long)size_, (long long)kMostNumbers);
      return int(CF_INVALID);
    });
    if (outcome.good()) moved = mesh_.width && !brick_holds(box, n, r);
  }
  const double start = MPI_Wtime();
  const bool good = outcome.all_good(world, moved);
  seconds_[kExchange] += MPI_Wtime() - start;
  if (!good) return;
  if (!mesh_.width) {
    sum_directly(n, q, r, energies, slopes, forces, virial, outcome);
    return;
  }
  if (moved) {
    if (mesh_.precision == 32) plan(single_);
    else plan(double_);
    planned_ = mesh_;
  }
  sum_on_mesh(n, q, r, energies, slopes, forces, virial, outcome);
}

// New bricks; a new transform where the mesh is another.
template <class T>
void CaceSum::plan(CaceFFT<T>& fft) {
  if (std::memcmp(&planned_, &mesh_, sizeof mesh_)) fft.setup(world, mesh_);
  grid_.setup(world, mesh_, needed_, fft.points());
}

// Finds the points that the atoms here spread to; false if the present brick does not have them all.
bool CaceSum::brick_holds(const CaceBox& box, int n, const double* r) {
  double g[3][3];
  dual(box, slab_vacuum_, g);
  bool holds = std::memcmp(&planned_, &mesh_, sizeof mesh_) == 0;
  for (int a = 0; a < 3; ++a) {
    const int64_t size = mesh_.size[a];
    needed_.first[a] = needed_.count[a] = 0;
    if (n == 0) continue;
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (int i = 0; i < n; ++i) {
      const double f = dot(r + 3 * i, g[a]);
      low = std::min(low, f);
      high = std::max(high, f);
    }
    const auto begin = [&](double f) { return std::ceil(f * size - 0.5 * mesh_.width); };
    const int64_t first = int64_t(begin(low)), last = int64_t(begin(high));
    const auto inside = [&](int64_t place) { return ((place % size) + size) % size; };
    const cf_brick& now = grid_.atoms();
    const int64_t before = inside(first - now.first[a]);
    holds &= now.count[a] == size || (now.count[a] > 0 && before + (last - first) < now.count[a]);
    // a point more on both sides: atoms may move on before the brick has to
    needed_.first[a] = inside(first - 1);
    needed_.count[a] = last - first + 3;
    if (needed_.count[a] >= size) {
      needed_.first[a] = 0;
      needed_.count[a] = size;
    }
  }
  return holds;
}

void CaceSum::sum_directly(int n, const double* q, const double* r, double* energies,
                           double* slopes, double* forces, double* virial, CaceOutcome& outcome) {
  sums_.assign(size_, 0.0);
  outcome.part([&](char* text) {
    Clock clock(seconds_[kLibrary]);
    return cf_ewald_sums(ewald_, n, q, r, sums_.data(), text);
  });
  {
    Clock clock(seconds_[kExchange]);
    MPI_Allreduce(MPI_IN_PLACE, sums_.data(), int(size_), MPI_DOUBLE, MPI_SUM, world);
    exchanged_ = 8.0 * size_;
  }
  outcome.part([&](char* text) {
    Clock clock(seconds_[kLibrary]);
    return cf_ewald_finish(ewald_, n, q, r, sums_.data(), energies, slopes, forces, virial, text);
  });
}

void CaceSum::sum_on_mesh(int n, const double* q, const double* r, double* energies, double* slopes,
                          double* forces, double* virial, CaceOutcome& outcome) {
  // not a part: a rank without memory for what it exchanges ends the run
  std::vector<double> moments(3 * n_q_, 0.0);
  held_.resize(n_q_ * grid_.n_held() * (mesh_.precision / 8) / 8 + 1);
  outcome.part([&](char* text) {
    if (n == 0) return int(CF_OK);
    Clock clock(seconds_[kLibrary]);
    const int code = cf_ewald_spread(ewald_, &grid_.atoms(), n, q, r, held_.data(), text);
    return code == CF_OK ? cf_ewald_moments(ewald_, n, q, r, moments.data(), text) : code;
  });
  if (mesh_.precision == 32) potentials(single_, owned_single_, modes_single_, virial, outcome);
  else potentials(double_, owned_double_, modes_double_, virial, outcome);
  {
    Clock clock(seconds_[kExchange]);
    MPI_Allreduce(MPI_IN_PLACE, moments.data(), 3 * n_q_, MPI_DOUBLE, MPI_SUM, world);
  }
  outcome.part([&](char* text) {
    if (n == 0) return int(CF_OK);
    Clock clock(seconds_[kLibrary]);
    return cf_ewald_gather(ewald_, &grid_.atoms(), n, q, r, held_.data(), moments.data(), energies,
                           slopes, forces, virial, text);
  });
}

// From charges on the grid of the atoms here to potentials on it.
template <class T>
void CaceSum::potentials(CaceFFT<T>& fft, std::vector<T>& owned, std::vector<T>& modes,
                         double* virial, CaceOutcome& outcome) {
  T* held = reinterpret_cast<T*>(held_.data());
  const int64_t points = grid_.n_owned(), n_modes = cace_points(fft.modes());
  owned.assign(n_q_ * points, T(0));
  modes.resize(2 * n_q_ * n_modes);
  {
    Clock clock(seconds_[kExchange]);
    grid_.to_owners(n_q_, held, owned.data());
  }
  {
    Clock clock(seconds_[kTransform]);
    for (int c = 0; c < n_q_; ++c)
      fft.forward(owned.data() + c * points, modes.data() + 2 * c * n_modes);
  }
  outcome.part([&](char* text) {
    Clock clock(seconds_[kLibrary]);
    if (n_modes == 0) return int(CF_OK);
    return cf_ewald_multiply(ewald_, &fft.modes(), 1, modes.data(), virial, text);
  });
  {
    Clock clock(seconds_[kTransform]);
    for (int c = 0; c < n_q_; ++c)
      fft.backward(modes.data() + 2 * c * n_modes, owned.data() + c * points);
  }
  Clock clock(seconds_[kExchange]);
  grid_.from_owners(n_q_, owned.data(), held);
  exchanged_ = sizeof(T) * double(n_q_) * double(grid_.n_held() + points + 4 * fft.exchanged());
}

double CaceSum::bytes() const {
  const size_t doubles =
      sums_.capacity() + held_.capacity() + owned_double_.capacity() + modes_double_.capacity();
  const size_t floats = owned_single_.capacity() + modes_single_.capacity();
  return 8.0 * double(doubles) + 4.0 * double(floats) + grid_.bytes() + single_.bytes() +
         double_.bytes();
}
