"""What a run did, on one page: `write_report` reads a run folder and writes a self-contained report.html.

- `run_files`: a run folder's settings, log and results; `comparison`: of several runs beside each other;
- `findings`: what is computed from the selected weights (rankings, distances, t-SNE);
- `figures`: drawings of it; `sections`, `markup` and `page`: the HTML around them.
"""

from sdcl.report.page import write_report

__all__ = ["write_report"]
