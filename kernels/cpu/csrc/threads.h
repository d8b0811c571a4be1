// How many threads a parallel region may have.
#pragma once

namespace cace {

// `wanted`, or 1 in a process forked after this library was loaded: GNU's OpenMP waits there for
// threads that fork did not copy.
int usable_threads(int wanted);

}  // namespace cace
