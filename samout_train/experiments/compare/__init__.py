"""Compare models: equal sizes, the same tokens, each one's best learning rate, several seeds, and one page of results.

candidates.py (the models, with their words) and matching.py (their sizes); plan.py (the runs) and screening.py (short
runs that choose models); runs.py (existing runs), results.py (losses and their differences), findings.py (in words) and
speed.py (by length); charts.py, page.py and page.html (for people).
"""
