// What 'plugin load' of LAMMPS calls.  LAMMPS does not install lammpsplugin.h: its interface, which has not
// changed since 2021, is written out here.
#include "pair_cace.h"

namespace {

typedef void* (*Make)(void*);
typedef void* (*MakeWithWords)(void*, int, char**);

struct Plugin {
  const char *version, *style, *name, *info, *author;
  union {
    Make v1;
    MakeWithWords v2;
  } creator;
  void* handle;
};

void* make(void* lmp) { return new LAMMPS_NS::PairCACE(static_cast<LAMMPS_NS::LAMMPS*>(lmp)); }

}  // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle,
                                                                         void* registry) {
  Plugin plugin = {};
  plugin.version = CACE_LAMMPS_VERSION;
  plugin.style = "pair";
  plugin.name = "cace";
  plugin.info = "CACE potentials with messages and latent charges";
  plugin.author = "cace-fast";
  plugin.creator.v1 = make;
  plugin.handle = handle;
  reinterpret_cast<void (*)(Plugin*, void*)>(registry)(&plugin, lmp);
}
