"""Interfaces to other programs: ASE, and the drop-in for upstream modules."""
