"""wsi-chat: whole-slide cytology analysis with multimodal language models."""
