// Heads: the modules whose values a read-out takes, as in cace_fast/spec/keys.py and heads.py.
#include "heads.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "cace_fast.h"
#include "error.h"
#include "json.h"
#include "model.h"

namespace cace_fast {
namespace {

const std::string kFeatures = "node_feats";

bool is_text(const Json& value, const std::string& text) {
  return value.kind() == Json::string && value.text() == text;
}

std::vector<std::string> keys_of(const Json& module) {
  std::vector<std::string> keys;
  if (module.at("type").text() == "Ewald") return {module.at("feature_key").text()};
  for (const Json& key : module.at("features").items()) keys.push_back(key.text());
  return keys;
}

// The modules of one sub-model: which writes a key, and which values each takes.
class Modules {
 public:
  explicit Modules(const std::vector<Json>& modules) : modules_(modules) {
    for (size_t i = 0; i < modules.size(); ++i) {
      const auto& fields = modules[i].members();
      const std::string& type = modules[i].at("type").text();
      for (const char* name : {"output_key", "per_atom_key", "descriptor_key", "phase_key"})
        note(fields, name, i);
      if (type == "Forces") {
        if (modules[i].at("calc_forces").truth()) note(fields, "forces_key", i);
        if (modules[i].at("calc_stress").truth())
          for (const char* name : {"stress_key", "virial_key"}) note(fields, name, i);
      }
      if (type == "Ewald" && modules[i].at("compute_field").truth())
        writers_[modules[i].at("feature_key").text() + "_field"].push_back(int(i));
    }
  }

  const Json& operator[](int i) const { return modules_[i]; }
  const std::string& type(int i) const { return modules_[i].at("type").text(); }

  // The last module before `before` that writes the key, or -1: then it is an input.
  int producer(const std::string& key, int before) const {
    const auto found = writers_.find(key);
    if (key == kFeatures || found == writers_.end()) return -1;
    const auto at = std::lower_bound(found->second.begin(), found->second.end(), before);
    return at == found->second.begin() ? -1 : *(at - 1);
  }

  // Module `index` and all modules that it depends on, in the order to run them.
  std::set<int> chain(int index) const {
    std::set<int> wanted = {index};
    for (int i = index; i >= 0; --i) {
      if (!wanted.count(i) || (type(i) != "Readout" && type(i) != "Add" && type(i) != "Ewald"))
        continue;
      for (const std::string& key : keys_of(modules_[i])) {
        const int from = producer(key, i);
        if (from >= 0) wanted.insert(from);
      }
    }
    return wanted;
  }

 private:
  void note(const std::map<std::string, Json>& fields, const char* name, size_t i) {
    const auto found = fields.find(name);
    if (found != fields.end() && found->second.kind() == Json::string)
      writers_[found->second.text()].push_back(int(i));
  }

  const std::vector<Json>& modules_;
  std::map<std::string, std::vector<int>> writers_;
};

// Two passes over the modules of a chain: first the inputs of each, with columns of extra inputs,
// then the net.
class ChainReader {
 public:
  ChainReader(const Modules& modules, int n_features)
      : modules_(modules), n_features_(n_features) {}

  int n_extra = 0;

  void plan(int i) {
    const std::string& type = modules_.type(i);
    if (type == "FixedCharge") {
      outputs_[i] = {Columns::extra, n_extra, 1};
      ++n_extra;
    } else if (type == "Readout") {
      plan_readout(i);
    } else if (type == "Add") {
      plan_sum(i);
    } else {
      throw Unsupported("a read-out that takes what a module " + type + " gives");
    }
  }

  // Adds module i to the net; columns of outputs name modules until then.
  void build(NetProgram& program, int i, int submodel, const Tensors& tensors) {
    Input input = inputs_[i];
    for (Columns& c : input)
      if (c.kind == Columns::outputs) c.first = values_.at(c.first);
    if (modules_.type(i) == "Readout") {
      const Json& module = modules_[i];
      const std::string prefix = "outputs." + std::to_string(submodel) + "." + std::to_string(i);
      values_[i] = add_network(program, module.at("mlp"), module.at("linear").truth(), prefix,
                               tensors, input);
    } else if (modules_.type(i) == "Add") {
      int x = program.pass(input[0]);
      for (size_t k = 1; k < input.size(); ++k) x = program.sum(x, program.pass(input[k]));
      values_[i] = x;
    }
  }

  int value(int i) const { return values_.at(i); }

