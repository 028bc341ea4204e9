"""What the model returns: answers and frames, with exports to JSON, COCO, supervision and images."""
