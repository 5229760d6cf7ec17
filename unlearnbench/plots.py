"""Figures for papers and pages, in one place: boards, effects on concepts, tuning, and the files they become."""

from unlearnbench.plot_cost import cost
from unlearnbench.plot_files import picture, svg, written
from unlearnbench.plot_matrix import matrix
from unlearnbench.plot_pareto import pareto
from unlearnbench.plot_trajectory import figure as trajectory
from unlearnbench.plot_tuning import best_so_far

__all__ = ["best_so_far", "cost", "matrix", "pareto", "picture", "svg", "trajectory", "written"]
