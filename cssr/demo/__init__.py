"""A page to try a model in the browser: `python -m cssr.demo EXPORT`.

Photograph in; SR image, crack probability and measurements out. Nothing is kept: a request's data are in memory until
it is answered; no file is written, and no request is logged.
"""
