"""What decides whether a drawn picture is right: GenEval's rules with a detector, or the choice among captions.

It may import everything below `tasks/evaluation/`.
"""
