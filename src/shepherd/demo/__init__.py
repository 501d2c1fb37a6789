"""The demo: ten clients of the embedded world, over the embedded base or over a real one.

The run files are beside this module. The data are the embedded ones in both: eight kinds of instruction about
an invented world, which no model has seen, whose answers code checks, and which need no download.
"""
