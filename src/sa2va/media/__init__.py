"""Pictures, videos and cameras: the only place that reads and decodes them."""
