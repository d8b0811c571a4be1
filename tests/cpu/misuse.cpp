// Calls the C interface as it should not be called: each case gets a code and a text, and nothing crashes.
//
//   misuse MODEL MESSAGES CHARGES    model files: short range; two message passing steps; charges
//
// `make sanitize` runs it with AddressSanitizer and UndefinedBehaviorSanitizer.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "cace_fast.h"
#include "cace_fast_step.h"

typedef std::vector<double> Numbers;

static int n_cases = 0, n_failed = 0;
static char error[CF_ERROR_LENGTH];

// A case: the code that is expected, the code that came, and where its text is.
static void expect(int wanted, int got, const char* text, const std::string& name) {
  ++n_cases;
  const bool told = got == CF_OK || (text != nullptr && text[0] != 0);
  if (got == wanted && told) return;
  ++n_failed;
  std::printf("%s: expected code %d, got %d with text '%s'\n", name.c_str(), wanted, got,
              text ? text : "");
}
#define TELLS(wanted, call)             \
  do {                                  \
    error[0] = 0;                       \
    const int code = call;              \
    expect(wanted, code, error, #call); \
  } while (0)
// Functions without a text of their own leave its parts.
#define LEAVES(wanted, call)                    \
  do {                                          \
    const int code = call;                      \
    expect(wanted, code, cf_invalid(0), #call); \
  } while (0)
#define STATE(wanted, call)                             \
  do {                                                  \
    const int code = call;                              \
    expect(wanted, code, cf_state_error(state), #call); \
  } while (0)
#define STEP(wanted, call)                            \
  do {                                                \
    const int code = call;                            \
    expect(wanted, code, cf_step_error(step), #call); \
  } while (0)
#define SAME(wanted, call) expect(0, (call) == (wanted) ? 0 : 1, #call, #call)

// Six atoms in a row, two of them ghosts, and their pairs.
struct Box {
  std::vector<int32_t> species{0, 1, 0, 1, 0, 1};
  Numbers positions{0, 0, 0, 1.5, 0.1, 0, 3, 0, 0.2, 4.5, 0, 0, -1.5, 0, 0, 6, 0.1, 0};
  std::vector<std::vector<int32_t>> near{{1, 4}, {0, 2}, {1, 3}, {2, 5}};
  std::vector<int32_t> n_near{2, 2, 2, 2};
  std::vector<const int32_t*> rows;
  cf_neighbor_rows given;
  cf_pairs* pairs = nullptr;
  cf_list list;
  cf_frame frame{};
  Numbers energies = Numbers(6), forces = Numbers(18), virials = Numbers(54), charges = Numbers(24);
  cf_result result{energies.data(), forces.data(), virials.data(), nullptr};

  Box() {
    for (const auto& row : near) rows.push_back(row.data());
    given = {4, -1, nullptr, n_near.data(), rows.data()};
    cf_pairs_create(&pairs, error);
    cf_pairs_set_rows(pairs, 4, 6, species.data(), &given, 1, error);
    cf_pairs_list(pairs, &list);
    frame.n_owned = 4;
    frame.n_all = 6;
    frame.n_systems = 1;
    frame.species = species.data();
    frame.positions = positions.data();
    frame.list = &list;
  }
  Box(const Box&) = delete;
  ~Box() { cf_pairs_free(pairs); }
};

static std::string bytes_of(const char* path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

static void library() {
  SAME(CF_VERSION, cf_version());
  SAME(true, cf_isa(error) != nullptr);
  SAME('\0', cf_invalid(-1)[0]);
  SAME('\0', cf_invalid(99)[0]);
}

static void models(const char* path) {
  cf_model* model = nullptr;
  TELLS(CF_INVALID, cf_model_open(nullptr, nullptr, -1, &model, error));
  TELLS(CF_INVALID, cf_model_open(path, nullptr, -1, nullptr, error));
  TELLS(CF_INVALID, cf_model_open("/no/such/file", nullptr, -1, &model, error));
  TELLS(CF_INVALID, cf_model_open(path, "no such key", -1, &model, error));
  TELLS(CF_INVALID, cf_model_load(nullptr, 0, nullptr, &model, error));
  TELLS(CF_INVALID, cf_model_load(path, -1, nullptr, &model, error));
  TELLS(CF_INVALID, cf_model_load(path, 2, nullptr, &model, error));
  const cf_head heads[1] = {{5, 7, 0, 0, 0, 1.0}};
  TELLS(CF_INVALID, cf_model_load(path, 1, heads, &model, error));
  TELLS(CF_INVALID,
        cf_model_create(nullptr, 0, nullptr, nullptr, nullptr, 0, nullptr, &model, error));
  TELLS(CF_INVALID, cf_model_create("{", 0, nullptr, nullptr, nullptr, 0, nullptr, &model, error));
  TELLS(CF_INVALID, cf_model_create("{}", 0, nullptr, nullptr, nullptr, 0, nullptr, &model, error));
  TELLS(CF_INVALID, cf_model_create("{}", 3, nullptr, nullptr, nullptr, 0, nullptr, &model, error));
  TELLS(CF_INVALID,
        cf_model_create("{}", -3, nullptr, nullptr, nullptr, 0, nullptr, &model, error));

  const std::string whole = bytes_of(path);
  TELLS(CF_INVALID, cf_model_open_bytes(nullptr, 10, nullptr, -1, &model, error));
  TELLS(CF_INVALID, cf_model_open_bytes(whole.data(), -1, nullptr, -1, &model, error));
  TELLS(CF_INVALID, cf_model_open_bytes(whole.data(), 0, nullptr, -1, &model, error));
  for (size_t size : {size_t(1), size_t(7), size_t(8), size_t(9), size_t(100), whole.size() / 2,
                      whole.size() - 1}) {
    const std::vector<char> part(whole.begin(), whole.begin() + size);  // its own memory
    TELLS(CF_INVALID, cf_model_open_bytes(part.data(), size, nullptr, -1, &model, error));
  }
  std::string other = whole;
  for (int i = 0; i < 8; ++i) other[i] = char(0xff);  // a header of 2^64 - 1 bytes
  TELLS(CF_INVALID, cf_model_open_bytes(other.data(), other.size(), nullptr, -1, &model, error));
  other = whole;
  other[7] = char(0x80);
  TELLS(CF_INVALID, cf_model_open_bytes(other.data(), other.size(), nullptr, -1, &model, error));
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\\\"version\\\": 2", "\\\"version\\\": 9"},
           {"\"data_offsets\":[0,", "\"data_offsets\":[9,"},
           {"\"dtype\":\"F64\"", "\"dtype\":\"I64\""},
           {"\"__metadata__\"", "\"__metadatA__\""}}) {
    other = whole;
    const size_t at = other.find(from);
    if (at == std::string::npos) continue;
    other.replace(at, from.size(), to);
    error[0] = 0;
    const int code = cf_model_open_bytes(other.data(), other.size(), nullptr, -1, &model, error);
    expect(1, code == CF_OK ? 0 : 1, error, "a file with " + to);
  }
  for (size_t at = 8; at < std::min<size_t>(whole.size(), 4000);
       at += 37) {  // any byte of a header
    other = whole;
    other[at] = char(other[at] ^ 0x15);
    cf_model* made = nullptr;
    error[0] = 0;
    const int code = cf_model_open_bytes(other.data(), other.size(), nullptr, -1, &made, error);
    expect(code, code, error, "a changed byte " + std::to_string(at));
    cf_model_free(made);
  }
  cf_model_free(nullptr);
  SAME(-1, cf_model_query(nullptr, "n_charges"));
  SAME(-1, cf_model_element(nullptr, 0));
  SAME(-1, cf_model_row(nullptr, 1));
  SAME(-1, cf_model_extras(nullptr, 0));
  SAME(0, cf_model_message_size(nullptr, 0));
  SAME(0.0, cf_model_isolated(nullptr, 0));
  SAME(0.0, cf_model_charge_unit(nullptr));
  SAME(0.0, cf_model_cutoff(nullptr));
  SAME(0.0, cf_model_half_distance(nullptr, 0));
  int32_t n_terms = 7;
  SAME(true, cf_model_terms(nullptr, &n_terms) == nullptr && n_terms == 0);
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  SAME(-1, cf_model_query(model, "no such name"));
  SAME(-1, cf_model_query(model, nullptr));
  for (int32_t s : {-1, 99, INT32_MAX, INT32_MIN}) {
    SAME(-1, cf_model_element(model, s));
    SAME(0.0, cf_model_isolated(model, s));
    SAME(0.0, cf_model_half_distance(model, s));
    SAME(-1, cf_model_row(model, s));
    SAME(-1, cf_model_extras(model, s));
    SAME(0, cf_model_message_size(model, s));
    int32_t width;
    const double* fixed;
    SAME(true, cf_model_extra(model, s, 0, &width, &fixed) == nullptr);
    SAME(true, cf_model_extra(model, 0, s, &width, &fixed) == nullptr);
  }
  SAME(true, cf_model_terms(model, nullptr) == nullptr);
  cf_state* state = nullptr;
  TELLS(CF_INVALID, cf_state_create(nullptr, 64, &state, error));
  TELLS(CF_INVALID, cf_state_create(model, 16, &state, error));
  TELLS(CF_INVALID, cf_state_create(model, 64, nullptr, error));
  cf_state_free(nullptr);
  cf_state_threads(nullptr, 2);
  SAME(-1, cf_state_bad_atom(nullptr));
  SAME(0, cf_state_bytes(nullptr));
  SAME(true, cf_state_error(nullptr)[0] != 0);
  SAME(-1.0, cf_state_seconds(nullptr, "pairs"));
  cf_model_free(model);
}

// Every phase, at every moment: only the one whose turn it is may run.
static void order(const char* path, bool charges) {
  cf_model* model = nullptr;
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  cf_state* state = nullptr;
  TELLS(CF_OK, cf_state_create(model, 64, &state, error));
  Box box;
  const int stages = int(cf_model_query(model, "n_stages"));
  Numbers rows(6 * 100000);
  const cf_atoms owned = {4, 0, nullptr}, ghosts = {2, 4, nullptr};
  Numbers q(100);
  typedef std::function<int()> Call;
  std::vector<std::pair<std::string, Call>> calls;
  for (int t = -1; t <= stages; ++t) {
    const std::string at = " " + std::to_string(t);
    calls.push_back({"forward" + at, [=] { return cf_forward(state, t); }});
    calls.push_back({"backward" + at, [=] { return cf_backward(state, t); }});
    calls.push_back({"pack" + at, [=, &owned, &rows] {
                       return cf_pack_messages(state, t, &owned, 64, rows.data());
                     }});
    calls.push_back({"unpack" + at, [=, &ghosts, &rows] {
                       return cf_unpack_messages(state, t, &ghosts, 64, rows.data());
                     }});
    calls.push_back({"pack back" + at, [=, &ghosts, &rows] {
                       return cf_pack_gradients(state, t, &ghosts, 64, rows.data());
                     }});
    calls.push_back({"unpack back" + at, [=, &owned, &rows] {
                       return cf_unpack_gradients(state, t, &owned, 64, rows.data());
                     }});
  }
  calls.push_back({"turn", [=] { return cf_turn(state); }});
  calls.push_back({"charges", [=, &q] { return cf_charges(state, q.data()); }});
  calls.push_back({"set charges", [=, &q] { return cf_set_charge_gradient(state, q.data()); }});
  calls.push_back({"weights", [=, &q] { return cf_energy_weights(state, q.data()); }});
  calls.push_back({"rewind", [=] { return cf_rewind(state, 0); }});
  calls.push_back({"finish", [=, &box] { return cf_finish(state, &box.result); }});
  // no frame: nothing may run
  for (const auto& [name, call] : calls) {
    const int code = call();
    expect(CF_ORDER, code, cf_state_error(state), name + " without a frame");
  }
  // after each number of steps of a whole evaluation, a call that is not the next one is refused, or does
  // what it may, and the evaluation then begins anew
  std::vector<Call> whole{[&] { return cf_begin(state, &box.frame); }};
  for (int t = 0; t < stages; ++t) {
    whole.push_back([=] { return cf_forward(state, t); });
    if (t < stages - 1)
      whole.push_back([=, &ghosts, &rows] {
        const cf_atoms same = {2, 0, nullptr};
        const int code = cf_pack_messages(state, t, &same, 64, rows.data());
        return code ? code : cf_unpack_messages(state, t, &ghosts, 64, rows.data());
      });
  }
  for (int t = stages - 1; t >= 0; --t) whole.push_back([=] { return cf_backward(state, t); });
  whole.push_back([&] { return cf_finish(state, &box.result); });
  for (size_t done = 1; done <= whole.size(); ++done)
    for (const auto& [name, call] : calls) {
      for (size_t k = 0; k < done; ++k) {
        const int went = whole[k]();
        expect(CF_OK, went, cf_state_error(state), "step " + std::to_string(k));
      }
      const int code = call();
      const bool fine =
          code == CF_OK || code == CF_ORDER || (code == CF_INVALID && name == "turn" && charges);
      expect(0, fine ? 0 : 1, "refused or done", name + " after step " + std::to_string(done));
      if (code != CF_OK) expect(code, code, cf_state_error(state), name);
    }
  // cf_finish right after cf_begin gives no numbers
  STATE(CF_OK, cf_begin(state, &box.frame));
  STATE(CF_ORDER, cf_finish(state, &box.result));
  cf_state_free(state);
  cf_model_free(model);
}

static void frames(const char* path) {
  cf_model* model = nullptr;
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  cf_state* state = nullptr;
  TELLS(CF_OK, cf_state_create(model, 32, &state, error));
  for (int32_t n : {0, -1, INT32_MIN}) cf_state_threads(state, n);
  LEAVES(CF_INVALID, cf_begin(nullptr, nullptr));
  LEAVES(CF_INVALID, cf_forward(nullptr, 0));
  LEAVES(CF_INVALID, cf_evaluate(nullptr, nullptr, nullptr));
  LEAVES(CF_INVALID, cf_finish(nullptr, nullptr));
  Box box;
  STATE(CF_INVALID, cf_begin(state, nullptr));
  STATE(CF_INVALID, cf_evaluate(state, &box.frame, nullptr));
  STATE(CF_INVALID, cf_evaluate(state, nullptr, &box.result));
  STATE(CF_INVALID, cf_features(state, &box.frame, nullptr));
  STATE(CF_OK, cf_evaluate(state, &box.frame, &box.result));
  const cf_result nothing{nullptr, nullptr, nullptr, nullptr};
  STATE(CF_OK, cf_evaluate(state, &box.frame, &nothing));
  const auto changed = [&](int wanted, const char* name, const std::function<void(cf_frame&)>& f) {
    cf_frame frame = box.frame;
    f(frame);
    const int code = cf_evaluate(state, &frame, &box.result);
    expect(wanted, code, cf_state_error(state), name);
  };
  changed(CF_INVALID, "n_owned -1", [](cf_frame& f) { f.n_owned = -1; });
  changed(CF_INVALID, "n_all below n_owned", [](cf_frame& f) { f.n_all = 3; });
  changed(CF_INVALID, "more atoms than the list", [](cf_frame& f) { f.n_all = 1000; });
  changed(CF_INVALID, "another n_owned", [](cf_frame& f) { f.n_owned = 6; });
  changed(CF_INVALID, "no systems", [](cf_frame& f) { f.n_systems = 0; });
  changed(CF_INVALID, "no species", [](cf_frame& f) { f.species = nullptr; });
  changed(CF_INVALID, "no positions", [](cf_frame& f) { f.positions = nullptr; });
  changed(CF_INVALID, "no list", [](cf_frame& f) { f.list = nullptr; });
  for (int32_t bad : {-2, 2, INT32_MAX}) {
    box.species[3] = bad;
    changed(CF_INVALID, "species", [](cf_frame&) {});
  }
  box.species[3] = -1;  // takes no part, but the list has pairs of it
  changed(CF_INVALID, "species -1", [](cf_frame&) {});
  box.species[3] = 1;
  for (double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    box.positions[7] = bad;
    changed(CF_NOT_FINITE, "positions", [](cf_frame&) {});
    SAME(2, cf_state_bad_atom(state));
  }
  box.positions[7] = 0;
  cf_list list = box.list;
  const auto listed = [&](const char* name, const std::function<void(cf_list&)>& f) {
    list = box.list;
    f(list);
    changed(CF_INVALID, name, [&](cf_frame& frame) { frame.list = &list; });
  };
  listed("-1 pairs", [](cf_list& l) { l.n_pairs = -1; });
  listed("2^40 pairs", [](cf_list& l) { l.n_pairs = int64_t(1) << 40; });
  listed("fewer pairs", [](cf_list& l) { l.n_pairs -= 1; });
  listed("no first", [](cf_list& l) { l.first = nullptr; });
  listed("no sender", [](cf_list& l) { l.sender = nullptr; });
  listed("no sent_first", [](cf_list& l) { l.sent_first = nullptr; });
  listed("no sent", [](cf_list& l) { l.sent = nullptr; });
  listed("shifts without vectors", [](cf_list& l) { l.shift = l.sender; });
  std::vector<int32_t> senders(box.list.sender, box.list.sender + box.list.n_pairs);
  std::swap(senders[0], senders[1]);
  // atom 0 has neighbours of one species, atom 1 of another: the order within is what counts
  std::vector<int32_t> kinds{0, 1, 1, 1, 0, 1};
  const int code = cf_pairs_set_rows(box.pairs, 4, 6, kinds.data(), &box.given, 1, error);
  expect(CF_OK, code, error, "other species");
  cf_pairs_list(box.pairs, &box.list);
  cf_atoms outside = {1, 6, nullptr};
  STATE(CF_OK, cf_begin(state, &box.frame));
  STATE(CF_OK, cf_forward(state, 0));
  double row[1];
  STATE(CF_ORDER, cf_pack_messages(state, 0, &outside, 64, row));
  cf_state_free(state);
  cf_model_free(model);
}

static void messages(const char* path) {
  cf_model* model = nullptr;
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  cf_state* state = nullptr;
  TELLS(CF_OK, cf_state_create(model, 64, &state, error));
  Box box;
  Numbers rows(6 * 100000);
  const auto ready = [&] {
    cf_begin(state, &box.frame);
    cf_forward(state, 0);
  };
  const int32_t wild[2] = {0, 1 << 30}, below[1] = {-1};
  for (const cf_atoms& atoms :
       {cf_atoms{1, 6, nullptr}, cf_atoms{7, 0, nullptr}, cf_atoms{1, -1, nullptr},
        cf_atoms{2, 0, wild}, cf_atoms{1, 0, below}, cf_atoms{1, INT32_MAX, nullptr}}) {
    ready();
    STATE(CF_INVALID, cf_pack_messages(state, 0, &atoms, 64, rows.data()));
    ready();
    STATE(CF_INVALID, cf_unpack_messages(state, 0, &atoms, 64, rows.data()));
  }
  const cf_atoms one = {1, 0, nullptr}, none = {0, 0, nullptr}, negative = {-5, 0, nullptr};
  ready();
  STATE(CF_INVALID, cf_pack_messages(state, 0, nullptr, 64, rows.data()));
  ready();
  STATE(CF_INVALID, cf_pack_messages(state, 0, &one, 64, nullptr));
  ready();
  STATE(CF_INVALID, cf_pack_messages(state, 0, &one, 16, rows.data()));
  ready();
  STATE(CF_OK, cf_pack_messages(state, 0, &none, 64, nullptr));
  STATE(CF_OK, cf_pack_messages(state, 0, &negative, 64, nullptr));
  STATE(CF_ORDER, cf_pack_gradients(state, 0, &one, 64, rows.data()));
  STATE(CF_ORDER, cf_turn(state));
  cf_state_free(state);
  cf_model_free(model);
}

static void lists() {
  cf_pairs* pairs = nullptr;
  TELLS(CF_INVALID, cf_pairs_create(nullptr, error));
  TELLS(CF_OK, cf_pairs_create(&pairs, error));
  cf_pairs_free(nullptr);
  const std::vector<int32_t> species{0, 1, 0};
  const std::vector<int64_t> from{0, 1}, to{1, 0}, shifts(6, 0);
  const auto set = [&](int32_t n, int32_t all, const int32_t* s, int64_t n_pairs, const int64_t* r,
                       const int64_t* t, const int64_t* h) {
    error[0] = 0;
    return cf_pairs_set(pairs, n, all, s, nullptr, n_pairs, r, t, h, 0, error);
  };
  const auto told = [](int wanted, int code, const char* name) {
    expect(wanted, code, error, name);
  };
  const int32_t* s = species.data();
  const int64_t *r = from.data(), *t = to.data(), *h = shifts.data();
  told(CF_OK, set(3, 3, s, 2, r, t, h), "a list");
  told(CF_OK, set(0, 0, nullptr, 0, nullptr, nullptr, nullptr), "an empty list");
  told(CF_INVALID, set(-1, 3, s, 2, r, t, h), "n_owned -1");
  told(CF_INVALID, set(3, 2, s, 2, r, t, h), "n_all below n_owned");
  told(CF_INVALID, set(3, 3, s, -1, r, t, h), "-1 pairs");
  told(CF_INVALID, set(3, 3, nullptr, 2, r, t, h), "no species");
  told(CF_INVALID, set(3, 3, s, 2, nullptr, t, h), "no receivers");
  told(CF_INVALID, set(3, 3, s, 2, r, nullptr, h), "no senders");
  told(CF_INVALID, set(3, 3, s, 2, r, t, nullptr), "no shifts");
  told(CF_INVALID, set(1, 3, s, 2, r, t, h), "a ghost that receives");
  for (int64_t bad : {int64_t(-1), int64_t(3), INT64_MAX, INT64_MIN}) {
    const std::vector<int64_t> wrong{0, bad};
    told(CF_INVALID, set(3, 3, s, 2, wrong.data(), t, h), "a receiver");
    told(CF_INVALID, set(3, 3, s, 2, r, wrong.data(), h), "a sender");
  }
  std::vector<int64_t> far(6, 0);
  far[4] = int64_t(1) << 40;
  told(CF_INVALID, set(3, 3, s, 2, r, t, far.data()), "a shift");
  TELLS(CF_INVALID, cf_pairs_set(nullptr, 3, 3, s, nullptr, 2, r, t, h, 1, error));
  Box box;
  TELLS(CF_INVALID, cf_pairs_set_rows(nullptr, 4, 6, box.species.data(), &box.given, 1, error));
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 4, 6, box.species.data(), nullptr, 1, error));
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 4, 6, nullptr, &box.given, 1, error));
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 4, 5, box.species.data(), &box.given, 1, error));
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 3, 6, box.species.data(), &box.given, 1, error));
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, -4, 6, box.species.data(), &box.given, 1, error));
  for (int32_t bad : {-1, 6, INT32_MAX}) {
    box.near[2][1] = bad;
    TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 4, 6, box.species.data(), &box.given, 1, error));
  }
  cf_neighbor_rows bare = box.given;
  bare.neighbors = nullptr;
  TELLS(CF_INVALID, cf_pairs_set_rows(box.pairs, 4, 6, box.species.data(), &bare, 1, error));
  cf_list list;
  cf_pairs_list(nullptr, &list);
  cf_pairs_list(pairs, nullptr);
  cf_pairs_vectors(nullptr, nullptr, nullptr);
  SAME(0, cf_pairs_n_shifts(nullptr));
  int32_t atoms[2];
  SAME(0.0, cf_pairs_closest(nullptr, nullptr, nullptr, 1, atoms));
  SAME(0.0, cf_pairs_closest_of_kind(pairs, nullptr, nullptr, nullptr, 0, nullptr, 1, atoms));
  cf_pairs_free(pairs);
}

