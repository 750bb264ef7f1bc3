"""The Redis side: where delayed tasks wait.

``keys`` names every key and its type, ``scripts`` loads the Lua files, ``connection``
speaks to the server; ``shard`` joins the three.  On it stand ``additions``, ``records``,
``moves``, ``histories``, ``firing`` and ``journal``, which ``redis`` puts together, and
``lease``, which is leadership.  Only this package imports redis.
"""
