"""The report's words. Each module holds the passages of one section, as Markdown made from saved results."""
