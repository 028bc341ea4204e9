"""What the model gives back: answers and frames, with exits to JSON, COCO, supervision and pictures."""
