#include "search.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "engine.h"
#include "error.h"
#include "ewald.h"

namespace cace_fast {
namespace {

using Near = int (*)(const SearchSites&, int32_t, int32_t, const double*, double, int32_t*);

Near kernel() {
  std::string error;
  [[maybe_unused]] const char* name = isa_name(error);
#ifdef CF_HAS_AVX512
  if (std::strcmp(name, "avx512") == 0) return avx512::sites_near;
#endif
#ifdef CF_HAS_AVX2
  if (std::strcmp(name, "avx2") == 0) return avx2::sites_near;
#endif
  return base::sites_near;
}

// Boxes of a grid along an axis, some two for the reach; `most` of them on either side can be within it.
struct Axis {
  bool periodic;
  double low, extent;  // in fractions of the cell
  int64_t n, most;

  int64_t box(double fraction) const {
    const double f = periodic ? fraction : (extent > 0.0 ? (fraction - low) / extent : 0.0);
    return std::min(n - 1, std::max<int64_t>(0, static_cast<int64_t>(f * double(n))));
  }
};

// Boxes of a row that stand together in the order of sites, and the image of the cell that they are in.
struct Run {
  int32_t first, end;
  int32_t image[3];
};

class Grid {
 public:
  explicit Grid(const SearchSystem& in) : in_(in) {
    if (!ewald_invert(in.cell, inverse_, volume_))
      throw Invalid("cell", "three vectors that are independent", "others");
    place_atoms();
    size_axes();
    sort_atoms();
  }

  int64_t n_boxes() const { return axes_[0].n * axes_[1].n * axes_[2].n; }
  // About how many pairs there are, if atoms are everywhere alike.
  double expected() const {
    double volume = volume_;
    for (const Axis& axis : axes_) volume *= axis.extent;
    const double each = 4.0 / 3.0 * 3.14159265 * in_.reach * in_.reach * in_.reach / volume;
    return std::min(double(in_.n) * std::min(each * double(in_.n), 200.0), 1e9);
  }
  // The pairs whose receivers are in these boxes.
  void pairs(int64_t first, int64_t end, FoundPairs& found) const;

 private:
  void place_atoms();
  void size_axes();
  void sort_atoms();
  void runs_near(int64_t box, std::vector<Run>& runs) const;
  void gather(const std::vector<Run>& runs, struct Around& around) const;
  double fraction(const double* r, int a) const {
    return r[0] * inverse_[a] + r[1] * inverse_[3 + a] + r[2] * inverse_[6 + a];
  }

