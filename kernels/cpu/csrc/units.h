// Numbers that files of models were made with, as cace_fast/spec/units.py.
#pragma once

namespace cace_fast {

constexpr double kE2PerInternal = 90.0474;    // internal units of charge squared for one e squared
constexpr double kFixedChargeUnit = 9.48933;  // internal units per e in modules of fixed charges

}  // namespace cace_fast