static void searches() {
  cf_search* search = nullptr;
  TELLS(CF_INVALID, cf_search_create(nullptr, error));
  TELLS(CF_OK, cf_search_create(&search, error));
  cf_search_free(nullptr);
  const Numbers r{0, 0, 0, 1, 0, 0}, cell{9, 0, 0, 0, 9, 0, 0, 0, 9}, flat(9, 1.0);
  const int32_t periodic[3] = {1, 1, 1};
  int64_t n;
  TELLS(CF_INVALID, cf_search_run(nullptr, 2, r.data(), cell.data(), periodic, 3.0, 1, &n, error));
  TELLS(CF_INVALID, cf_search_run(search, -2, r.data(), cell.data(), periodic, 3.0, 1, &n, error));
  TELLS(CF_INVALID, cf_search_run(search, 2, nullptr, cell.data(), periodic, 3.0, 1, &n, error));
  TELLS(CF_INVALID, cf_search_run(search, 2, r.data(), nullptr, periodic, 3.0, 1, &n, error));
  TELLS(CF_INVALID, cf_search_run(search, 2, r.data(), cell.data(), nullptr, 3.0, 1, &n, error));
  TELLS(CF_INVALID,
        cf_search_run(search, 2, r.data(), cell.data(), periodic, 3.0, 1, nullptr, error));
  TELLS(CF_INVALID, cf_search_run(search, 2, r.data(), flat.data(), periodic, 3.0, 1, &n, error));
  for (double bad : {0.0, -1.0, std::nan(""), HUGE_VAL, 1e6})
    TELLS(CF_INVALID, cf_search_run(search, 2, r.data(), cell.data(), periodic, bad, 1, &n, error));
  for (double bad : {std::nan(""), HUGE_VAL, 1e300}) {
    Numbers wild = r;
    wild[4] = bad;
    TELLS(CF_INVALID,
          cf_search_run(search, 2, wild.data(), cell.data(), periodic, 3.0, 1, &n, error));
  }
  TELLS(CF_OK, cf_search_run(search, 2, r.data(), cell.data(), periodic, 3.0, -7, &n, error));
  SAME(2, n);
  TELLS(CF_OK, cf_search_run(search, 0, nullptr, cell.data(), periodic, 3.0, 1, &n, error));
  SAME(0, n);
  const int64_t* found;
  cf_search_pairs(nullptr, &found, &found, &found);
  cf_search_pairs(search, nullptr, &found, &found);
  cf_search_free(search);
}