  const SearchSystem& in_;
  double inverse_[9], volume_ = 0.0;
  Axis axes_[3] = {};
  std::vector<double> fractions_;  // [n][3] inside the cell along periodic directions
  std::vector<int32_t> wraps_;     // [n][3] cells that an atom was moved by
  std::vector<double> x_, y_, z_;  // of sites, box after box
  std::vector<int32_t> atom_, first_;
};

void Grid::place_atoms() {
  fractions_.resize(3 * in_.n);
  wraps_.assign(3 * in_.n, 0);
  for (int a = 0; a < 3; ++a) {
    Axis& axis = axes_[a];
    axis.periodic = in_.periodic[a] != 0;
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (int64_t i = 0; i < in_.n; ++i) {
      double f = fraction(in_.positions + 3 * i, a);
      if (axis.periodic) {
        const double turns = std::floor(f);
        if (!(std::fabs(turns) < 1e9))
          throw Invalid("positions", "atoms less than 1e9 cells away",
                        "another, atom " + std::to_string(i));
        f -= turns;
        wraps_[3 * i + a] = static_cast<int32_t>(turns);
      }
      fractions_[3 * i + a] = f;
      low = std::min(low, f);
      high = std::max(high, f);
    }
    axis.low = axis.periodic ? 0.0 : low;
    axis.extent = axis.periodic ? 1.0 : high - low;
  }
}

void Grid::size_axes() {
  double width[3], total = 1.0, images = 1.0;
  for (int a = 0; a < 3; ++a) {
    const double *g = inverse_ + a,
                 height = 1.0 / std::sqrt(g[0] * g[0] + g[3] * g[3] + g[6] * g[6]);
    width[a] = axes_[a].extent * height;
    total *= std::max(1.0, std::floor(2.0 * width[a] / in_.reach));
  }
  // no more boxes than some for each atom: most would be empty
  const double most = 64.0 + 2.0 * double(in_.n),
               fewer = total > most ? std::cbrt(most / total) : 1.0;
  for (int a = 0; a < 3; ++a) {
    Axis& axis = axes_[a];
    axis.n = static_cast<int64_t>(std::max(1.0, std::floor(2.0 * width[a] / in_.reach * fewer)));
    axis.most =
        static_cast<int64_t>(std::min(1e9, std::ceil(in_.reach / (width[a] / double(axis.n)))));
    if (!axis.periodic) axis.most = width[a] > 0.0 ? std::min(axis.most, axis.n - 1) : 0;
    images *= 2.0 * double(axis.most) + 1.0;
  }
  if (!(images < 1e8))
    throw Invalid("reach", "a distance of less than some hundred cells",
                  std::to_string(in_.reach) + " A");
}

void Grid::sort_atoms() {
  const int64_t n = in_.n;
  std::vector<int32_t> box(n);
  first_.assign(n_boxes() + 1, 0);
  for (int64_t i = 0; i < n; ++i) {
    const double* f = fractions_.data() + 3 * i;
    box[i] = static_cast<int32_t>(
        (axes_[0].box(f[0]) * axes_[1].n + axes_[1].box(f[1])) * axes_[2].n + axes_[2].box(f[2]));
    ++first_[box[i] + 1];
  }
  for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
  std::vector<int32_t> next(first_.begin(), first_.end() - 1);
  x_.resize(n);
  y_.resize(n);
  z_.resize(n);
  atom_.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t site = next[box[i]]++;
    const double *r = in_.positions + 3 * i, *h = in_.cell;
    const int32_t* w = wraps_.data() + 3 * i;
    x_[site] = r[0] - (w[0] * h[0] + w[1] * h[3] + w[2] * h[6]);
    y_[site] = r[1] - (w[0] * h[1] + w[1] * h[4] + w[2] * h[7]);
    z_[site] = r[2] - (w[0] * h[2] + w[1] * h[5] + w[2] * h[8]);
    atom_[site] = static_cast<int32_t>(i);
  }
}

// Boxes along an axis that are within the reach of one: its number in the cell, and the image.
struct Step {
  int64_t box;
  int32_t image;
};

std::vector<Step> steps(const Axis& axis, int64_t from) {
  std::vector<Step> out;
  for (int64_t at = from - axis.most; at <= from + axis.most; ++at) {
    int64_t image = at >= 0 ? at / axis.n : -((-at + axis.n - 1) / axis.n);
    if (!axis.periodic && (at < 0 || at >= axis.n)) continue;
    if (!axis.periodic) image = 0;
    out.push_back({at - image * axis.n, static_cast<int32_t>(image)});
  }
  return out;
}

void Grid::runs_near(int64_t box, std::vector<Run>& runs) const {
  runs.clear();
  const int64_t n2 = axes_[2].n, n1 = axes_[1].n;
  const std::vector<Step> along0 = steps(axes_[0], box / (n1 * n2)),
                          along1 = steps(axes_[1], box / n2 % n1),
                          along2 = steps(axes_[2], box % n2);
  for (const Step& a : along0)
    for (const Step& b : along1) {
      const int64_t row = (a.box * n1 + b.box) * n2;
      for (size_t k = 0; k < along2.size();) {
        size_t last = k;
        while (last + 1 < along2.size() && along2[last + 1].image == along2[k].image) ++last;
        const Run run = {first_[row + along2[k].box],
                         first_[row + along2[last].box + 1],
                         {a.image, b.image, along2[k].image}};
        if (run.first < run.end) runs.push_back(run);
        k = last + 1;
      }
    }
}

// What the atoms of a box may have as neighbours: sites where their images stand.
struct Around {
  std::vector<double> x, y, z;
  std::vector<int32_t> site, run;

