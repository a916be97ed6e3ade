"""From files to samples: readers, data set adapters, clip sampling, splits, transforms and the loader."""
