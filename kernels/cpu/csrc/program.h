// The program of an energy, as in a model file of version 2 (cace_fast/spec/program.py).
#pragma once

#include <string>
#include <vector>

#include "cace_fast_step.h"
#include "model.h"

namespace cace_fast {

// Inputs of a head beside the features: their keys, numbers for each atom, or fixed charges of each row.
struct ExtraInput {
  std::string keys;
  int width;
  Numbers fixed;
};

struct Program {
  std::vector<cf_head> heads;
  std::vector<std::vector<ExtraInput>> extras;  // of each head, in its order
  std::vector<cf_long_range> terms;
  Numbers isolated;            // [n_z] energies of isolated atoms, 0 where there is none
  double charge_unit = 0.0;    // e per internal unit; 0 where there is none
  std::vector<int> n_out;      // of each head, as the file says
  std::vector<int> sources;    // of each term: the head of its charges, or -1
  std::vector<Numbers> fixed;  // of each term: charges of each row, or none
};

// Reads the program of an energy; NULL: of the total energy. Throws if the file is inconsistent.
Program read_program(const std::string& text, const char* energy_key, int output_index);

// Fills in the columns of charges, which follow from the model.
void complete(Program& program, const Model& model);

}  // namespace cace_fast
