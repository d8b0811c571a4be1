// A wrong argument: its name, what was expected and what came, as separate texts for Python.
#pragma once

#include <stdexcept>
#include <string>

namespace cace_fast {

// Its text is "argument: expected ..., got ...".  The destructor is in error.cpp: see engine.h.
class Invalid : public std::runtime_error {
 public:
  Invalid(const std::string& argument, const std::string& expected, const std::string& got);
  ~Invalid() override;
  const std::string argument, expected, got;
};

// The texts of cf_invalid for the last error in this thread; empty if it was of another kind.
void remember(const Invalid* error);

// Throws for a list in another order; here, as files of one instruction set must make no strings.
[[noreturn]] void unsorted();

}  // namespace cace_fast
