"""Pictures of trainings and of features, with the numbers behind them."""
