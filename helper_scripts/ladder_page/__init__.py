"""What page.py makes the page of: the template, its stylesheet and its JavaScript, and the Python that fills it."""
