"""The web page behind ``sa2va demo``.

``page`` puts it together from ``picture_tab`` and ``clip_tab``, which answer its events; ``visitors`` keeps what each
visitor has open, and forgets it when they leave; ``rendering`` makes HTML of results. What computes is a ``backend``:
``local_backend`` has a model, ``remote_backend`` asks a running ``sa2va serve``. ``endpoints`` are the same requests
for programs.
"""
