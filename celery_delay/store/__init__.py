"""The Redis side: where delayed tasks wait.

``keys`` names every key and its type, ``scripts`` loads the Lua files, ``connection``
speaks to the server, ``redis`` offers one method per Lua command, ``lease`` is
leadership.  Only this package imports redis.
"""
