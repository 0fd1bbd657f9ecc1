"""The largest inputs that are accepted, each with its reason.

Beyond these a file is damaged, hostile or holds a typing error. What it would cost is memory: the
reading of a file may take at most four times its size and 500 MB.
"""

LARGEST_TEXT = 256 * 2**20
"""Bytes of a text file, such as JSON, tables or subtitles. Half a million actions take 25 MB."""
SPARE_MEMORY = 400 * 2**20
"""Bytes that reading a file may take beyond four times its size. The rest of the 500 MB is for the
code that reads it."""
LARGEST_PLAYLIST = 16 * 2**20
"""Bytes of an HLS playlist with those that it refers to. 100,000 pieces take about 10 MB."""
MOST_PIECES = 100_000
"""Pieces of an HLS playlist: a week in pieces of six seconds."""
MOST_NESTED = 64
"""Levels of lists and objects in JSON and TOML. No format of annotations has more than ten."""
MOST_CLASSES = 10_000
"""Classes of a data set. The largest known ones have about 4,000; a larger class number in an
annotation is a typing error, for which no classes are created."""
WIDEST = 2**20
"""Features of a row, and channels of a network. Backbones have up to 4,096 features; pictures of
features that are not pooled have some hundred thousand."""
MOST_BLOCKS = 1000
"""Blocks of a network, or of a stage of it. The deepest networks in use have about a hundred."""
MOST_ROWS = 20_000_000
"""Rows of features of one video: a week in rows of 1/30 s is 18 million."""
DENSEST = 32
"""Times that features may be larger than their compressed form, once they take more than
`SPARE_MEMORY`. zstd makes real ones 1.1 to 10 times smaller. Those of a picture that does not
change would be hundreds of times smaller: their shards are written with a gap."""
MOST_CHUNKS = 1024
"""Chunks of a shard in a feature store. We write 4."""
MOST_AXES = 32
"""Axes of an array: what numpy allowed before version 2."""
LARGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file. The library takes no more."""
LARGEST_EMBEDDED = 10**9
"""Bytes of a video that is embedded in a page: the browser holds it in memory."""
LONGEST_VIDEO = 366 * 24 * 3600.0
"""Seconds of a video, or of a time in one: a year. Times in milliseconds since 1970, and other
numbers that are not times in a video, are larger."""
LARGEST_TIME = 240 * LONGEST_VIDEO
"""A time in a video if times count frames: a year at 240 frames a second."""
MOST_ASPECT = 100
"""Times that the long side of a picture may be as long as the short one. Backbones see the square
in its middle, after the whole is resized: at 8000 : 1 that took 2 GB."""
MOST_FPS = 100_000.0
"""Frames per second of a video. Few cameras for experiments are faster; a higher rate is that of a
damaged clock."""
LEAST_FPS = 1e-5
"""Frames per second that can be given for a video: about one a day, as in long time lapses."""
LONGEST_NAME = 1000
"""Characters of the name of a video, a class or a subset. Longer ones are content, not names."""
LONGEST_PATH = 4096
"""Characters of a path, as on Linux."""
LARGEST_INDEX = 16 * 2**20
"""Bytes of the list of members in a zip archive. That of 200,000 arrays is as large."""
LARGEST_PICKLE = 4 * 2**30
"""Bytes of a pickle, which is read as a whole. The scores of 100,000 videos take less."""
SHARED_VALUES = 20_000_000
"""Bytes and values that a pickle may hold beyond its size, by naming the same list or array
repeatedly: as many as the scores of a whole test set."""
