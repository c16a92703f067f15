"""A page to try a model in the browser: `python -m cssr.demo EXPORT`.

Photograph in; SR image, crack probability and measurements out. Nothing is kept: a request's body and what is made of
it live in that request alone and go with its answer; no file is written, and no request is logged.
"""
