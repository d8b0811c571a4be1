"""Potentials that are shipped with the package."""
