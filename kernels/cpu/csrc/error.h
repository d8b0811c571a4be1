// A wrong argument: its name, what was expected and what came, as separate texts for Python.
#pragma once

#include <initializer_list>
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

// Throws Invalid for the first of these that is null; names are those of the header, in the same order.
void need(std::initializer_list<const void*> pointers, const char* names);

// Something was called before or after its time.
class OutOfOrder : public std::runtime_error {
 public:
  explicit OutOfOrder(const std::string& text);
  ~OutOfOrder() override;
};

// Throws for a list in another order; here, as files of one instruction set must make no strings.
[[noreturn]] void unsorted();

}  // namespace cace_fast
