from .source import MOST_LOOKED_AT as MOST_LOOKED_AT, Shards as Shards, shards as shards
