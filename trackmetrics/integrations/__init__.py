"""Trainers that have the loop themselves: the same run, driven by the events that they tell of.

Each module needs its library, by the extra of its name: `lightning`, `transformers`, `accelerate`.
"""
