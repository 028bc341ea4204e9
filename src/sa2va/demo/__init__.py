"""The web page behind ``sa2va demo``.

``page`` lays it out and answers its events; ``visitors`` keeps what each visitor has open, and forgets it; ``rendering``
makes pictures and HTML of results. What computes is a ``backend``: ``local_backend`` has a model, ``remote_backend`` asks
a running ``sa2va serve``. ``endpoints`` are the same requests for programs.
"""
