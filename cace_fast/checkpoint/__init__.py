"""Restricted reader of upstream model files."""
