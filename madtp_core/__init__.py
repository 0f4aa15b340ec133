"""MADTP around Hugging Face BLIP: pruned vision-language transformers, trained, evaluated and run.

Start at `madtp_core.tasks.vqa.BlipVqa`. Importing this package loads nothing: torch comes with the modules.
"""
