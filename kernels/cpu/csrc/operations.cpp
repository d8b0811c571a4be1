// The C interface of single operations.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "cace_fast.h"
#include "heads.h"
#include "json.h"
#include "model.h"
#include "pairs.h"

using namespace cace_fast;

struct cf_network {
  Net net;
  std::unique_ptr<Network> run;
};

namespace cace_fast {
namespace {

// Edges in the form of the engine's pairs: all atoms are at the origin and vectors replace shifts,
// so that the shift of a pair is the number of its edge.
class EdgeFrame {
 public:
  EdgeFrame(const cf_edges& edges, int n_species) : origin_(3 * size_t(count(edges))) {
    for (int64_t i = 0; i < edges.n_atoms; ++i) {
      const int64_t species = edges.species[i];
      if (species < 0 || species >= n_species)
        invalid("species", "0 to " + std::to_string(n_species - 1),
                std::to_string(species) + " for atom " + std::to_string(i));
      species_.push_back(int32_t(species));
    }
    int64_t bad = -1;
    if (build_pairs(pairs_, edges.n_atoms, edges.n_atoms, species_.data(), nullptr, edges.n_edges,
                    edges.receivers, edges.senders, nullptr, 1, bad) != PAIRS_OK)
      invalid("senders, receivers", "atoms from 0 to " + std::to_string(edges.n_atoms - 1),
              "others in edge " + std::to_string(bad));
    list_ = {
        edges.n_edges,        int32_t(edges.n_atoms), int32_t(edges.n_atoms),   pairs_.first.data(),
        pairs_.sender.data(), pairs_.shift.data(),    pairs_.sent_first.data(), pairs_.sent.data()};
    frame_.n_owned = frame_.n_all = int32_t(edges.n_atoms);
    frame_.n_systems = 1;
    frame_.n_shifts = int32_t(edges.n_edges);
    frame_.species = species_.data();
    frame_.positions = origin_.data();
    frame_.shift_vectors = edges.vectors;
    frame_.list = &list_;
  }
  EdgeFrame(const EdgeFrame&) = delete;
  EdgeFrame& operator=(const EdgeFrame&) = delete;

  const cf_frame& frame() const { return frame_; }

 private:
  // The number of atoms; throws if it or the number of edges is too large.
  static int64_t count(const cf_edges& edges) {
    for (int64_t n : {edges.n_edges, edges.n_atoms})
      if (n < 0 || n > std::numeric_limits<int32_t>::max())
        invalid("edges", "0 to 2^31 - 1 atoms and edges", std::to_string(n));
    if (edges.n_edges)
      need({edges.vectors, edges.senders, edges.receivers}, "vectors senders receivers");
    if (edges.n_atoms) need({edges.species}, "species");
    return edges.n_atoms;
  }

  std::vector<double> origin_;
  std::vector<int32_t> species_;
  Pairs pairs_;
  cf_list list_ = {};
  cf_frame frame_ = {};
};

// f(engine) with these edges; the step is closed afterwards.
template <class F>
int on_edges(cf_state* state, const cf_edges* edges, const F& f) {
  return phase(state, [&] {
    need({edges}, "edges");
    const EdgeFrame given(*edges, state->model->n_z);
    begin(state, &given.frame());
    state->forget();
    f(*state->engine);
    return int(CF_OK);
  });
}

void check_rows(const cf_network* network, int64_t n) {
  need({network}, "network");
  if (n < 0) invalid("n", "0 or more", std::to_string(n));
}

void check_step(const cf_state* state, const cf_message* message) {
  need({message}, "message");
  const size_t n = state->model->steps.size();
  if (message->step < 0 || size_t(message->step) >= n)
    invalid("step", "one of " + std::to_string(n) + ", from 0", std::to_string(message->step));
}

int contract(const ContractionCall& call, int32_t precision) {
  return told(nullptr, [&] {
    check_precision(precision);
    if (call.l_max < 0 || call.l_max > 6) invalid("l_max", "0 to 6", std::to_string(call.l_max));
    if (call.nu_max < 1 || call.nu_max > 4)
      invalid("nu_max", "1 to 4", std::to_string(call.nu_max));
    for (int64_t n : {call.n, call.n_channels})
      if (n < 0) invalid("n, n_channels", "0 or more", std::to_string(n));
    if (call.n && call.n_channels) need({call.a, call.out}, "a out");
    isa_code().contract(call, precision);
    return int(CF_OK);
  });
}

}  // namespace
}  // namespace cace_fast

