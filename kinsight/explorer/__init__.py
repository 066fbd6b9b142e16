"""What a network finds alike, to look at: one HTML file that needs nothing else."""

from .findings import Findings, examine
from .report import ReportSummary, render, write_report

__all__ = ["Findings", "ReportSummary", "examine", "render", "write_report"]
