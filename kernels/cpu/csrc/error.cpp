// The parts of the last error about an argument, stored for each thread.
#include "error.h"

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cace_fast.h"

namespace cace_fast {

Invalid::Invalid(const std::string& argument, const std::string& expected, const std::string& got)
    : std::runtime_error(argument + ": expected " + expected + ", got " + got), argument(argument),
      expected(expected), got(got) {}
Invalid::~Invalid() = default;

namespace {
thread_local std::string last[3];
}

void remember(const Invalid* error) {
  last[0] = error ? error->argument : "";
  last[1] = error ? error->expected : "";
  last[2] = error ? error->got : "";
}

void need(std::initializer_list<const void*> pointers, const char* names) {
  std::istringstream in(names);
  for (const void* pointer : pointers) {
    std::string name;
    in >> name;
    if (!pointer) throw Invalid(name, "a pointer", "NULL");
  }
}

OutOfOrder::OutOfOrder(const std::string& text) : std::runtime_error(text) {}
OutOfOrder::~OutOfOrder() = default;

void unsorted() {
  throw Invalid("list", "pairs sorted by receiver and sender's species", "others");
}

}  // namespace cace_fast

const char* cf_invalid(int32_t part) {
  return part < 0 || part > 2 ? "" : cace_fast::last[part].c_str();
}
