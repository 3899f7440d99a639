"""What the next stage of a cascade needs of the unlabeled scans."""
