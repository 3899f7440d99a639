"""Values under the key ``"ssl"`` that make a training of tests small."""

SMALL = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "seed": 0,
    "feature_dim": 8,
    "num_anchors": 16,
    "num_negatives": 8,
    "bank_capacity": 64,
    "num_queries": 32,
    "queue_capacity": 128,
    "outlier_neighbors": 20,
    "adversary_width": 4,
    "location_width": 8,
    "confidence": 0.4,
    "anchor_confidence": 0.2,
}
