"""Readers of public benchmarks' own annotation files: their entries as records."""
