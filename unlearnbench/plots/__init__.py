"""Draw figures for papers and pages: boards, effects on concepts, attacks, trajectories, tuning.

It may import `leaderboard`, `records` and what lies below them.
"""

from unlearnbench.plots.concept_matrix import matrix
from unlearnbench.plots.cost import cost
from unlearnbench.plots.files import render_png, svg, write_figure
from unlearnbench.plots.pareto import pareto
from unlearnbench.plots.trajectory import trajectory_figure as trajectory
from unlearnbench.plots.tuning import best_so_far

__all__ = ["best_so_far", "cost", "matrix", "pareto", "render_png", "svg", "trajectory", "write_figure"]
