"""One thin file a verb; each has a root YAML in conf/."""
