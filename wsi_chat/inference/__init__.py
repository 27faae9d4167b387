"""Batch inference over instruction data: every assistant turn of every row predicted, one JSON line each.

`wsi_chat.datasets.info.find_data` finds the rows, `wsi_chat.inference.run.infer` asks.
"""
