"""From saved results to the rendered report: statistics, claims, tables, figures, text, HTML and PDF.

It never sees a model.
"""
