"""The report: runs on one page that needs nothing but a browser.

The page is made of the record alone, without torch; each module is a part of it, `page` brings them together.
"""
