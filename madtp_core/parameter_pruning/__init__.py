"""Structured parameter pruning: whole attention heads and feed-forward units taken out of a model.

Orthogonal to token pruning, which then runs on what is left (the supplement's Table 6).
Source: UPop: Unified and Progressive Pruning for Compressing Vision-Language Transformers (ICML 2023).
"""
