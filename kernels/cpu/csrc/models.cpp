// The C interface of models: from specification and tensors, or from a native file.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "api.h"
#include "cace_fast.h"
#include "cace_fast_step.h"
#include "constants_generated.h"
#include "model.h"

namespace cace_fast {
namespace {

int opened(const ModelFile& file, const char* energy_key, int32_t output_index, cf_model** model) {
  Program program = read_program(file.spec_json, energy_key, output_index);
  Model made = make_model(file.spec_json, file.tensors, program.heads);
  complete(program, made);
  *model = new cf_model{std::move(made), std::move(program)};
  return CF_OK;
}

void check_heads(int32_t n_heads, const cf_head* heads) {
  if (n_heads < 0) invalid("n_heads", "0 or more", std::to_string(n_heads));
  if (n_heads > 0) need({heads}, "heads");
}

}  // namespace
}  // namespace cace_fast

using namespace cace_fast;

extern "C" {

int cf_model_create(const char* spec_json, int32_t n_tensors, const char* const* names,
                    const double* const* data, const int64_t* sizes, int32_t n_heads,
                    const cf_head* heads, cf_model** model, char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    need({spec_json, model}, "spec_json model");
    check_heads(n_heads, heads);
    const auto tensors = tensors_of("", n_tensors, names, data, sizes);
    *model = new cf_model{make_model(spec_json, tensors, {heads, heads + n_heads}), {}};
    return int(CF_OK);
  });
}

int cf_model_load(const char* path, int32_t n_heads, const cf_head* heads, cf_model** model,
                  char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    need({path, model}, "path model");
    check_heads(n_heads, heads);
    const ModelFile file = read_model_file(path);
    *model = new cf_model{make_model(file.spec_json, file.tensors, {heads, heads + n_heads}), {}};
    return int(CF_OK);
  });
}

int cf_model_open(const char* path, const char* energy_key, int32_t output_index, cf_model** model,
                  char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    need({path, model}, "path model");
    return opened(read_model_file(path), energy_key, output_index, model);
  });
}

int cf_model_open_bytes(const void* bytes, int64_t size, const char* energy_key,
                        int32_t output_index, cf_model** model, char error[CF_ERROR_LENGTH]) {
  return told(error, [&] {
    need({model}, "model");
    if (size < 0 || (size && !bytes))
      throw Invalid("bytes", "those of a model file",
                    "none of a negative number of bytes, or NULL");
    const ModelFile file = read_model_bytes(static_cast<const char*>(bytes), size_t(size), "bytes");
    return opened(file, energy_key, output_index, model);
  });
}

void cf_model_free(cf_model* model) { delete model; }

int64_t cf_model_query(const cf_model* model, const char* name) {
  if (!model || !name) return -1;
  const Model& m = model->model;
  const bool unrolled = m.l_max >= 2 && m.l_max <= 4 && (m.nu_max == 2 || m.nu_max == 3);
  const std::map<std::string, int64_t> known = {{"n_elements", m.n_z},
                                                {"n_radial", m.r},
                                                {"n_monomials", m.n_a},
                                                {"n_invariants", m.n_inv},
                                                {"n_channels", m.c},
                                                {"n_stages", m.stages},
                                                {"n_features", m.n_features() * m.stages},
                                                {"n_charges", m.n_charges},
                                                {"n_heads", int64_t(m.heads.size())},
                                                {"unrolled", unrolled},
                                                {"grouped", m.grouped()}};
  const auto found = known.find(name);
  return found == known.end() ? -1 : found->second;
}

int32_t cf_model_element(const cf_model* model, int32_t species) {
  if (!model) return -1;
  const auto& elements = model->model.elements;
  return species < 0 || size_t(species) >= elements.size() ? -1 : elements[species];
}

double cf_model_cutoff(const cf_model* model) { return model ? model->model.cutoff : 0.0; }

int32_t cf_model_extras(const cf_model* model, int32_t head) {
  if (!model) return -1;
  const auto& heads = model->model.heads;
  return head < 0 || size_t(head) >= heads.size() ? -1 : heads[head].n_extra;
}

const char* cf_model_extra(const cf_model* model, int32_t head, int32_t k, int32_t* width,
                           const double** fixed) {
  if (!model || !width || !fixed) return nullptr;
  const auto& heads = model->program.extras;
  if (head < 0 || size_t(head) >= heads.size()) return nullptr;
  if (k < 0 || size_t(k) >= heads[head].size()) return nullptr;
  const ExtraInput& extra = heads[head][k];
  *width = extra.width;
  *fixed = extra.fixed.empty() ? nullptr : extra.fixed.data();
  return extra.keys.c_str();
}

int32_t cf_model_message_size(const cf_model* model, int32_t t) {
  if (!model) return 0;
  const Model& m = model->model;
  if (t < 0 || t >= int(m.steps.size())) return 0;
  const Step& step = m.steps[t];
  return (step.bchi ? step.net.n_out() : 0) + (step.ar ? m.r * m.n_a * m.c : 0);
}

double cf_model_half_distance(const cf_model* model, int32_t species) {
  const int32_t z = cf_model_element(model, species);
  return z < 0 ? 0.0 : kClosestShare * covalent_radius(z);
}

int32_t cf_model_row(const cf_model* model, int32_t atomic_number) {
  if (!model) return -1;
  const auto& elements = model->model.elements;
  for (size_t row = 0; row < elements.size(); ++row)
    if (elements[row] == atomic_number) return int32_t(row);
  return -1;
}

double cf_model_isolated(const cf_model* model, int32_t species) {
  if (!model) return 0.0;
  const Numbers& isolated = model->program.isolated;
  return species < 0 || size_t(species) >= isolated.size() ? 0.0 : isolated[species];
}

double cf_model_charge_unit(const cf_model* model) {
  return model ? model->program.charge_unit : 0.0;
}

const cf_long_range* cf_model_terms(const cf_model* model, int32_t* n_terms) {
  if (n_terms) *n_terms = model ? int32_t(model->program.terms.size()) : 0;
  if (!model || !n_terms) return nullptr;
  return model->program.terms.data();
}

}  // extern "C"
