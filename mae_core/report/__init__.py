"""From saved results to a printed report: statistics, claims, tables, figures, text, HTML and PDF.

It never sees a model.
"""
