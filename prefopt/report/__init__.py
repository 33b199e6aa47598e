"""One self-contained HTML page: of runs of training or of rounds, or of preference data."""

from prefopt.report.data_page import write_data_page
from prefopt.report.page import report_softly, write_report, write_reports

__all__ = ["report_softly", "write_data_page", "write_report", "write_reports"]
