"""Callbacks: what watches a run. They read it and never change it; one may ask it to stop."""
