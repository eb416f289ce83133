"""An adapter's files: `header` reads what they say, `file` opens and writes them, `inspection` describes them.

`checks` holds them against limits, and `text` is what an adapter has in the text encoders.
"""
