#include "model.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cace_fast.h"
#include "error.h"
#include "formulas_generated.h"
#include "heads.h"
#include "json.h"

namespace cace_fast {
namespace {

Numbers tensor(const Tensors& tensors, const std::string& name, size_t size) {
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw Invalid("tensor '" + name + "'", std::to_string(size) + " numbers", "none");
  if (found->second.size() != size)
    throw Invalid("tensor '" + name + "'", std::to_string(size) + " numbers",
                  std::to_string(found->second.size()));
  return found->second;
}

std::vector<Numbers> by_degree(const Tensors& tensors, const std::string& prefix, int l_max,
                               size_t size) {
  std::vector<Numbers> found;
  for (int l = 0; l <= l_max; ++l)
    found.push_back(tensor(tensors, prefix + "." + std::to_string(l), size));
  return found;
}

// A column of the table of radial functions.
Numbers column(const RadialParameter& parameter, const Tensors& tensors, int n_b) {
  if (!parameter.tensor) return Numbers(n_b, 0.0);
  Numbers found = tensor(tensors, std::string("radial.") + parameter.tensor, n_b);
  if (parameter.inverse)
    for (double& x : found) x = 1.0 / x;
  return found;
}

void read_basis(Model& m, const Json& radial, const Tensors& tensors) {
  const std::string name = radial.at("kind").text();
  for (const RadialBasis& basis : kRadialBases) {
    if (name == basis.name) {
      m.radial_kind = int(&basis - kRadialBases);
      m.radial_a = column(basis.a, tensors, m.n_b);
      m.radial_b = column(basis.b, tensors, m.n_b);
      return;
    }
  }
  throw Unsupported("radial basis '" + name + "'");
}

int cutoff_kind(const std::string& name, double p) {
  for (int kind = 0; kind < kRealPolynomial; ++kind)  // which files do not name
    if (name == kCutoffs[kind]) return kind == kPolynomial && p != int(p) ? kRealPolynomial : kind;
  throw Unsupported("cutoff function '" + name + "'");
}

void read_radial(Model& m, const Json& rep, const Tensors& tensors) {
  const Json &radial = rep.at("radial"), &cut = rep.at("cutoff_function");
  m.n_b = radial.at("n_rbf").integer();
  if (m.n_b < 1 || m.n_b > kMaxRadial) throw JsonError("specification: n_rbf out of range");
  m.radial_prefactor = radial.at("prefactor").real();
  read_basis(m, radial, tensors);
  const std::string name = cut.at("kind").text();
  m.cutoff_radius = cut.at("cutoff").real();
  m.p = cut.at("p").real();
  m.cutoff_kind = cutoff_kind(name, m.p);
  m.cutoff_extra = cut.at(name == "mollifier" ? "eps" : "switch_on").real();
}

Step read_step(const Model& m, const Json& spec, int t, const Tensors& tensors) {
  Step step;
  const std::string prefix = "messages." + std::to_string(t);
  const size_t mixed = size_t(m.r) * m.c;
  step.memory = spec.at("memory").truth();
  step.ar = spec.at("ar").truth();
  step.bchi = !spec.at("bchi").is_null();
  if (!step.memory && !step.ar && !step.bchi)
    throw JsonError("specification: a step without a message");
  if (step.memory) step.memory_weight = by_degree(tensors, prefix + ".memory", m.l_max, mixed);
  if (step.ar) {
    step.ar_prefactor = by_degree(tensors, prefix + ".ar.prefactor", m.l_max, mixed);
    step.ar_inverse_range = by_degree(tensors, prefix + ".ar.inverse_range", m.l_max, mixed);
  }
  if (step.bchi) {
    const Json& bchi = spec.at("bchi");
    step.shared_l = bchi.at("shared_l").truth();
    step.shared_channels = bchi.at("shared_channels").truth();
    step.net = read_network(bchi.at("mlp"), false, prefix + ".bchi", tensors, m.n_features());
    const int n_w = (step.shared_l ? 1 : m.l_max + 1) * (step.shared_channels ? 1 : m.c);
    if (step.net.n_out() != n_w) throw JsonError("specification: Bchi network of another size");
  }
  return step;
}

}  // namespace

int n_monomials(int l_max) { return (l_max + 1) * (l_max + 2) * (l_max + 3) / 6; }

int n_invariants(int l_max, int nu_max) {
  int n = 1;
  if (nu_max >= 2) n += l_max;
  for (int l1 = 1; nu_max >= 3 && l1 <= l_max; ++l1)
    for (int l2 = l1; l1 + l2 <= l_max; ++l2) ++n;
  for (int l1 = 1; nu_max >= 4 && l1 <= l_max; ++l1)
    for (int l2 = l1 + 1; l2 <= l_max; ++l2)
      for (int d = 1; l2 + d <= l_max; ++d) ++n;
  return n;
}

Model make_model(const std::string& spec_json, const Tensors& tensors,
                 const std::vector<cf_head>& heads) {
  const Json document = Json::parse(spec_json);
  const Json& spec = document.at("model");
  const Json& rep = spec.at("representation");
  Model m;
  for (const Json& element : rep.at("elements").items()) m.elements.push_back(element.integer());
  m.n_z = int(m.elements.size());
  m.k = rep.at("n_embedding").integer();
  m.r = rep.at("n_radial").integer();
  m.l_max = rep.at("l_max").integer();
  m.nu_max = rep.at("nu_max").integer();
  if (m.l_max < 0 || m.l_max > 6 || m.nu_max < 1 || m.nu_max > 4 || m.k < 1 || m.r < 1)
    throw JsonError("specification: l_max, nu_max, n_embedding or n_radial out of range");
  if (m.k > kMaxEmbedding) throw Unsupported("n_embedding above 16");
  m.c = m.k * m.k;
  m.n_a = n_monomials(m.l_max);
  m.n_inv = n_invariants(m.l_max, m.nu_max);
  const auto& steps = rep.at("steps").items();
  if (int64_t(steps.size()) > kMaxSteps ||
      int64_t(m.r) * m.n_inv * m.c * int64_t(steps.size() + 1) > kMaxFeatures)
    throw JsonError(
        "specification: more message steps, or features of an atom, than can be counted");
  m.cutoff = rep.at("cutoff").real();
  m.mp_norm = rep.at("mp_norm_factor").real();
  read_radial(m, rep, tensors);
  const size_t embedding = size_t(m.n_z) * m.k;
  m.h_s = tensor(tensors, "embedding.sender", embedding);
  m.h_r =
      rep.at("shared_embedding").truth() ? m.h_s : tensor(tensors, "embedding.receiver", embedding);
  m.mixing = by_degree(tensors, "mixing", m.l_max, size_t(m.n_b) * m.r * m.c);
  m.stages = int(steps.size()) + 1;
  for (size_t t = 0; t < steps.size(); ++t)
    m.steps.push_back(read_step(m, steps[t], int(t), tensors));
  for (const cf_head& info : heads) {
    m.heads.push_back(read_head(m, spec, info, tensors));
    if (!info.charges) continue;
    m.heads.back().first_charge = m.n_charges;
    m.n_charges += m.heads.back().net.n_out();
  }
  return m;
}

}  // namespace cace_fast