static int no_transform(void*, const cf_grids*, int32_t, void*, void*) { return 77; }

static void long_range() {
  cf_ewald_spec spec{};
  spec.dl = 2.0;
  spec.sigma = 1.0;
  spec.norm = 1.0;
  spec.exponent = 1;
  spec.remove_self = 1;
  cf_ewald* ewald = nullptr;
  TELLS(CF_INVALID, cf_ewald_create(nullptr, &ewald, error));
  TELLS(CF_INVALID, cf_ewald_create(&spec, nullptr, error));
  for (double bad : {0.0, -1.0, std::nan("")}) {
    cf_ewald_spec wrong = spec;
    wrong.dl = bad;
    TELLS(CF_INVALID, cf_ewald_create(&wrong, &ewald, error));
    wrong = spec;
    wrong.sigma = bad;
    TELLS(CF_INVALID, cf_ewald_create(&wrong, &ewald, error));
  }
  TELLS(CF_OK, cf_ewald_create(&spec, &ewald, error));
  cf_ewald_free(nullptr);
  cf_ewald_freeze(nullptr, nullptr);
  cf_ewald_threads(nullptr, 1);
  cf_ewald_threads(ewald, -4);
  cf_ewald_slab(nullptr, 1.0);
  const Numbers q{1, -1, 1, -1}, r{0, 0, 0, 2, 0, 0, 4, 1, 0, 6, 0, 1},
      cell{9, 0, 0, 0, 9, 0, 0, 0, 9};
  Numbers e(4), s(4), f(12), v(9), sums(100000), moments(3);
  int64_t size;
  cf_mesh mesh;
  cf_brick brick{{0, 0, 0}, {1, 1, 1}};
  // before cf_ewald_cell
  TELLS(CF_ORDER, cf_ewald_sums(ewald, 4, q.data(), r.data(), sums.data(), error));
  TELLS(CF_ORDER, cf_ewald_finish(ewald, 4, q.data(), r.data(), sums.data(), e.data(), s.data(),
                                  f.data(), v.data(), error));
  TELLS(CF_ORDER, cf_ewald_mesh(ewald, &mesh, error));
  TELLS(CF_ORDER, cf_ewald_moments(ewald, 4, q.data(), r.data(), moments.data(), error));
  TELLS(CF_ORDER, cf_ewald_spread(ewald, &brick, 4, q.data(), r.data(), sums.data(), error));
  TELLS(CF_ORDER, cf_ewald_multiply(ewald, &brick, 0, sums.data(), v.data(), error));
  TELLS(CF_ORDER, cf_ewald_gather(ewald, &brick, 4, q.data(), r.data(), sums.data(), moments.data(),
                                  e.data(), s.data(), f.data(), v.data(), error));
  TELLS(CF_INVALID, cf_ewald_cell(nullptr, cell.data(), 1, 4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, nullptr, 1, 4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 1, 4, 1, nullptr, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 0, 4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 2, 4, 1, &size, error));  // no vacuum
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 17, 4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 1, -4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_cell(ewald, cell.data(), 1, 4, 0, &size, error));
  for (double bad : {0.0, std::nan(""), 1e300}) {
    const Numbers box{bad, 0, 0, 0, bad, 0, 0, 0, bad};
    TELLS(CF_INVALID, cf_ewald_cell(ewald, box.data(), 1, 4, 1, &size, error));
  }
  TELLS(CF_ORDER, cf_ewald_sums(ewald, 4, q.data(), r.data(), sums.data(), error));
  const cf_transform failing = {no_transform, nullptr};
  TELLS(CF_INVALID, cf_ewald_method(nullptr, CF_EWALD_AUTO, 1e-6, nullptr, error));
  TELLS(CF_INVALID, cf_ewald_method(ewald, 9, 1e-6, &failing, error));
  TELLS(CF_INVALID, cf_ewald_method(ewald, CF_EWALD_MESH, 1e-6, nullptr, error));
  for (double bad : {0.0, -1.0, std::nan("")})
    TELLS(CF_INVALID, cf_ewald_method(ewald, CF_EWALD_MESH, bad, &failing, error));
  TELLS(CF_OK, cf_ewald_cell(ewald, cell.data(), 1, 4, 1, &size, error));
  TELLS(CF_INVALID, cf_ewald_sums(ewald, -4, q.data(), r.data(), sums.data(), error));
  TELLS(CF_INVALID, cf_ewald_sums(ewald, 4, nullptr, r.data(), sums.data(), error));
  TELLS(CF_INVALID, cf_ewald_sums(ewald, 4, q.data(), nullptr, sums.data(), error));
  TELLS(CF_INVALID, cf_ewald_sums(ewald, 4, q.data(), r.data(), nullptr, error));
  TELLS(CF_OK, cf_ewald_sums(ewald, 0, nullptr, nullptr, sums.data(), error));
  TELLS(CF_INVALID, cf_ewald_mesh(ewald, nullptr, error));
  TELLS(CF_OK, cf_ewald_mesh(ewald, &mesh, error));
  TELLS(CF_ORDER, cf_ewald_spread(ewald, &brick, 4, q.data(), r.data(), sums.data(), error));
  // on a mesh
  TELLS(CF_OK, cf_ewald_method(ewald, CF_EWALD_MESH, 1e-6, &failing, error));
  TELLS(CF_OK, cf_ewald_cell(ewald, cell.data(), 1, 4, 1, &size, error));
  TELLS(CF_OK, cf_ewald_mesh(ewald, &mesh, error));
  sums.assign(size, 0.0);
  TELLS(CF_OK, cf_ewald_sums(ewald, 4, q.data(), r.data(), sums.data(), error));
  TELLS(77, cf_ewald_finish(ewald, 4, q.data(), r.data(), sums.data(), e.data(), s.data(), f.data(),
                            v.data(), error));
  TELLS(77, cf_ewald_evaluate(ewald, 4, 1, q.data(), r.data(), cell.data(), 1, e.data(), s.data(),
                              f.data(), v.data(), error));
  TELLS(CF_INVALID, cf_ewald_evaluate(ewald, 4, 1, q.data(), nullptr, cell.data(), 1, e.data(),
                                      s.data(), f.data(), v.data(), error));
  TELLS(CF_INVALID, cf_ewald_evaluate(ewald, 4, 0, q.data(), r.data(), cell.data(), 1, e.data(),
                                      s.data(), f.data(), v.data(), error));
  TELLS(CF_INVALID, cf_ewald_evaluate(nullptr, 4, 1, q.data(), r.data(), cell.data(), 1, e.data(),
                                      s.data(), f.data(), v.data(), error));
  TELLS(CF_INVALID, cf_ewald_evaluate(ewald, 4, 1, q.data(), r.data(), nullptr, 1, e.data(),
                                      s.data(), f.data(), v.data(), error));
  Numbers grid((mesh.size[0] + 16) * (mesh.size[1] + 16) * (mesh.size[2] + 32));
  for (const cf_brick& bad :
       {cf_brick{{-1, 0, 0}, {1, 1, 1}}, cf_brick{{0, mesh.size[1], 0}, {1, 1, 1}},
        cf_brick{{0, 0, 0}, {0, 1, 1}}, cf_brick{{0, 0, 0}, {1, 1, mesh.size[2] + 1}},
        cf_brick{{0, 0, 0}, {1, 1, 1}}}) {
    TELLS(CF_INVALID, cf_ewald_spread(ewald, &bad, 4, q.data(), r.data(), grid.data(), error));
    TELLS(CF_INVALID,
          cf_ewald_gather(ewald, &bad, 4, q.data(), r.data(), grid.data(), moments.data(), e.data(),
                          s.data(), f.data(), v.data(), error));
  }
  const cf_brick all{{0, 0, 0}, {mesh.size[0], mesh.size[1], mesh.size[2]}};
  TELLS(CF_INVALID, cf_ewald_spread(ewald, nullptr, 4, q.data(), r.data(), grid.data(), error));
  TELLS(CF_INVALID, cf_ewald_spread(ewald, &all, 4, q.data(), r.data(), nullptr, error));
  TELLS(CF_OK, cf_ewald_spread(ewald, &all, 4, q.data(), r.data(), grid.data(), error));
  TELLS(CF_INVALID, cf_ewald_multiply(ewald, nullptr, 0, grid.data(), nullptr, error));
  TELLS(CF_INVALID, cf_ewald_multiply(ewald, &all, 0, nullptr, nullptr, error));
  TELLS(CF_INVALID, cf_ewald_gather(ewald, &all, 4, q.data(), r.data(), grid.data(), nullptr,
                                    e.data(), s.data(), f.data(), v.data(), error));
  for (double bad : {std::nan(""), HUGE_VAL}) {
    Numbers wild = r;
    wild[4] = bad;
    TELLS(CF_OK, cf_ewald_spread(ewald, &all, 4, q.data(), wild.data(), grid.data(), error));
  }
  cf_ewald_free(ewald);
}

