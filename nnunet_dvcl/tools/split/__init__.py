"""``nnunet_dvcl split``: which cases train with and without their label, validate and test."""
