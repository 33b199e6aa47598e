"""One self-contained HTML page: of a run directory, or of preference data."""

from prefopt.report.data_page import write_data_page
from prefopt.report.page import write_report

__all__ = ["write_data_page", "write_report"]
