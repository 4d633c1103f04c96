"""Numbers to pictures: tables, bars, sparklines, curves and heat maps for the terminal, as SVG and as one HTML file.

Every function takes numbers and gives back a string; writing it somewhere is the caller's part. Colour is asked for by
`color=` and is never the only carrier of a meaning. Only the standard library is used.
"""
