// A wrong argument: what it is called, what was expected and what came, kept apart up to Python.
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

// What cf_invalid tells: of the last error in this thread; no texts where it is not of this kind.
void remember(const Invalid* error);

// Throws for a list in another order; here, as files of one instruction set must make no strings.
[[noreturn]] void unsorted();

}  // namespace cace_fast
