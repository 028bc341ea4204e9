"""A Hugging Face Space: ``sa2va demo`` where the Space expects its page."""

from __future__ import annotations

import os
import sys

from sa2va.cli import main

if __name__ == "__main__":
    model = os.environ.get("SA2VA_MODEL", "tiny")
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(main(["demo", "--model", model, "--host", host, "--port", port]))