extern "C" {

int cf_contraction(int32_t l_max, int32_t nu_max, int32_t precision, int64_t n, int64_t n_channels,
                   const double* a, double* b) {
  return contract({l_max, nu_max, n, n_channels, a, nullptr, b}, precision);
}

int cf_contraction_gradient(int32_t l_max, int32_t nu_max, int32_t precision, int64_t n,
                            int64_t n_channels, const double* a, const double* grad_out,
                            double* grad_a) {
  return told(nullptr, [&] {
    if (n > 0 && n_channels > 0) need({grad_out}, "grad_out");
    return contract({l_max, nu_max, n, n_channels, a, grad_out, grad_a}, precision);
  });
}

int cf_network_create(const char* readout_json, int32_t n_tensors, const char* const* names,
                      const double* const* data, const int64_t* sizes, int32_t precision,
                      cf_network** network, char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    check_precision(precision);
    need({readout_json, network}, "readout_json network");
    const Json module = Json::parse(readout_json);
    const Json& mlp = module.at("mlp");
    const auto tensors = tensors_of("readout.", n_tensors, names, data, sizes);
    auto made = std::make_unique<cf_network>();
    made->net = read_network(mlp, module.at("linear").truth(), "readout", tensors,
                             mlp.at("widths").items().at(0).integer());
    made->run.reset(isa_code().network(made->net, precision));
    *network = made.release();
    return int(CF_OK);
  });
}

void cf_network_free(cf_network* network) { delete network; }

int cf_network_run(const cf_network* network, int64_t n, const double* x, double* y) {
  return told(nullptr, [&] {
    check_rows(network, n);
    if (n > 0) need({x, y}, "x y");
    network->run->run(n, x, y);
    return int(CF_OK);
  });
}

int cf_network_gradient(const cf_network* network, int64_t n, const double* x,
                        const double* grad_out, double* grad_x) {
  return told(nullptr, [&] {
    check_rows(network, n);
    if (n > 0) need({x, grad_out, grad_x}, "x grad_out grad_x");
    network->run->gradient(n, x, grad_out, grad_x);
    return int(CF_OK);
  });
}

int cf_moments(cf_state* state, const cf_edges* edges, double* a) {
  return on_edges(state, edges, [&](Engine& e) {
    if (edges->n_atoms) need({a}, "a");
    e.op_moments(a);
  });
}

int cf_moments_gradient(cf_state* state, const cf_edges* edges, const double* grad_out,
                        double* grad_vectors) {
  return on_edges(state, edges, [&](Engine& e) {
    if (edges->n_edges) need({grad_out, grad_vectors}, "grad_out grad_vectors");
    e.op_moments_gradient(grad_out, grad_vectors);
  });
}

int cf_messages(cf_state* state, const cf_edges* edges, const cf_message* message, double* out) {
  return on_edges(state, edges, [&](Engine& e) {
    check_step(state, message);
    if (edges->n_atoms) need({message->a, message->b, out}, "a b out");
    e.op_messages(*message, out);
  });
}

int cf_messages_gradient(cf_state* state, const cf_edges* edges, const cf_message* message,
                         const double* grad_out, double* grad_a, double* grad_b,
                         double* grad_vectors) {
  return on_edges(state, edges, [&](Engine& e) {
    check_step(state, message);
    if (edges->n_atoms)
      need({message->a, message->b, grad_out, grad_a, grad_b}, "a b grad_out grad_a grad_b");
    if (edges->n_edges) need({grad_vectors}, "grad_vectors");
    e.op_messages_gradient(*message, grad_out, grad_a, grad_b, grad_vectors);
  });
}

}  // extern "C"
