"""The CPU engine: C++17 behind a plain C interface, compiled at install, loaded with ctypes."""
