"""Objects drawn over pictures: colours, contours and labels."""
