"""Charts as inline SVG for self-contained pages, and as files of their own.

Texts are escaped. Series differ in colour, dash and marker, so that no chart depends on colour
alone; the colours are those of Okabe and Ito, which people with colour-blindness tell apart. Lines
of axes and text take the colour of the page's text, in light and in dark.
"""
