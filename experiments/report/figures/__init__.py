"""Figures: one module each, with one function ``draw(study) -> {file name: matplotlib Figure}``."""
