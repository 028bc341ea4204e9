"""Drawing of segments: colours, contours and labels."""
