"""The HTTP server behind ``sa2va serve``: OpenAI's chat protocol with masks beside the text, and plain endpoints.

``server`` puts the parts together. A request goes through ``guard`` (who may ask, how much) to its route in
``openai_api``, ``vision_api`` or ``jobs_api``; ``dispatch`` runs the blocking call to the model in a thread, within its
time; in it, ``intake`` reads the request's medium and ``scene_pool`` finds or opens its scene.
"""
