"""The user's path: media and questions in, text and masks out; video as a loop over frames."""
