"""From a folder of labelled images to a recipe that fits them and this machine.

`find_data` finds the format and the splits, `prepare_sets` converts them, `propose` applies the
rules in `rules.py`, `measure` times real steps, and `write_recipe` writes what `jobs.train` reads.
"""
