"""One self-contained page for a run: ``write_report(fit, path)``."""

from irlhf.report.page import write_report

__all__ = ["write_report"]