  void clear() {
    for (std::vector<double>* list : {&x, &y, &z}) list->clear();
    site.clear();
    run.clear();
  }
};

void Grid::gather(const std::vector<Run>& runs, Around& around) const {
  const double* h = in_.cell;
  around.clear();
  for (size_t k = 0; k < runs.size(); ++k) {
    const int32_t* s = runs[k].image;
    const double dx = s[0] * h[0] + s[1] * h[3] + s[2] * h[6],
                 dy = s[0] * h[1] + s[1] * h[4] + s[2] * h[7],
                 dz = s[0] * h[2] + s[1] * h[5] + s[2] * h[8];
    for (int32_t site = runs[k].first; site < runs[k].end; ++site) {
      around.x.push_back(x_[site] + dx);
      around.y.push_back(y_[site] + dy);
      around.z.push_back(z_[site] + dz);
      around.site.push_back(site);
      around.run.push_back(int32_t(k));
    }
  }
}

void Grid::pairs(int64_t first, int64_t end, FoundPairs& found) const {
  const Near near = kernel();
  const double limit = in_.reach * in_.reach;
  std::vector<Run> runs;
  std::vector<int32_t> hits;
  Around around;
  found.n = 0;
  for (int64_t box = first; box < end; ++box) {
    if (first_[box] == first_[box + 1]) continue;
    runs_near(box, runs);
    gather(runs, around);
    const int32_t n_around = static_cast<int32_t>(around.site.size());
    hits.resize(n_around + SEARCH_CHUNK);
    const SearchSites sites = {around.x.data(), around.y.data(), around.z.data()};
    for (int32_t site = first_[box]; site < first_[box + 1]; ++site) {
      const double at[3] = {x_[site], y_[site], z_[site]};
      const int n = near(sites, 0, n_around, at, limit, hits.data());
      const int64_t i = atom_[site];
      const int32_t* wi = wraps_.data() + 3 * i;
      if (found.n + n > found.room) found.reserve((found.n + n) / 2 * 3 + 1000);
      int64_t *receivers = found.receivers.data(), *senders = found.senders.data(),
              *shifts = found.shifts.data();
      for (int k = 0; k < n; ++k) {
        const int32_t other = around.site[hits[k]], *s = runs[around.run[hits[k]]].image;
        if (other == site && s[0] == 0 && s[1] == 0 && s[2] == 0) continue;
        const int64_t j = atom_[other];
        const int32_t* wj = wraps_.data() + 3 * j;
        receivers[found.n] = i;
        senders[found.n] = j;
        for (int a = 0; a < 3; ++a) shifts[3 * found.n + a] = int64_t(wj[a]) - wi[a] - s[a];
        ++found.n;
      }
    }
  }
}

}  // namespace

void search_pairs(const SearchSystem& in, int n_threads, FoundPairs& found) {
  found.n = 0;
  if (in.n == 0) return;
  const Grid grid(in);
  const int threads = in.n > 2000 ? team_size(n_threads) : 1;
  // new memory costs more than the search: once, and not again and again
  const int64_t room = static_cast<int64_t>(1.05 * grid.expected());
  if (threads == 1) {
    found.reserve(room);
    grid.pairs(0, grid.n_boxes(), found);
    return;
  }
  const int parts = 8 * threads;
  std::vector<FoundPairs> of(parts);
  bool failed = false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int part = 0; part < parts; ++part) {
    try {
      of[part].reserve(room / parts);
      grid.pairs(grid.n_boxes() * part / parts, grid.n_boxes() * (part + 1) / parts, of[part]);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
  int64_t all = 0;
  for (const FoundPairs& part : of) all += part.n;
  found.reserve(all);
  for (const FoundPairs& part : of) {
    std::copy_n(part.receivers.data(), part.n, found.receivers.data() + found.n);
    std::copy_n(part.senders.data(), part.n, found.senders.data() + found.n);
    std::copy_n(part.shifts.data(), 3 * part.n, found.shifts.data() + 3 * found.n);
    found.n += part.n;
  }
}

}  // namespace cace_fast
