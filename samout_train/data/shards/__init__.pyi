from .source import MOST_LOOKED_AT as MOST_LOOKED_AT, shards as shards, shards_problems as shards_problems
