// The order of work over blocks of atoms.
//
// forward(t):  pairs -> radial -> moments or messages -> A -> B -> first layers of all networks
// backward(t): gradients of those rows -> dE/dB -> dE/dA -> dE/drho -> dE/dd of every pair
// Between phases only outputs of first layers are stored for each atom (and A, if there are message
// steps); forward and backward of the last generation run together where they can.
#pragma once

#include <stddef.h>

#include "block.inl"
#include "engine_impl.inl"
#include "isa.h"
#include "stages.inl"           // IWYU pragma: keep
#include "stages_backward.inl"  // IWYU pragma: keep

namespace cace_fast {
namespace CF_ISA {

template <class T>
void EngineOf<T>::forward(int t, bool backward_too, double* features) {
  const bool last = t == m_.stages - 1;
  const auto body = [&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, t, !(last && backward_too));
    V* a = moments_of(work, block, !backward_too, t);
    make_moments(work, block, t, a);
    invariants(work, block, t, a, features);
    if (!last) make_message(work, block, t, a);
    if (!last || m_.heads.empty()) return;
    if (backward_too || m_.n_charges)
      read_out(work, block, backward_too ? Values::kBackward : Values::kCharges);
    if (backward_too) backward_block(work, block, t, a);
  };
  backward_too ? over_receivers(t, body) : over_blocks(body);
  energies_made_ |= last && backward_too;
  if (backward_too && t > 0) gather_at_senders(t);
}

template <class T>
void EngineOf<T>::backward(int t) {
  over_receivers(t, [&](ThreadWorkspace<T>& work, const Block& block) {
    find_neighbors(work, block, t);
    V* a = moments_of(work, block, true, t);
    if (m_.stages == 1) make_moments(work, block, t, a);
    if (t == m_.stages - 1) {
      take_rows(work, block);
      read_out(work, block, Values::kBackward);
    }
    backward_block(work, block, t, a);
  });
  energies_made_ |= t == m_.stages - 1;
  if (t > 0) gather_at_senders(t);
}

template <class T>
void EngineOf<T>::make_energies() {
  if (energies_made_ || m_.heads.empty()) return;
  over_blocks([&](ThreadWorkspace<T>& work, const Block& block) {
    take_rows(work, block);
    read_out(work, block, Values::kEnergies);
  });
  energies_made_ = true;
}

}  // namespace CF_ISA
}  // namespace cace_fast
