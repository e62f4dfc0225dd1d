"""Search of the settings of post-processing on cached predictions, without running a network."""
