"""What a network finds alike, to look at: one HTML file that needs nothing else; a figure of stability."""

from .findings import Findings, examine
from .report import ReportSummary, render, write_report
from .trajectory import trajectory, write_trajectory

__all__ = ["Findings", "ReportSummary", "examine", "render", "trajectory", "write_report", "write_trajectory"]
