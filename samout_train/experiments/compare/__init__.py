"""Comparing models: equal sizes, the same tokens, each one's best learning rate, several seeds, and a page of it.

plan.py (what is compared and what has to run), screening.py (short runs that choose models),
matching.py (its sizes), runs.py (what ran), results.py (what they came to, and is it more than noise?), findings.py
(in words), speed.py (by length); charts.py, page.py and page.html (for people).
"""
