"""How much each unit matters: one file a family of metrics. Larger = more damage when the unit is removed."""
