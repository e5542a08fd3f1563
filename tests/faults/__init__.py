"""The table of reliability: everything that may happen to a run is made to happen, often."""
