"""What watches and scales a model that is served: queries, rules, a dashboard, autoscalers."""
