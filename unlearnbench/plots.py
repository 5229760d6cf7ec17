"""Figures for papers and pages, in one place: of a board, of effects on concepts, and the files that they become."""

from unlearnbench.plot_cost import cost
from unlearnbench.plot_files import picture, svg, written
from unlearnbench.plot_matrix import matrix
from unlearnbench.plot_pareto import pareto

__all__ = ["cost", "matrix", "pareto", "picture", "svg", "written"]