static void steps(const char* path) {
  cf_model* model = nullptr;
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  cf_state* state = nullptr;
  TELLS(CF_OK, cf_state_create(model, 64, &state, error));
  int32_t n_terms;
  const cf_long_range* terms = cf_model_terms(model, &n_terms);
  cf_step* step = nullptr;
  TELLS(CF_INVALID, cf_step_create(nullptr, state, n_terms, terms, &step, error));
  TELLS(CF_INVALID, cf_step_create(model, nullptr, n_terms, terms, &step, error));
  TELLS(CF_INVALID, cf_step_create(model, state, n_terms, terms, nullptr, error));
  TELLS(CF_INVALID, cf_step_create(model, state, -1, terms, &step, error));
  TELLS(CF_INVALID, cf_step_create(model, state, 1, nullptr, &step, error));
  cf_long_range wrong = terms[0];
  wrong.first_charge = 99;
  TELLS(CF_INVALID, cf_step_create(model, state, 1, &wrong, &step, error));
  TELLS(CF_OK, cf_step_create(model, state, n_terms, terms, &step, error));
  cf_step_free(nullptr);
  cf_step_threads(nullptr, 1);
  cf_step_freeze(nullptr, nullptr);
  cf_step_slab(nullptr, 1.0);
  LEAVES(CF_INVALID, cf_step_run(nullptr, nullptr, nullptr));
  LEAVES(CF_INVALID, cf_step_method(nullptr, 0, 1e-6, nullptr));
  LEAVES(CF_INVALID, cf_step_pairs(nullptr, nullptr, 0, nullptr, nullptr, nullptr));
  SAME(true, cf_step_error(nullptr)[0] != 0);
  const std::vector<int32_t> species{0, 1, 0}, first{0, 3}, periodic{1};
  const Numbers positions{0, 0, 0, 2, 0, 0, 4, 1, 0};
  Numbers cells{9, 0, 0, 0, 9, 0, 0, 0, 9};
  cf_structures in{};
  in.n_atoms = 3;
  in.n_systems = 1;
  in.species = species.data();
  in.positions = positions.data();
  in.first_atom = first.data();
  in.cells = cells.data();
  in.periodic = periodic.data();
  Numbers numbers(1000);
  cf_step_result out{};
  out.forces = numbers.data();
  STEP(CF_INVALID, cf_step_run(step, &in, &out));  // no list yet
  STEP(CF_ORDER, cf_step_charge_gradients(step, 1, numbers.data(), numbers.data()));
  const std::vector<int64_t> from{0, 1}, to{1, 0}, shifts(6, 0);
  STEP(CF_INVALID, cf_step_pairs(step, nullptr, 2, from.data(), to.data(), shifts.data()));
  STEP(CF_INVALID, cf_step_pairs(step, &in, 2, nullptr, to.data(), shifts.data()));
  STEP(CF_INVALID, cf_step_pairs(step, &in, -2, from.data(), to.data(), shifts.data()));
  STEP(CF_OK, cf_step_pairs(step, &in, 2, from.data(), to.data(), shifts.data()));
  STEP(CF_INVALID, cf_step_run(step, nullptr, &out));
  STEP(CF_INVALID, cf_step_run(step, &in, nullptr));
  const auto changed = [&](int wanted, const char* name,
                           const std::function<void(cf_structures&)>& f) {
    cf_structures other = in;
    f(other);
    const int code = cf_step_run(step, &other, &out);
    expect(wanted, code, cf_step_error(step), name);
  };
  const std::vector<int32_t> backwards{0, -3}, beyond{0, 99}, late{1, 3};
  changed(CF_INVALID, "n_atoms -1", [](cf_structures& s) { s.n_atoms = -1; });
  changed(CF_INVALID, "n_atoms 2", [](cf_structures& s) { s.n_atoms = 2; });
  changed(CF_INVALID, "no systems", [](cf_structures& s) { s.n_systems = 0; });
  changed(CF_INVALID, "no species", [](cf_structures& s) { s.species = nullptr; });
  changed(CF_INVALID, "no positions", [](cf_structures& s) { s.positions = nullptr; });
  changed(CF_INVALID, "no cells", [](cf_structures& s) { s.cells = nullptr; });
  changed(CF_INVALID, "no periodic", [](cf_structures& s) { s.periodic = nullptr; });
  changed(CF_INVALID, "no first_atom", [](cf_structures& s) { s.first_atom = nullptr; });
  changed(CF_INVALID, "backwards", [&](cf_structures& s) { s.first_atom = backwards.data(); });
  changed(CF_INVALID, "beyond", [&](cf_structures& s) { s.first_atom = beyond.data(); });
  changed(CF_INVALID, "late", [&](cf_structures& s) { s.first_atom = late.data(); });
  const std::vector<int32_t> slab{2};
  changed(CF_INVALID, "a slab without vacuum", [&](cf_structures& s) { s.periodic = slab.data(); });
  changed(CF_TOO_CLOSE, "too close", [](cf_structures& s) { s.min_dist = 5.0; });
  STEP(CF_OK, cf_step_run(step, &in, &out));
  STEP(CF_INVALID, cf_step_charge_gradients(step, 1, nullptr, numbers.data()));
  STEP(CF_INVALID, cf_step_weighted_gradients(step, &in, numbers.data(), nullptr));
  STEP(CF_INVALID, cf_step_weighted_gradients(step, nullptr, numbers.data(), numbers.data()));
  const std::vector<int32_t> directions{7};
  STEP(CF_INVALID, cf_step_fields(step, 1, numbers.data(), directions.data()));
  STEP(CF_INVALID, cf_step_fields(step, 1, numbers.data(), nullptr));
  STEP(CF_INVALID, cf_step_fields(step, -1, numbers.data(), directions.data()));
  cf_step_closest(step, nullptr, nullptr, nullptr);
  cf_step_free(step);
  cf_state_free(state);
  cf_model_free(model);
}

