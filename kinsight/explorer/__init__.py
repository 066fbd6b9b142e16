"""What a network finds alike, to look at: one HTML file that needs nothing else; a figure of stability."""

from kinsight.explorer.findings import Findings, examine
from kinsight.explorer.report import ReportSummary, render, write_report
from kinsight.explorer.trajectory import trajectory, write_trajectory

__all__ = ["Findings", "ReportSummary", "examine", "render", "trajectory", "write_report", "write_trajectory"]
