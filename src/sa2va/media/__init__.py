"""Images, videos and cameras: everything that reads and decodes them."""
