"""Compile the CPU engine when the package is built; everything else is in ``pyproject.toml``."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDER = Path("cace_fast", "kernels", "cpu")


def builder():
    """Return ``kernels/cpu/build.py``, which cannot be imported by name before it is installed."""
    spec = importlib.util.spec_from_file_location("build_cpu", ROOT / "kernels/cpu/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildPython(build_py):
    """Copy the modules, then compile the library beside them."""

    def run(self):
        """Build; a machine without a compiler gets the package without the CPU engine."""
        super().run()
        cpu = builder()
        target = ROOT / "kernels/cpu" if self.editable_mode else Path(self.build_lib) / FOLDER
        try:
            cpu.build(target.resolve(), cpu.default_objects())
        except cpu.BuildError as error:
            self.warn(f"cace-fast: no CPU engine, backend='cpu' will be missing: {error}")


class Platform(Distribution):
    """A distribution that holds compiled code, though no extension module of Python."""

    def has_ext_modules(self):
        """Say so: the wheel then belongs to one platform."""
        return True


class Wheel(bdist_wheel):
    """A wheel for one platform and any Python: the library is no Python module."""

    def get_tag(self):
        """Return the tag of the platform alone."""
        return "py3", "none", super().get_tag()[2]


setup(distclass=Platform, cmdclass={"build_py": BuildPython, "bdist_wheel": Wheel})
