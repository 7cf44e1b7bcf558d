"""How plans bring a new generation in the place of what serves: what they are put together from, and a file for each
form of arranging it.
"""
