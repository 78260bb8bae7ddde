"""Figures: one module each, with one function ``draw(study) -> {file name: matplotlib Figure}``.

Where a module has several, they are `common.Figures`: each is drawn when it is asked for, and one that cannot be drawn
leaves the others.
"""
