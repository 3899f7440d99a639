"""Everything behind ``nnunet_dvcl <command>``; nothing outside of it but ``cli.py`` imports from here."""
