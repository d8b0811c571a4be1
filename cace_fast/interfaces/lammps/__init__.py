"""LAMMPS: the pair style ``cace`` is compiled here, and found (``docs/user/lammps.md``)."""

from __future__ import annotations

from cace_fast.interfaces.lammps.plugin import NotBuiltError, plugin_folder, plugin_path

__all__ = ["NotBuiltError", "plugin_folder", "plugin_path"]
