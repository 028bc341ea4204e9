"""How weights come in and go out: files on disk, the released names and ours, and strict loading of either."""
