"""The tuner: what each size of hbm and dram would give a model, from a trace of its lookups.

`sample` takes the lookups of some of the rows; `stack`, `curves` turn them into misses at every
size; `cost` those into seconds with the formulas of the benchmarks; `search` finds the sizes that
are worth having.
"""