 private:
  // The value that module i takes under a key: columns, or none for an input of the structure.
  Input taken(int i, const std::string& key) const {
    if (key == kFeatures) return {{Columns::features, 0, n_features_}};
    const int from = modules_.producer(key, i);
    if (from < 0) return {};
    const Json& module = modules_[from];
    if (modules_.type(from) == "Readout") {
      if (is_text(module.at("descriptor_key"), key)) return inputs_.at(from);
      if (!is_text(module.at("per_atom_key"), key) && !module.at("aggregation").is_null())
        throw JsonError("specification: '" + key + "' is no value of atoms");
    }
    return {outputs_.at(from)};
  }

  void plan_readout(int i) {
    const Json& widths = modules_[i].at("mlp").at("widths");
    int64_t rest = widths.items().at(0).integer();
    const std::vector<std::string> keys = keys_of(modules_[i]);
    std::vector<Input> parts;
    int inputs = 0, last = -1;
    bool apart = false;
    for (size_t k = 0; k < keys.size(); ++k) {
      parts.push_back(taken(i, keys[k]));
      for (const Columns& c : parts.back()) rest -= c.width;
      if (!parts.back().empty()) continue;
      apart = apart || (inputs > 0 && last != int(k) - 1);
      last = int(k);
      ++inputs;
    }
    if (rest < inputs || (inputs == 0 && rest != 0))
      throw JsonError("heads: sizes of read-out " + std::to_string(i) + " do not fit");
    if (apart && rest != inputs)
      throw Unsupported("a read-out with inputs of several numbers that do not stand together");
    bool begun = false;
    for (const Input& part : parts) {
      for (const Columns& c : part) inputs_[i].push_back(c);
      if (!part.empty() || (begun && !apart)) continue;
      const int width = apart ? 1 : int(rest);  // inputs that stand together are one
      inputs_[i].push_back({Columns::extra, n_extra, width});
      n_extra += width;
      begun = true;
    }
    outputs_[i] = {Columns::outputs, i, widths.items().back().integer()};
  }

  void plan_sum(int i) {
    int width = -1;
    std::vector<Input> parts;
    for (const std::string& key : keys_of(modules_[i])) {
      parts.push_back(taken(i, key));
      if (parts.back().size() > 1 ||
          (parts.back().size() == 1 && parts.back()[0].kind == Columns::features))
        throw Unsupported("a sum of features");
      if (parts.back().empty()) continue;
      if (width >= 0 && parts.back()[0].width != width)
        throw JsonError("specification: a sum of values of different widths");
      width = parts.back()[0].width;
    }
    if (width < 0) width = 1;  // all are inputs of the structure
    for (const Input& part : parts) {
      inputs_[i].push_back(part.empty() ? Columns{Columns::extra, n_extra, width} : part[0]);
      if (part.empty()) n_extra += width;
    }
    outputs_[i] = {Columns::outputs, i, width};
  }

  const Modules& modules_;
  const int n_features_;
  std::map<int, Input> inputs_;
  std::map<int, Columns> outputs_;
  std::map<int, int> values_;
};

}  // namespace

Head read_head(const Model& m, const Json& spec, const cf_head& info, const Tensors& tensors) {
  const auto& subs = spec.at("submodels").items();
  if (info.submodel < 0 || size_t(info.submodel) >= subs.size())
    throw Invalid("heads", "a sub-model of " + std::to_string(subs.size()) + ", from 0",
                  std::to_string(info.submodel));
  const auto& listed = subs[info.submodel].at("modules").items();
  const Modules modules(listed);
  const bool exists = info.module >= 0 && size_t(info.module) < listed.size();
  if (!exists || (modules.type(info.module) != "Readout" && modules.type(info.module) != "Add"))
    throw Invalid("heads", "the number of a read-out", "module " + std::to_string(info.module));
  const std::set<int> chain = modules.chain(info.module);
  const int n_features = m.n_features() * m.stages;
  ChainReader reader(modules, n_features);
  for (int i : chain) reader.plan(i);
  NetProgram program(n_features, reader.n_extra);
  for (int i : chain) reader.build(program, i, info.submodel, tensors);
  Head head;
  head.info = info;
  head.n_extra = reader.n_extra;
  head.net = program.finish(reader.value(info.module));
  if (info.energy_column >= head.net.n_out() || info.energy_column < -1)
    throw Invalid("heads", "a column of read-out " + std::to_string(info.module),
                  std::to_string(info.energy_column));
  return head;
}

}  // namespace cace_fast
