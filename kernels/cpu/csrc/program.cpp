#include "program.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cace_fast.h"
#include "cace_fast_step.h"
#include "constants_generated.h"
#include "error.h"
#include "json.h"
#include "model.h"

namespace cace_fast {
namespace {

[[noreturn]] void wrong(const std::string& expected, const std::string& got) {
  throw Invalid("energy program", expected, got);
}

// The module of the specification at a place that a program names.
const Json& module_at(const Json& spec, const Json& part) {
  const auto& subs = spec.at("submodels").items();
  const int s = part.at("submodel").integer(), m = part.at("index").integer();
  const std::string place = std::to_string(s) + "." + std::to_string(m);
  if (s < 0 || size_t(s) >= subs.size()) wrong("modules of the specification", place);
  const auto& modules = subs[s].at("modules").items();
  if (m < 0 || size_t(m) >= modules.size()) wrong("modules of the specification", place);
  return modules[m];
}

int column_of(int n_out, int output_index) {
  if (n_out == 1) return 0;
  if (output_index < 0 || output_index >= n_out)
    throw Invalid("output_index",
                  "0 to " + std::to_string(n_out - 1) + ": this model has several energies",
                  std::to_string(output_index));
  return output_index;
}

Numbers fixed_of(const Json& module, const std::vector<int>& elements);

std::vector<ExtraInput> extras_of(const Json& head, const std::vector<int>& elements) {
  if (head.at("extras").is_null()) throw Unsupported("a read-out that takes what no network gives");
  std::vector<ExtraInput> out;
  for (const Json& extra : head.at("extras").items()) {
    out.push_back({"", extra.at("width").integer(), {}});
    for (const Json& key : extra.at("keys").items())
      out.back().keys += (out.back().keys.empty() ? "" : ", ") + key.text();
    if (!extra.at("fixed").is_null()) out.back().fixed = fixed_of(extra.at("fixed"), elements);
  }
  return out;
}

void add_head(Program& program, const Json& spec, const Json& head, int output_index,
              const std::vector<int>& elements) {
  const Json& module = module_at(spec, head);
  const bool charges = head.at("gives").text() == "charges";
  if (!charges && head.at("gives").text() != "energy")
    wrong("energy or charges", head.at("gives").text());
  program.extras.push_back(extras_of(head, elements));
  cf_head made{head.at("submodel").integer(), head.at("index").integer(), -1, 0, charges, 0.0};
  const int n_out = head.at("n_out").integer();
  for (const cf_head& other : program.heads)
    if (other.submodel == made.submodel && other.module == made.module &&
        other.charges == made.charges)
      wrong("each head once", "one twice");
  if (!charges) {
    if (module.at("type").text() != "Readout")
      wrong("energies of read-outs", module.at("type").text());
    if (!program.heads.empty() && program.heads.back().charges)
      wrong("energies before charges", "another order");
    made.energy_column = column_of(n_out, output_index);
    made.energy_weight = head.at("weight").real();
    made.average = head.at("average").truth();
    const Json& aggregation = module.at("aggregation");
    const bool average = !aggregation.is_null() && aggregation.text() == "avg";
    if (average != bool(made.average))
      wrong("averages where the specification has them", "another");
  }
  program.heads.push_back(made);
  program.n_out.push_back(n_out);
}

cf_ewald_spec ewald_of(const Json& module) {
  cf_ewald_spec made{};
  made.dl = module.at("dl").real();
  made.sigma = module.at("sigma").real();
  made.norm = module.at("norm_factor").real();
  made.exponent = module.at("exponent").integer();
  made.remove_self = module.at("remove_self_interaction").truth();
  const Json &field = module.at("external_field"), &along = module.at("external_field_direction");
  const Json& penalty = module.at("charge_neutral_lambda");
  if (field.kind() == Json::string || along.kind() == Json::string)
    throw Unsupported("an external field that is an input of the structure");
  if (!field.is_null()) made.field = field.real();
  if (!along.is_null()) made.field_direction = along.integer();
  if (!penalty.is_null()) made.neutral_lambda = penalty.real();
  return made;
}

// Charges of every row of the embedding, in internal units.
Numbers fixed_of(const Json& module, const std::vector<int>& elements) {
  const double unit = module.at("normalize").truth() ? kFixedChargeUnit : 1.0;
  std::map<int, double> table;
  for (const Json& pair : module.at("charges").items()) {
    if (pair.items().size() != 2) wrong("pairs of an atomic number and a charge", "another list");
    table[pair.items()[0].integer()] = unit * pair.items()[1].real();
  }
  Numbers out;
  for (int z : elements) {
    if (!table.count(z)) throw Unsupported("fixed charges for some elements only");
    out.push_back(table[z]);
  }
  return out;
}

void add_term(Program& program, const Json& spec, const Json& term,
              const std::vector<int>& elements) {
  const bool ewald = module_at(spec, term).at("type").text() == "Ewald";
  if (!ewald || !(module_at(spec, term) == term.at("ewald")))
    wrong("the Ewald module of the specification", "another");
  program.terms.push_back({ewald_of(term.at("ewald")), term.at("weight").real(), 0, 1, nullptr});
  const std::string& source = term.at("charges").text();
  program.sources.push_back(-1);
  program.fixed.emplace_back();
  if (source == "fixed") {
    const auto& modules =
        spec.at("submodels").items()[term.at("submodel").integer()].at("modules").items();
    const auto last = modules.begin() + term.at("index").integer();
    if (std::find(modules.begin(), last, term.at("fixed")) == last)
      wrong("fixed charges of the specification", "others");
    program.fixed.back() = fixed_of(term.at("fixed"), elements);
  } else if (source == "head") {
    const int head = term.at("head").integer();
    if (head < 0 || size_t(head) >= program.heads.size() || !program.heads[head].charges)
      wrong("a head that gives charges", std::to_string(head));
    program.sources.back() = head;
  } else {
    throw Unsupported("charges that no head gives (" + source + ")");
  }
}

void read_isolated(Program& program, const Json& pairs, const std::vector<int>& elements) {
  std::map<int, double> table;
  for (const Json& pair : pairs.items()) {
    if (pair.items().size() != 2) wrong("pairs of an atomic number and an energy", "another list");
    table[pair.items()[0].integer()] = pair.items()[1].real();
  }
  for (int z : elements) program.isolated.push_back(table.count(z) ? table[z] : 0.0);
}

void read_charge_unit(Program& program, const Json& given) {
  double unit = 0.0;
  if (program.terms.size() == 1) {
    const double square = program.terms[0].weight * program.terms[0].ewald.norm / kE2PerInternal;
    if (square >= 0.0 && std::isfinite(square)) unit = std::sqrt(square);
  }
  program.charge_unit = given.is_null() ? 0.0 : given.real();
  if (std::fabs(program.charge_unit - unit) > 1e-12 * unit)
    wrong("a charge unit of " + std::to_string(unit), std::to_string(program.charge_unit));
}

const Json& chosen(const Json& content, const char* energy_key) {
  if (!energy_key && content.at("total").is_null())
    throw Invalid("energy_key", "the key of an energy: the total energy of this model is not clear",
                  "NULL");
  const std::string key = energy_key ? energy_key : content.at("total").text();
  std::string known;
  for (const Json& program : content.at("programs").items()) {
    const std::string& name = program.at("energy_key").text();
    if (name == key) return program;
    known += (known.empty() ? "" : ", ") + name;
  }
  throw Invalid("energy_key", "one of " + (known.empty() ? "none" : known), key);
}

}  // namespace

Program read_program(const std::string& text, const char* energy_key, int output_index) {
  const Json content = Json::parse(text);
  const int version = content.at("version").integer();
  if (version == 1)
    throw Unsupported(
        "a file of version 1, which does not say what its energies are made of; write it "
        "again with 'cace-fast convert OLD.safetensors NEW.safetensors'");
  if (version != 2) throw Unsupported("a file of version " + std::to_string(version));
  const Json& spec = content.at("model");
  const Json& given = chosen(content, energy_key);
  std::vector<int> elements;
  for (const Json& z : spec.at("representation").at("elements").items())
    elements.push_back(z.integer());
  Program program;
  for (const Json& head : given.at("heads").items())
    add_head(program, spec, head, output_index, elements);
  std::set<std::pair<int, int>> places;
  for (const Json& term : given.at("terms").items()) {
    if (!places.insert({term.at("submodel").integer(), term.at("index").integer()}).second)
      wrong("each Ewald sum once", "one twice");
    add_term(program, spec, term, elements);
  }
  if (!(given.at("isolated") == spec.at("atomic_energies")))
    wrong("the isolated energies of the specification", "others");
  read_isolated(program, given.at("isolated"), elements);
  read_charge_unit(program, given.at("charge_unit"));
  return program;
}

void complete(Program& program, const Model& model) {
  for (size_t h = 0; h < program.heads.size(); ++h) {
    if (model.heads[h].net.n_out() != program.n_out[h])
      wrong(std::to_string(model.heads[h].net.n_out()) + " outputs of a head",
            std::to_string(program.n_out[h]));
    int width = 0;
    for (const ExtraInput& extra : program.extras[h]) width += extra.width;
    if (width != model.heads[h].n_extra)
      wrong(std::to_string(model.heads[h].n_extra) + " further inputs of a head",
            std::to_string(width));
  }
  for (size_t k = 0; k < program.terms.size(); ++k) {
    cf_long_range& term = program.terms[k];
    if (program.sources[k] >= 0) {
      term.first_charge = model.heads[program.sources[k]].first_charge;
      term.n_charges = model.heads[program.sources[k]].net.n_out();
    } else {
      term.fixed = program.fixed[k].data();  // vectors keep their place when the program moves
    }
  }
}

}  // namespace cace_fast
