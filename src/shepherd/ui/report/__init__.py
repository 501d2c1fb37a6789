"""The report of a run as one HTML page: arms with intervals, rounds, clients and answers.

report.write("runs/fedit")                  report.html and report.json in the run folder
report.watch("runs/fedit")                  the same page on loopback, following the run
"""

from shepherd.ui.report.gather import collect
from shepherd.ui.report.serve import serving, watch
from shepherd.ui.report.writing import HTML, JSON, write

__all__ = ["HTML", "JSON", "collect", "serving", "watch", "write"]
