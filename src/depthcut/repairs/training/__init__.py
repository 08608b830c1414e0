"""What the repairs that train share: the schedule, the text in order, the teacher, LoRA, and the Trainer itself.

Only `trainer` and `adapters` import the Trainer and peft, which take a second or two: the repairs import these two
when they repair, so that listing or checking a repair stays quick.
"""
