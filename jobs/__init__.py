"""Entry points: one short module per job, run as ``python -m jobs.<name>``.

``python -m jobs`` lists them. An installed package has them as ``guidance <name>`` too.
"""