static void operations(const char* path) {
  Numbers a(1000, 0.1), b(1000), c(1000);
  LEAVES(CF_INVALID, cf_contraction(7, 3, 64, 1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(-1, 3, 64, 1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 5, 64, 1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 0, 64, 1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 3, 16, 1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 3, 64, -1, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 3, 64, 1, 1, nullptr, b.data()));
  LEAVES(CF_INVALID, cf_contraction(2, 3, 64, 1, 1, a.data(), nullptr));
  LEAVES(CF_INVALID, cf_contraction_gradient(2, 3, 64, 1, 1, a.data(), nullptr, c.data()));
  LEAVES(CF_OK, cf_contraction(2, 3, 64, 0, 1, nullptr, nullptr));
  cf_network* network = nullptr;
  TELLS(CF_INVALID, cf_network_create(nullptr, 0, nullptr, nullptr, nullptr, 64, &network, error));
  TELLS(CF_INVALID, cf_network_create("[", 0, nullptr, nullptr, nullptr, 64, &network, error));
  TELLS(CF_INVALID, cf_network_create("{}", 0, nullptr, nullptr, nullptr, 64, nullptr, error));
  TELLS(CF_INVALID, cf_network_create("{}", 0, nullptr, nullptr, nullptr, 8, &network, error));
  LEAVES(CF_INVALID, cf_network_run(nullptr, 1, a.data(), b.data()));
  LEAVES(CF_INVALID, cf_network_gradient(nullptr, 1, a.data(), b.data(), c.data()));
  cf_network_free(nullptr);
  cf_model* model = nullptr;
  TELLS(CF_OK, cf_model_open(path, nullptr, -1, &model, error));
  cf_state* state = nullptr;
  TELLS(CF_OK, cf_state_create(model, 64, &state, error));
  const Numbers vectors{1, 0, 0, -1, 0, 0};
  std::vector<int64_t> from{0, 1}, to{1, 0}, species{0, 1};
  cf_edges edges{2, 2, vectors.data(), from.data(), to.data(), species.data()};
  STATE(CF_INVALID, cf_moments(state, nullptr, b.data()));
  STATE(CF_INVALID, cf_moments(state, &edges, nullptr));
  STATE(CF_INVALID, cf_moments_gradient(state, &edges, nullptr, b.data()));
  STATE(CF_INVALID, cf_messages(state, &edges, nullptr, b.data()));
  const cf_message message{99, a.data(), b.data()};
  STATE(CF_INVALID, cf_messages(state, &edges, &message, c.data()));
  from[0] = 2;
  STATE(CF_INVALID, cf_moments(state, &edges, b.data()));
  from[0] = 0;
  species[1] = 5;
  STATE(CF_INVALID, cf_moments(state, &edges, b.data()));
  edges.n_edges = -1;
  STATE(CF_INVALID, cf_moments(state, &edges, b.data()));
  edges.n_edges = 2;
  edges.vectors = nullptr;
  STATE(CF_INVALID, cf_moments(state, &edges, b.data()));
  LEAVES(CF_INVALID, cf_edge_sums_run(nullptr, nullptr, 1));
  cf_state_free(state);
  cf_model_free(model);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  library();
  models(argv[1]);
  models(argv[3]);
  order(argv[1], false);
  order(argv[2], false);
  order(argv[3], true);
  frames(argv[1]);
  messages(argv[2]);
  lists();
  searches();
  long_range();
  steps(argv[3]);
  operations(argv[1]);
  std::printf("%d misuse cases, %d wrong\n", n_cases, n_failed);
  return n_failed != 0;
}
