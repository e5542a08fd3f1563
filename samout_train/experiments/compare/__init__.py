"""Comparing models: equal sizes, the same tokens, each one's best learning rate, several seeds, and a page of it.

labels.py and contenders.py (what is compared), matching.py (its sizes), jobs.py (what has to run), runs.py (what ran),
results.py (what they came to), intervals.py (more than noise?), findings.py (in words), speed.py (by length);
drawing.py, chart_kinds.py, tables.py, page.py and page.html (for people). making.py puts them together.
"""
