"""The commands of ``wsi-chat``, one file each: options, the call, and what is printed."""
