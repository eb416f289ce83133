"""Clips: videos, animated pictures, and folders of frames. One module reads each; `reading` chooses."""
